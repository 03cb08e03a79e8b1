//! Log-likelihoods of given continuations.
//!
//! Continuations of one prompt share its prefill: the key/value cache of the prompt is computed once, and each
//! continuation is tried out on top of it. Where prompts begin alike (few-shot examples, a preamble), the cache is cut
//! back to what the next prompt shares with the last one ([`prefixes`]). Otherwise sequences of similar length run together, and the head runs for the positions
//! that are scored and no others. One after the other from the first token gives the same results, slower.

mod batches;
mod prefixes;
mod softmax;

pub use batches::{Budget, Size};
pub use softmax::{Normaliser, exp_of_negative};

use batches::Cost;

use crate::cell::Scoring;
use crate::engine::group::Visit;
use crate::engine::sampling::argmax;
use crate::engine::{Decoder, Features, Model, Prompt};
use crate::error::{Error, Result};

/// A prompt and what might follow it.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// At least one token.
    pub prompt: Prompt,
    /// Each of at least one token.
    pub continuations: Vec<Vec<u32>>,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Σ ln p(token | everything before it), in nats.
    pub log_likelihood: f64,
    /// True when every token is the most likely one at its place: greedy decoding would give the continuation.
    pub greedy: bool,
}

impl Likelihood {
    const CERTAIN: Self = Self { log_likelihood: 0.0, greedy: true };

    fn add(&mut self, logits: &[f32], token: u32) -> Result<()> {
        let logit = *logits.get(token as usize).ok_or_else(|| beyond_vocabulary(token, logits.len()))?;
        self.log_likelihood += Normaliser::of(logits)?.log_probability(logit);
        self.greedy = self.greedy && argmax(logits.into())? == token;
        Ok(())
    }
}

/// What to say of a token that the model does not know.
pub fn beyond_vocabulary(token: u32, vocabulary: usize) -> Error {
    Error::new(format!("the token {token} is beyond the model's vocabulary of {vocabulary}"))
        .hint("the tokenizer and the model do not belong together")
}

/// What a run costs beyond its tokens, in tokens of one sequence: in a batch of many, reading the weights once more
/// weighs about as much as one more token of each.
const RUN_IN_TOKENS: usize = 1;

/// Scores with a model.
#[derive(Debug)]
pub struct Scorer<'a> {
    model: &'a mut Model,
    scoring: Scoring,
    budget: Budget,
}

/// A sequence that is run whole: a prompt with one continuation behind it.
struct Whole {
    group: usize,
    continuation: usize,
    prompt: Prompt,
    tail: usize,
}

impl<'a> Scorer<'a> {
    /// A scorer in this way, within these bounds.
    pub fn new(model: &'a mut Model, scoring: Scoring, budget: Budget) -> Self {
        Self { model, scoring, budget }
    }

    /// The likelihoods of every group's continuations, in their order. `progress` gets the number of continuations
    /// scored so far.
    ///
    /// # Errors
    /// An empty prompt or continuation, sequences beyond the context, a failed run, logits that are not finite.
    pub fn score(
        &mut self,
        groups: &[Group],
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<Likelihood>>> {
        if groups.iter().any(|group| group.prompt.tokens.is_empty() || group.continuations.iter().any(Vec::is_empty)) {
            return Err(Error::new("an empty prompt or continuation has no likelihood"));
        }
        let mut found: Vec<Vec<Likelihood>> =
            groups.iter().map(|group| vec![Likelihood::CERTAIN; group.continuations.len()]).collect();
        let mut done = 0;
        if let Some(order) = self.prefix_order(groups) {
            self.score_in_order(groups, &order, &mut found, progress)?;
            return Ok(found);
        }
        let (shared, apart): (Vec<usize>, Vec<usize>) =
            (0..groups.len()).partition(|&index| self.shares(&groups[index]));
        let sizes: Vec<Size> = shared.iter().map(|&index| self.shared_size(&groups[index])).collect();
        for batch in batches(self.model, &sizes, self.budget) {
            let batch: Vec<usize> = batch.into_iter().map(|index| shared[index]).collect();
            self.score_shared(groups, &batch, &mut found)?;
            done += batch.iter().map(|&index| groups[index].continuations.len()).sum::<usize>();
            progress(done)?;
        }
        let whole: Vec<Whole> = apart.into_iter().flat_map(|index| whole(groups, index)).collect();
        let sizes: Vec<Size> = whole.iter().map(|sequence| self.whole_size(sequence)).collect();
        for batch in batches(self.model, &sizes, self.budget.of_way(self.scoring)) {
            let rows: Vec<&Whole> = batch.iter().map(|&index| &whole[index]).collect();
            self.walk(&rows, &mut |row, index, logits| {
                let Whole { group, continuation, .. } = *rows[row];
                let token = groups[group].continuations[continuation][index];
                found[group][continuation].add(logits, token)
            })?;
            done += rows.len();
            progress(done)?;
        }
        Ok(found)
    }

    /// The logits at every position of one sequence from `from` on, in order: `visit` gets the position and the logits
    /// of the token after it. Only as many logits are held at a time as the bounds allow.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub fn stream(
        &mut self,
        tokens: &[u32],
        from: usize,
        visit: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let tail = tokens.len().saturating_sub(from);
        if tail == 0 {
            return Ok(());
        }
        let sequence = Whole { group: 0, continuation: 0, prompt: Prompt::text(tokens.to_vec()), tail };
        self.walk(&[&sequence], &mut |_, index, logits| visit(from + index, logits))
    }

    /// Whether a group's prompt is computed once for all its continuations.
    fn shares(&self, group: &Group) -> bool {
        let count = group.continuations.len();
        if self.scoring == Scoring::OneByOne || count < 2 {
            return false;
        }
        let prompt = group.prompt.tokens.len();
        let steps: usize = group.continuations.iter().map(|tokens| tokens.len() - 1).sum();
        let runs = if self.model.extends_batches() {
            group.continuations.iter().filter(|tokens| tokens.len() > 1).count()
        } else {
            steps
        };
        // A vision tower's run weighs more than any of this.
        !group.prompt.images.is_empty() || prompt + steps + runs * RUN_IN_TOKENS <= count * prompt + steps
    }

    fn shared_size(&self, group: &Group) -> Size {
        let more = group.continuations.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let tail = if self.model.extends_batches() { more.max(1) } else { 1 };
        self.size(group.prompt.tokens.len(), more, tail)
    }

    fn whole_size(&self, sequence: &Whole) -> Size {
        self.size(sequence.prompt.tokens.len(), 0, sequence.tail)
    }

    fn size(&self, tokens: usize, more: usize, wanted: usize) -> Size {
        Size { tokens, more, tail: positions(self.model, tokens, wanted) }
    }

    /// Prefills the prompts of a batch and tries each continuation out: the first one of every group, the second, …
    fn score_shared(&mut self, groups: &[Group], batch: &[usize], found: &mut [Vec<Likelihood>]) -> Result<()> {
        let prompts: Vec<Prompt> = batch.iter().map(|&index| groups[index].prompt.clone()).collect();
        let sizes = batch.iter().map(|&index| self.shared_size(&groups[index]));
        let most = |of: fn(Size) -> usize| sizes.clone().map(of).max().unwrap_or(0);
        let capacity = most(|size| size.tokens) + most(|size| size.more);
        let mut decoder = self.decoder(batch.len(), capacity)?;
        let features = self.model.see(&prompts)?;
        decoder.prefill(self.model, &prompts, &features)?;
        for (row, &index) in batch.iter().enumerate() {
            let logits = decoder.logits();
            let logits = logits.row(row);
            let logits = logits.as_slice().ok_or_else(|| Error::new("logits do not lie in order"))?;
            for (likelihood, tokens) in found[index].iter_mut().zip(&groups[index].continuations) {
                likelihood.add(logits, tokens[0])?;
            }
        }
        let most = batch.iter().map(|&index| groups[index].continuations.len()).max().unwrap_or(0);
        for number in 0..most {
            let continuation = |row: usize| groups[batch[row]].continuations.get(number).map_or(&[][..], Vec::as_slice);
            // The last token's own logits predict what comes after the continuation.
            let rows: Vec<&[u32]> =
                (0..batch.len()).map(|row| continuation(row).split_last().map_or(&[][..], |(_, rest)| rest)).collect();
            decoder.try_out(self.model, &rows, &mut |row, index, logits| {
                let likelihoods: &mut Vec<Likelihood> = &mut found[batch[row]];
                likelihoods[number].add(logits, continuation(row)[index + 1])
            })?;
        }
        Ok(())
    }

    /// Runs whole sequences of one batch; `visit` gets each row's wanted logits, in order.
    fn walk(&mut self, rows: &[&Whole], visit: &mut Visit) -> Result<()> {
        let capacity = rows.iter().map(|row| row.prompt.tokens.len()).max().unwrap_or(0);
        let mut decoder = self.decoder(rows.len(), capacity)?;
        let mut scratch = Vec::new();
        let chunk = (self.budget.logits_bytes / cost(self.model).logits_bytes.max(1)).max(1) as usize;
        let in_parts = |row: &&Whole| self.whole_size(row).tail > chunk && row.prompt.images.is_empty();
        if let Some(row) = rows.first().filter(|row| rows.len() == 1 && in_parts(row)) {
            return self.walk_in_parts(&mut decoder, row, chunk, visit);
        }
        let prompts: Vec<Prompt> = rows.iter().map(|row| row.prompt.clone()).collect();
        let tails: Vec<usize> = rows.iter().map(|row| row.tail).collect();
        let features = self.model.see(&prompts)?;
        decoder.prefill_wanting(self.model, &prompts, &features, &tails)?;
        for (row, &tail) in tails.iter().enumerate() {
            for index in 0..tail {
                visit(row, index, decoder.tail_logits(row, index, &mut scratch))?;
            }
        }
        Ok(())
    }

    /// Runs one sequence part by part, so that the logits of a part fit into memory.
    fn walk_in_parts(&mut self, decoder: &mut Decoder, row: &Whole, chunk: usize, visit: &mut Visit) -> Result<()> {
        let tokens = &row.prompt.tokens;
        let from = tokens.len() - row.tail;
        let mut scratch = Vec::new();
        // Where only selected logits are computed, what is not scored can go in one part.
        let first = if self.model.computes_selected_logits() { from + chunk } else { chunk };
        let mut start = 0;
        while start < tokens.len() {
            let end = tokens.len().min(start + if start == 0 { first } else { chunk });
            let tail = end.saturating_sub(start.max(from));
            let part = &tokens[start..end];
            if start == 0 {
                let prompt = Prompt::text(part.to_vec());
                decoder.prefill_wanting(self.model, &[prompt], &Features::default(), &[tail.max(1)])?;
            } else {
                decoder.extend(self.model, part, tail.max(1))?;
            }
            for index in 0..tail {
                visit(0, end - tail - from + index, decoder.tail_logits(0, index, &mut scratch))?;
            }
            start = end;
        }
        Ok(())
    }

    fn decoder(&self, rows: usize, capacity: usize) -> Result<Decoder> {
        Decoder::new(self.model, rows, capacity)
    }
}

/// Batches of indices into `sizes`, within bounds of memory: the longest first, neighbours in length together.
pub fn batches(model: &Model, sizes: &[Size], budget: Budget) -> Vec<Vec<usize>> {
    batches::batches(sizes, cost(model), budget)
}

fn cost(model: &Model) -> Cost {
    let shape = &model.manifest().shape;
    Cost {
        cache_bytes: model.cache_bytes(1, 1),
        logits_bytes: shape.vocab_size * size_of::<f32>() as u64,
        context: shape.context_length as usize,
    }
}

/// Positions whose logits a run over so many tokens writes, where the last few are wanted: a graph that cannot select
/// writes them all.
pub fn positions(model: &Model, tokens: usize, wanted: usize) -> usize {
    if model.computes_selected_logits() { wanted } else { tokens.max(wanted) }
}

/// The group's continuations, each behind the prompt.
fn whole(groups: &[Group], group: usize) -> impl Iterator<Item = Whole> {
    groups[group].continuations.iter().enumerate().map(move |(continuation, tokens)| {
        let mut prompt = groups[group].prompt.clone();
        prompt.tokens.extend(&tokens[..tokens.len() - 1]);
        Whole { group, continuation, prompt, tail: tokens.len() }
    })
}
