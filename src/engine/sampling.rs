//! Choosing the next token.

use ndarray::ArrayView1;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep only that many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of the most likely tokens whose probabilities reach this.
    pub top_p: f32,
    /// Seed of the generator.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// Checks the ranges.
    ///
    /// # Errors
    /// A negative temperature, a top-p outside (0, 1].
    pub fn check(&self) -> Result<()> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(Error::new(format!("the temperature {} is not a number from 0 up", self.temperature))
                .hint("0 always takes the most likely token"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::new(format!("the top-p {} is not above 0 and at most 1", self.top_p))
                .hint("1 draws among all tokens"));
        }
        Ok(())
    }
}

/// A seeded sampler.
#[derive(Debug)]
pub struct Sampler {
    options: Sampling,
    random: ChaCha8Rng,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler of these options.
    pub fn new(options: Sampling) -> Self {
        let random = ChaCha8Rng::seed_from_u64(options.seed);
        Self { options, random, candidates: Vec::new() }
    }

    /// The next token.
    ///
    /// # Errors
    /// Logits that are not finite: the run behind them is not to be believed.
    pub fn choose(&mut self, logits: ArrayView1<f32>) -> Result<u32> {
        let best = argmax(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best);
        }
        let max = logits[best as usize];
        self.candidates.clear();
        self.candidates.extend(
            logits.iter().enumerate().map(|(id, &logit)| (id as u32, ((logit - max) / self.options.temperature).exp())),
        );
        let by_weight = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.options.top_k > 0 && self.options.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(self.options.top_k - 1, by_weight);
            self.candidates.truncate(self.options.top_k);
        }
        if self.options.top_p < 1.0 {
            self.candidates.sort_unstable_by(by_weight);
            let total: f32 = self.candidates.iter().map(|candidate| candidate.1).sum();
            let mut sum = 0.0;
            let keep = self.candidates.iter().position(|candidate| {
                sum += candidate.1;
                sum >= self.options.top_p * total
            });
            self.candidates.truncate(keep.map_or(self.candidates.len(), |last| last + 1));
        }
        let total: f32 = self.candidates.iter().map(|candidate| candidate.1).sum();
        let mut draw = self.random.random::<f32>() * total;
        for &(id, weight) in &self.candidates {
            draw -= weight;
            if draw <= 0.0 {
                return Ok(id);
            }
        }
        // Rounding may leave a crumb of the total; the last candidate takes it.
        Ok(self.candidates.last().map_or(best, |candidate| candidate.0))
    }
}

/// The index of the largest logit; the first one of equals, as other tools have it.
///
/// # Errors
/// No logits, or any value that is not finite.
pub fn argmax(logits: ArrayView1<f32>) -> Result<u32> {
    let not_finite =
        || Error::invalid("the logits are not finite").hint("the provider or the precision produced NaN or infinity");
    // Lanes that do not depend on each other become vector instructions; a vocabulary of 150,000 is looked through
    // once a token and row, so this is inside every latency.
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut taint = [0.0_f32; LANES];
    let mut visit = |lane: usize, logit: f32| {
        largest[lane] = if logit > largest[lane] { logit } else { largest[lane] };
        // Zero for every finite number, NaN for the others.
        taint[lane] += logit * 0.0;
    };
    if let Some(slice) = logits.as_slice() {
        let chunks = slice.chunks_exact(LANES);
        let rest = chunks.remainder();
        chunks.for_each(|chunk| (0..LANES).for_each(|lane| visit(lane, chunk[lane])));
        rest.iter().enumerate().for_each(|(lane, &logit)| visit(lane, logit));
    } else {
        logits.iter().enumerate().for_each(|(id, &logit)| visit(id % LANES, logit));
    }
    if taint.iter().any(|lane| lane.is_nan()) {
        return Err(not_finite());
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).map(|id| id as u32).ok_or_else(not_finite)
}

/// Independent comparisons in flight.
const LANES: usize = 16;

/// Uniform token ids without those excluded.
pub fn random_tokens(random: &mut impl Rng, count: usize, vocab: u32, exclude: &[u32]) -> Vec<u32> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let id = random.random_range(0..vocab);
        if !exclude.contains(&id) || exclude.len() >= vocab as usize {
            ids.push(id);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let argmax = |logits: &[f32]| argmax(ArrayView1::from(logits));
        assert_eq!(argmax(&[0.0, 3.0, 3.0, -1.0]).unwrap(), 1);
        assert!(argmax(&[0.0, f32::NAN]).is_err());
        assert!(argmax(&[]).is_err());
        let mut many: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        many[777] = 5.0;
        assert_eq!(argmax(&many).unwrap(), 777);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            many[500] = wrong;
            assert!(argmax(&many).is_err());
        }
    }

    #[test]
    fn samples_follow_the_probabilities_and_the_seed() {
        let logits = [0.0_f32, (3.0_f32).ln(), f32::MIN];
        let options = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 7 };
        let draw = |options: &Sampling| {
            let mut sampler = Sampler::new(options.clone());
            (0..4000).map(|_| sampler.choose(ArrayView1::from(&logits)).unwrap()).collect::<Vec<_>>()
        };
        let ids = draw(&options);
        assert_eq!(ids, draw(&options));
        let ones = ids.iter().filter(|&&id| id == 1).count() as f64 / 4000.0;
        // Standard error 0.007 at p = 0.75.
        assert!((ones - 0.75).abs() < 0.03, "{ones}");
        assert!(draw(&Sampling { top_k: 1, ..options.clone() }).iter().all(|&id| id == 1));
        assert!(draw(&Sampling { top_p: 0.5, ..options }).iter().all(|&id| id == 1));
    }

    #[test]
    fn ranges_are_checked() {
        assert!(Sampling { temperature: -1.0, ..Sampling::GREEDY }.check().is_err());
        assert!(Sampling { top_p: 0.0, ..Sampling::GREEDY }.check().is_err());
        assert!(Sampling::GREEDY.check().is_ok());
    }
}
