//! Guesses: which experts the next layer's router is likely to choose, from the state that this layer's experts get.
//!
//! The state changes little from layer to layer, so the next router applied one layer early names many of the experts
//! that it will choose (Eliseev and Mazur, 2023, arXiv:2312.17238).

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Context, Error, Result};
use crate::package::shards::{self, ROUTERS, ShardIndex};
use crate::runtime::custom::Parallel;

/// More tokens at once choose so many experts that guessing some gains nothing.
pub(super) const TOKENS: usize = 4;

/// How to guess.
#[derive(Debug)]
pub(super) struct Guessing {
    /// Experts a token.
    pub count: usize,
    routers: HashMap<String, Router>,
}

impl Guessing {
    /// Reads a pack's routers into memory, where they stay.
    ///
    /// # Errors
    /// A pack without routers; a file that is missing or damaged.
    pub fn read(folder: &Path, index: &ShardIndex, count: u32) -> Result<Self> {
        if index.routers.is_empty() {
            let message = format!("experts of `{}` cannot be guessed: the pack names no routers", folder.display());
            return Err(Error::unsupported(message)
                .hint("guess experts of mixtures only, and pack again what an older program packed"));
        }
        let path = folder.join(ROUTERS);
        let failed = || format!("cannot read the routers in `{}`", path.display());
        let file = File::open(&path).with_context(failed)?;
        let read = |router: &shards::Router| {
            let mut bytes = vec![0; router.bytes().unwrap_or(0) as usize];
            file.read_exact_at(&mut bytes, router.offset).with_context(failed)?;
            let found = format!("{:016x}", xxh3_64(&bytes));
            if found != router.hash {
                let cause = format!("that of `{}` has the hash {found}, not {}", router.mixture, router.hash);
                return Err(Error::new(failed())
                    .because(Error::new(cause))
                    .hint("the pack is damaged: `ortbench pack --verify FOLDER` lists what is; pack it again"));
            }
            Ok((router.mixture.clone(), Router::new(router, &bytes)))
        };
        Ok(Self { count: count as usize, routers: index.routers.iter().map(read).collect::<Result<_>>()? })
    }

    /// The experts of a mixture that tokens are likely to choose, the likelier ones of a token first. `None` without a
    /// router for that state.
    pub fn likely(&self, mixture: &str, x: &[f32], parallel: &dyn Parallel) -> Option<Vec<usize>> {
        let router = self.routers.get(mixture).filter(|router| x.len().is_multiple_of(router.hidden))?;
        let mut likely = Vec::new();
        for token in x.chunks_exact(router.hidden) {
            for expert in router.highest(token, self.count, parallel) {
                if !likely.contains(&expert) {
                    likely.push(expert);
                }
            }
        }
        Some(likely)
    }
}

/// A mixture's router.
#[derive(Debug)]
struct Router {
    hidden: usize,
    experts: usize,
    /// `[hidden, experts]`
    weights: Vec<f32>,
    /// `[experts]`, or nothing.
    bias: Vec<f32>,
}

impl Router {
    fn new(described: &shards::Router, bytes: &[u8]) -> Self {
        let (hidden, experts) = (described.hidden as usize, described.experts as usize);
        let mut weights: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        let bias = weights.split_off(hidden * experts);
        Self { hidden, experts, weights, bias }
    }

    /// The experts with the highest scores, in their order.
    fn highest(&self, x: &[f32], count: usize, parallel: &dyn Parallel) -> Vec<usize> {
        let mut scores = self.logits(x, parallel);
        for (score, bias) in scores.iter_mut().zip(&self.bias) {
            *score = (1.0 + (-*score).exp()).recip() + bias;
        }
        let mut order: Vec<usize> = (0..self.experts).collect();
        order.sort_unstable_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(count);
        order
    }

    /// `x · W`, in one band of inputs a thread.
    fn logits(&self, x: &[f32], parallel: &dyn Parallel) -> Vec<f32> {
        let sum = Mutex::new(vec![0.0; self.experts]);
        let band = self.hidden.div_ceil(parallel.threads().max(1)).max(1);
        parallel.run(self.hidden.div_ceil(band), &|number| {
            let mut own = vec![0.0; self.experts];
            let rows = self.weights.chunks_exact(self.experts).zip(x).skip(number * band).take(band);
            for (row, x) in rows {
                own.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
            }
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.iter_mut().zip(&own).for_each(|(sum, own)| *sum += own);
        });
        sum.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Threads(usize);

    impl Parallel for Threads {
        fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
            (0..count).for_each(task);
        }

        fn threads(&self) -> usize {
            self.0
        }
    }

    fn router(weights: &[f32], bias: &[f32]) -> Guessing {
        let experts = weights.len() / 3;
        let router = Router { hidden: 3, experts, weights: weights.to_vec(), bias: bias.to_vec() };
        Guessing { count: 2, routers: HashMap::from([("next".to_owned(), router)]) }
    }

    #[test]
    fn the_highest_logits_are_guessed() {
        // Expert 3 answers to the first input, 0 to the second, 1 to the last.
        let guessing = router(&[0., 0., 0., 2., 3., 0., 0., 0., 0., 1., 0., 0.], &[]);
        for threads in [1, 2, 7] {
            let likely = |x: &[f32]| guessing.likely("next", x, &Threads(threads));
            assert_eq!(likely(&[1., 1., 0.]), Some(vec![0, 3]));
            // The second token's first choice is there already.
            assert_eq!(likely(&[1., 1., 0., 0., 1., 2.]), Some(vec![0, 3, 1]));
            assert_eq!(likely(&[1., 1.]), None);
            assert_eq!(guessing.likely("other", &[1., 1., 0.], &Threads(threads)), None);
        }
    }

    #[test]
    fn a_bias_is_added_to_the_sigmoid() {
        let guessing = router(&[9., 8., 0., 0., 0., 0., 0., 0., 0.], &[-0.8, 0.0, 0.3]);
        assert_eq!(guessing.likely("next", &[1., 0., 0.], &Threads(2)), Some(vec![1, 2]));
    }
}
