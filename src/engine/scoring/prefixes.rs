//! Prompts one after the other in one cache: what a prompt shares with the one before it is not computed again, and each
//! continuation runs in one piece. It takes a cache that is updated in place, and a batch of one, since fused kernels append several
//! tokens to one row only.

use super::{Group, Likelihood, Scorer, Size, batches};
use crate::cell::Scoring;
use crate::engine::plan::CacheMode;
use crate::engine::{Decoder, Features};
use crate::error::{Error, Result};

/// What a run costs beyond its tokens, in tokens: the weights are read once more, and every operator starts once more.
/// Between 5 (the miniatures) and 20 (4 billion weights) where it was measured.
const RUN_IN_TOKENS: usize = 16;

impl Scorer<'_> {
    /// The order in which prompts share the most with their neighbour, where one after the other in one cache costs less
    /// than batches do: because much is shared, or because batches are small and step token by token.
    pub(super) fn prefix_order(&self, groups: &[Group]) -> Option<Vec<usize>> {
        let possible = self.scoring == Scoring::Batched
            && self.model.cache_mode() == CacheMode::InPlace
            && self.model.computes_selected_logits()
            && groups.iter().all(|group| group.prompt.images.is_empty());
        if !possible {
            return None;
        }
        let prompt = |index: usize| groups[index].prompt.tokens.as_slice();
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by(|&a, &b| prompt(a).cmp(prompt(b)));
        let saved: usize = order.windows(2).map(|pair| common(prompt(pair[0]), prompt(pair[1]))).sum();
        let alone: usize = groups.iter().map(cost_alone).sum();
        (alone - saved < self.cost_in_batches(groups)).then_some(order)
    }

    /// Tokens and runs of all groups in batches.
    fn cost_in_batches(&self, groups: &[Group]) -> usize {
        let (shared, apart): (Vec<&Group>, Vec<&Group>) = groups.iter().partition(|group| self.shares(group));
        let sizes: Vec<Size> = shared.iter().map(|group| self.shared_size(group)).collect();
        let of_batch = |batch: Vec<usize>| {
            let rows = batch.iter().map(|&index| shared[index]);
            let prompts: usize = rows.clone().map(|group| group.prompt.tokens.len()).sum();
            let most = rows.clone().map(|group| group.continuations.len()).max().unwrap_or(0);
            let tried = (0..most).map(|number| {
                let read =
                    rows.clone().map(|group| group.continuations.get(number).map_or(0, |tokens| tokens.len() - 1));
                let longest = read.clone().max().unwrap_or(0);
                if self.model.extends_batches() {
                    read.sum::<usize>() + RUN_IN_TOKENS * longest.min(1)
                } else {
                    longest * (batch.len() + RUN_IN_TOKENS)
                }
            });
            prompts + RUN_IN_TOKENS + tried.sum::<usize>()
        };
        let shared: usize = batches(self.model, &sizes, self.budget).into_iter().map(of_batch).sum();
        let whole = |group: &&Group| {
            let prompt = group.prompt.tokens.len();
            group.continuations.iter().map(move |tokens| prompt + tokens.len() - 1).collect::<Vec<_>>()
        };
        let whole: Vec<Size> = apart.iter().flat_map(whole).map(|tokens| Size { tokens, more: 0, tail: 1 }).collect();
        let runs = batches(self.model, &whole, self.budget).len();
        shared + whole.iter().map(|size| size.tokens).sum::<usize>() + RUN_IN_TOKENS * runs
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

/// Tokens and runs of a group by itself: its prompt, and each continuation of several tokens in one run.
fn cost_alone(group: &Group) -> usize {
    let read = group.continuations.iter().map(|tokens| tokens.len() - 1).filter(|read| *read > 0);
    group.prompt.tokens.len() + RUN_IN_TOKENS + read.map(|read| read + RUN_IN_TOKENS).sum::<usize>()
}

/// Length of the common beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
