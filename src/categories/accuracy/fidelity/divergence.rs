//! How far a cell's next-token distributions are from its reference's, over the same tokens.

use super::store::Distribution;
use crate::engine::scoring::{Normaliser, exp_of_negative};
use crate::error::Result;
use crate::stats;

/// Tokens of the overlap.
const TOP: usize = 5;

/// What is kept of every position.
#[derive(Debug, Default)]
pub struct Divergence {
    kl: Vec<f64>,
    /// ln p(next) of the cell and of the reference.
    next: Vec<(f64, f64)>,
    same_choice: u64,
    overlap: f64,
    max_difference: f64,
}

/// Figures over all positions; the names are those of `metrics::FACTS`.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Positions.
    pub tokens: u64,
    /// KL(reference ‖ cell) in nats: mean and its standard error, percentiles, the largest.
    pub kl_mean: f64,
    /// Standard error of the mean; like the others `None` of a single position.
    pub kl_stderr: Option<f64>,
    /// Median, p90, p99 (`None` below 100 positions), largest.
    pub kl_median: f64,
    /// 90th percentile.
    pub kl_p90: f64,
    /// 99th percentile.
    pub kl_p99: Option<f64>,
    /// Largest.
    pub kl_max: f64,
    /// Share of positions with the same likeliest token.
    pub top1: f64,
    /// Its standard error.
    pub top1_stderr: Option<f64>,
    /// Mean share of the reference's five likeliest tokens that are among the cell's.
    pub top5: f64,
    /// Root mean square of the difference in the probability of the text's next token.
    pub rms_probability: f64,
    /// Largest difference of a log-probability among the tokens that the reference keeps exactly.
    pub max_difference: f64,
    /// exp(−mean ln p(next)).
    pub perplexity: f64,
    /// The same of the reference.
    pub reference_perplexity: f64,
    /// Their ratio.
    pub ratio: f64,
    /// Its standard error, by the delta method over paired positions.
    pub ratio_stderr: Option<f64>,
}

impl Divergence {
    /// Takes in a position: the cell's logits, the token that the text has next, the reference's distribution.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn add(&mut self, logits: &[f32], next: u32, reference: &Distribution) -> Result<()> {
        let normaliser = Normaliser::of(logits)?;
        self.kl.push(kl_divergence(logits, &normaliser, reference));
        let own = normaliser.log_probability(logits[next as usize]);
        self.next.push((own, f64::from(reference.next)));
        let top = largest::<TOP>(logits);
        let expected = &reference.kept[..TOP.min(reference.kept.len())];
        self.same_choice += u64::from(top.first() == expected.first().map(|(token, _)| token));
        let common = expected.iter().filter(|(token, _)| top.contains(token)).count();
        self.overlap += common as f64 / expected.len() as f64;
        for &(token, value) in &reference.kept {
            let difference = (normaliser.log_probability(logits[token as usize]) - f64::from(value)).abs();
            self.max_difference = self.max_difference.max(difference);
        }
        Ok(())
    }

    /// The figures; `None` before the first position.
    pub fn figures(&self) -> Option<Figures> {
        let count = self.kl.len();
        if count == 0 {
            return None;
        }
        let n = count as f64;
        let mut sorted = self.kl.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let percentile = |share: f64| stats::quantile(&sorted, share);
        let (kl_mean, kl_stderr) = mean_and_stderr(self.kl.iter().copied());
        let top1 = self.same_choice as f64 / n;
        let differences = self.next.iter().map(|(own, reference)| reference - own);
        let (log_ratio, log_ratio_stderr) = mean_and_stderr(differences);
        let squares = self.next.iter().map(|(own, reference)| (own.exp() - reference.exp()).powi(2));
        let perplexity = |of: fn(&(f64, f64)) -> f64| (-self.next.iter().map(of).sum::<f64>() / n).exp();
        Some(Figures {
            tokens: count as u64,
            kl_mean,
            kl_stderr,
            kl_median: percentile(0.5),
            kl_p90: percentile(0.9),
            kl_p99: (count >= 100).then(|| percentile(0.99)),
            kl_max: percentile(1.0),
            top1,
            top1_stderr: (count > 1).then(|| (top1 * (1.0 - top1) / (n - 1.0)).sqrt()),
            top5: self.overlap / n,
            rms_probability: (squares.sum::<f64>() / n).sqrt(),
            max_difference: self.max_difference,
            perplexity: perplexity(|(own, _)| *own),
            reference_perplexity: perplexity(|(_, reference)| *reference),
            ratio: log_ratio.exp(),
            ratio_stderr: log_ratio_stderr.map(|stderr| log_ratio.exp() * stderr),
        })
    }
}

/// Σ p (ln p − ln q) over the vocabulary, p and q divided by their sums, which takes the first-order effect of rounding
/// away. What is left and negative is rounding too, and zero.
///
/// Terms are computed in single precision; those of tokens that the reference keeps, which carry most of the mass, are
/// then put right in double precision. Logits that are the reference's own give less than 10⁻⁸.
fn kl_divergence(logits: &[f32], normaliser: &Normaliser, reference: &Distribution) -> f64 {
    let shift = normaliser.log_sum as f32;
    let (mut sum, mut mass, mut own_mass) = (0.0, 0.0, 0.0);
    for (&logit, &log_p) in logits.iter().zip(&reference.all) {
        let log_q = logit - shift;
        let (p, q) = (exp_of_negative(log_p), exp_of_negative(log_q));
        sum += f64::from(p * (log_p - log_q));
        mass += f64::from(p);
        own_mass += f64::from(q);
    }
    for &(token, log_p) in &reference.kept {
        let logit = logits[token as usize];
        let log_q = logit - shift;
        let (p, q) = (exp_of_negative(log_p), exp_of_negative(log_q));
        let (exact_log_p, exact_log_q) = (f64::from(log_p), f64::from(logit) - f64::from(shift));
        let exact_p = exact_log_p.exp();
        sum += exact_p * (exact_log_p - exact_log_q) - f64::from(p * (log_p - log_q));
        mass += exact_p - f64::from(p);
        own_mass += exact_log_q.exp() - f64::from(q);
    }
    (sum / mass - mass.ln() + own_mass.ln()).max(0.0)
}

/// Mean and its standard error, values taken as independent.
fn mean_and_stderr(values: impl Iterator<Item = f64> + Clone) -> (f64, Option<f64>) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (n > 1.0).then(|| (variance / n).sqrt()))
}

/// Indices of the largest values, the largest first; of equals the first.
fn largest<const N: usize>(logits: &[f32]) -> Vec<u32> {
    let mut top: Vec<u32> = Vec::with_capacity(N + 1);
    let mut least = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        if top.len() == N && logit <= least {
            continue;
        }
        let place = top.partition_point(|&other| logits[other as usize] >= logit);
        top.insert(place, token as u32);
        top.truncate(N);
        least = top.last().map_or(least, |&last| logits[last as usize]);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::super::store::{KEPT, Reader, Writer};
    use super::*;

    /// What a file gives back of these logits.
    fn stored(rows: &[(Vec<f32>, u32)]) -> Vec<Distribution> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.bin");
        let vocab = rows[0].0.len();
        let mut writer = Writer::create(&path, vocab).unwrap();
        for (logits, next) in rows {
            writer.add(logits, *next).unwrap();
        }
        writer.finish().unwrap();
        let mut reader = Reader::open(&path, vocab).unwrap();
        rows.iter().map(|_| reader.next().unwrap().clone()).collect()
    }

    fn logits(vocab: usize, seed: u32, spread: f32) -> Vec<f32> {
        (0..vocab as u32).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 10_007.0 * spread).collect()
    }

    fn log_softmax(logits: &[f32]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        logits.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
    }

    fn exact(reference: &[f32], cell: &[f32]) -> f64 {
        let (p, q) = (log_softmax(reference), log_softmax(cell));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    }

    #[test]
    fn a_cell_that_agrees_has_no_divergence() {
        for (vocab, spread) in [(50, 3.0), (5000, 20.0), (5000, 0.5), (50_000, 12.0)] {
            let row = logits(vocab, 1, spread);
            let mut divergence = Divergence::default();
            divergence.add(&row, 3, &stored(&[(row.clone(), 3)])[0]).unwrap();
            let figures = divergence.figures().unwrap();
            assert!(figures.kl_max < 1e-8, "{vocab} {spread}: {}", figures.kl_max);
            assert_eq!((figures.top1, figures.top5), (1.0, 1.0));
            assert!(figures.max_difference < 2e-6 && (figures.ratio - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn divergences_are_those_of_double_precision() {
        for vocab in [20, KEPT + 1, 30_000] {
            for noise in [0.01_f32, 0.3, 2.0] {
                let reference = logits(vocab, 1, 15.0);
                let cell: Vec<f32> = reference.iter().zip(logits(vocab, 2, noise)).map(|(a, b)| a + b - 40.0).collect();
                let found =
                    kl_divergence(&cell, &Normaliser::of(&cell).unwrap(), &stored(&[(reference.clone(), 0)])[0]);
                let expected = exact(&reference, &cell);
                assert!((found - expected).abs() < 1e-7 + 1e-4 * expected, "{vocab} {noise}: {found} {expected}");
            }
        }
    }

    #[test]
    fn figures_over_several_tokens() {
        // Two tokens of a vocabulary of three: once the cell agrees, once it has the two likeliest exchanged.
        let rows = [(vec![2.0, 1.0, 0.0], 0), (vec![2.0, 1.0, 0.0], 0)];
        let stored = stored(&rows);
        let mut divergence = Divergence::default();
        divergence.add(&[2.0, 1.0, 0.0], 0, &stored[0]).unwrap();
        divergence.add(&[1.0, 2.0, 0.0], 0, &stored[1]).unwrap();
        let figures = divergence.figures().unwrap();
        let p = log_softmax(&[2.0, 1.0, 0.0]);
        let kl = p[0].exp() - p[1].exp();
        assert!((figures.kl_max - kl).abs() < 1e-7 && (figures.kl_mean - kl / 2.0).abs() < 1e-7);
        assert_eq!((figures.tokens, figures.top1, figures.kl_p99), (2, 0.5, None));
        assert!((figures.top1_stderr.unwrap() - 0.5).abs() < 1e-12);
        assert!((figures.max_difference - 1.0).abs() < 1e-6);
        // ln p(next) is lower by one at one of two tokens.
        assert!((figures.ratio - 0.5_f64.exp()).abs() < 1e-6);
        assert!((figures.ratio_stderr.unwrap() - figures.ratio * 0.5).abs() < 1e-6);
        let difference = p[0].exp() - p[1].exp();
        assert!((figures.rms_probability - difference / 2.0_f64.sqrt()).abs() < 1e-6);
        assert!(Divergence::default().figures().is_none());
    }

    #[test]
    fn the_first_of_equals_is_the_largest() {
        assert_eq!(largest::<3>(&[1.0, 5.0, 5.0, 7.0, 5.0]), [3, 1, 2]);
        assert_eq!(largest::<3>(&[1.0]), [0]);
    }
}
