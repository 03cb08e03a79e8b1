//! Prompts that begin alike, one after the other in one cache: what a prompt shares with the one before it is not
//! computed again. It takes a cache that is updated in place, and a batch of one, since fused kernels append several
//! tokens to one row only.

use super::{Group, Likelihood, Scorer};
use crate::cell::Scoring;
use crate::engine::plan::CacheMode;
use crate::engine::{Decoder, Features};
use crate::error::{Error, Result};

/// What a run of one sequence costs beyond its tokens, in tokens: the weights are read for it alone. Between 5 (the
/// miniatures) and 20 (4 billion weights) where it was measured.
const RUN_ALONE_IN_TOKENS: usize = 16;

impl Scorer<'_> {
    /// The order in which prompts share the most with their neighbour; empty where sharing saves less than batches do.
    pub(super) fn prefix_order(&self, groups: &[Group]) -> Vec<usize> {
        let possible = self.scoring == Scoring::Batched
            && self.model.cache_mode() == CacheMode::InPlace
            && groups.iter().all(|group| group.prompt.images.is_empty());
        if !possible {
            return Vec::new();
        }
        let prompt = |index: usize| groups[index].prompt.tokens.as_slice();
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by(|&a, &b| prompt(a).cmp(prompt(b)));
        let saved: usize = order.windows(2).map(|pair| common(prompt(pair[0]), prompt(pair[1]))).sum();
        let runs: usize = groups.iter().map(runs).sum();
        if saved > runs * RUN_ALONE_IN_TOKENS { order } else { Vec::new() }
    }

    /// Scores the groups in this order.
    pub(super) fn score_in_order(
        &mut self,
        groups: &[Group],
        order: &[usize],
        found: &mut [Vec<Likelihood>],
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let longest = groups.iter().map(|group| {
            let continuation = group.continuations.iter().map(Vec::len).max().unwrap_or(1);
            group.prompt.tokens.len() + continuation - 1
        });
        let mut decoder = Decoder::new(self.model, 1, longest.max().unwrap_or(1))?;
        let mut before: &[u32] = &[];
        let mut done = 0;
        for &index in order {
            let Group { prompt, continuations } = &groups[index];
            let tokens = prompt.tokens.as_slice();
            // The last token runs in any case: its logits are wanted.
            let shared = common(before, tokens).min(tokens.len() - 1);
            if shared == 0 {
                decoder.prefill(self.model, std::slice::from_ref(prompt), &Features::default())?;
            } else {
                decoder.keep(shared);
                decoder.extend(self.model, &tokens[shared..], 1)?;
            }
            let logits = decoder.logits();
            let logits = logits.as_slice().ok_or_else(|| Error::new("logits do not lie in order"))?;
            for (likelihood, continuation) in found[index].iter_mut().zip(continuations) {
                likelihood.add(logits, continuation[0])?;
            }
            for (likelihood, continuation) in found[index].iter_mut().zip(continuations) {
                let read = &continuation[..continuation.len() - 1];
                decoder
                    .try_out(self.model, &[read], &mut |_, at, logits| likelihood.add(logits, continuation[at + 1]))?;
            }
            before = tokens;
            done += continuations.len();
            progress(done)?;
        }
        Ok(())
    }
}

/// Runs of a group: its prompt's, and one for each continuation of several tokens.
fn runs(group: &Group) -> usize {
    1 + group.continuations.iter().filter(|tokens| tokens.len() > 1).count()
}

/// Length of the common beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
