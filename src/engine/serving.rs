//! A queue of requests: how many of them go through the model together, and what each waited.
//!
//! All requests are there at the start and are taken in their order. With a fixed number, a wave of sequences runs to its
//! last token before the next one begins. Where the number is found while running (`controller.rs`), sequences join
//! those that run, and those that have ended make room, as far as caches can be regrouped.
//!
//! `run.rs` is the loop, `live.rs` the model that it runs on.

mod controller;
mod live;
mod run;
#[cfg(test)]
mod tests;

use std::time::Instant;

use crate::engine::model::Model;
use crate::engine::prompt::Prompt;
use crate::engine::sampling::argmax;
use crate::error::{Error, Result};
use crate::loader::held;
use crate::loader::spill::Traffic;
use crate::stats::median;

pub use controller::{Objective, Search};

use controller::Controller;
use live::{Each, Kept, Live};
use run::{Pace, run};

/// How many sequences of a queue go through the model together.
#[derive(Debug, Clone, PartialEq)]
pub enum Waves {
    /// All of them.
    Together,
    /// So many, and at the end what is left.
    Fixed(u32),
    /// As many as serve the objective, found while running.
    Adaptive(Objective),
}

impl Waves {
    /// The most sequences that are in memory together, of so many.
    pub fn most(&self, sequences: u32) -> u32 {
        match self {
            Self::Together => sequences,
            Self::Fixed(size) => sequences.min((*size).max(1)),
            Self::Adaptive(objective) => sequences.min(objective.max.unwrap_or(u32::MAX).max(1)),
        }
    }
}

/// What is fed after a token that was chosen: gets the sequence, the index of the token from 0, and the token.
pub type Feed<'a> = dyn FnMut(usize, usize, u32) -> u32 + 'a;

/// What was chosen: greedy decoding.
pub fn greedy(_sequence: usize, _index: usize, chosen: u32) -> u32 {
    chosen
}

/// Gets a sequence, the number of tokens that were fed after its prompt, and the logits after them.
pub type Look<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<()> + 'a;

/// One request of a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// The chosen tokens.
    pub tokens: Vec<u32>,
    /// From the start of the queue to its first token.
    pub first_seconds: f64,
    /// From the start of the queue to its last.
    pub last_seconds: f64,
}

/// A stretch of time in which the same sequences ran together.
#[derive(Debug, Clone, PartialEq)]
pub struct Wave {
    /// How many.
    pub size: usize,
    /// How many of them began with it.
    pub began: usize,
    /// From the end of the stretch before to its first step: decoders' memory, images, prompts of those that begin.
    pub prefill_seconds: f64,
    /// From its first step to its last.
    pub decode_seconds: f64,
    /// Decode steps.
    pub steps: usize,
    /// Bytes that the loader read from the disk for the prefill; 0 without one.
    pub prefill_read_bytes: u64,
    /// The same for the decode steps.
    pub decode_read_bytes: u64,
}

/// A queue that was served.
#[derive(Debug, Clone)]
pub struct Served {
    /// The requests in their order.
    pub sequences: Vec<Sequence>,
    /// The waves in theirs.
    pub waves: Vec<Wave>,
    /// From the start to the last token of all.
    pub seconds: f64,
    /// What of caches and hidden states went to disk and came back; `None` where nothing of it waits there.
    pub traffic: Option<Traffic>,
    /// What became of the search for a number, where there was one.
    pub search: Option<Search>,
}

impl Served {
    /// The median over sequences of the time from the start of the queue to the first token.
    pub fn ttft_seconds(&self) -> f64 {
        let first: Vec<f64> = self.sequences.iter().map(|sequence| sequence.first_seconds).collect();
        median(&first)
    }

    /// Generated tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }

    /// Generated tokens a second, from the start to the last one.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens() as f64 / self.seconds
    }

    /// Tokens a second of decode steps alone; `None` where there were none.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        let seconds: f64 = self.waves.iter().map(|wave| wave.decode_seconds).sum();
        let tokens: usize = self.waves.iter().map(|wave| wave.size * wave.steps).sum();
        (tokens > 0).then(|| tokens as f64 / seconds)
    }

    /// Bytes that the loader read from the disk, prefill and decode together.
    pub fn read_bytes(&self) -> u64 {
        self.waves.iter().map(|wave| wave.prefill_read_bytes + wave.decode_read_bytes).sum()
    }
}

/// Serves queues one after the other; the last decoder is kept for sequences of its number.
#[derive(Debug)]
pub struct Server {
    waves: Waves,
    kept: Option<Kept>,
}

impl Server {
    /// A server that has seen nothing yet.
    pub fn new(waves: &Waves) -> Self {
        Self { waves: waves.clone(), kept: None }
    }

    /// Generates exactly `generate` tokens after each prompt, each the most likely one; stop tokens are ignored.
    ///
    /// # Errors
    /// No prompts, or empty ones; no tokens to generate; prompts beyond the context; a failed run; logits that are not
    /// finite.
    pub fn serve(&mut self, model: &mut Model, prompts: &[Prompt], generate: usize, feed: &mut Feed) -> Result<Served> {
        let start = Instant::now();
        let nothing = Sequence { tokens: Vec::with_capacity(generate), first_seconds: 0.0, last_seconds: 0.0 };
        let mut sequences = vec![nothing; prompts.len()];
        let mut served = self.run(model, prompts, generate, start, &mut |rows, decoder| {
            let chosen: Vec<u32> = decoder.logits().rows().into_iter().map(argmax).collect::<Result<_>>()?;
            let now = start.elapsed().as_secs_f64();
            let fed = rows.iter().zip(chosen).map(|(row, token)| {
                let sequence = &mut sequences[row.sequence];
                sequence.tokens.push(token);
                sequence.last_seconds = now;
                if row.tokens == 1 {
                    sequence.first_seconds = now;
                }
                feed(row.sequence, row.tokens - 1, token)
            });
            Ok(fed.collect())
        })?;
        served.sequences = sequences;
        Ok(served)
    }

    /// The same way with what is fed given; `look` gets the logits after each prompt (0 tokens fed) and after each token.
    ///
    /// # Errors
    /// As [`Server::serve`], and what `look` returns; another number of lists than of prompts, lists of unequal lengths.
    pub fn forced(
        &mut self,
        model: &mut Model,
        prompts: &[Prompt],
        forced: &[Vec<u32>],
        look: &mut Look,
    ) -> Result<Served> {
        let steps = forced.first().map_or(0, Vec::len);
        if forced.len() != prompts.len() || forced.iter().any(|tokens| tokens.len() != steps) {
            return Err(Error::new(format!(
                "{} lists of tokens to feed after {} prompts, which must be one each, all of the same length",
                forced.len(),
                prompts.len()
            )));
        }
        self.run(model, prompts, steps + 1, Instant::now(), &mut |rows, decoder| {
            let logits = decoder.logits();
            for (row, logits) in rows.iter().zip(logits.rows()) {
                let logits = logits.to_slice().ok_or_else(|| Error::new("logits do not lie in order"))?;
                look(row.sequence, row.tokens - 1, logits)?;
            }
            // Nothing is fed after the last look.
            Ok(rows.iter().map(|row| forced[row.sequence].get(row.tokens - 1).copied().unwrap_or(0)).collect())
        })
    }

    fn run(
        &mut self,
        model: &mut Model,
        prompts: &[Prompt],
        generate: usize,
        start: Instant,
        each: &mut Each,
    ) -> Result<Served> {
        if prompts.is_empty() || generate == 0 {
            return Err(Error::new("a queue needs at least one request of at least one new token"));
        }
        let capacity = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0) + generate;
        let mut pace = match &self.waves {
            Waves::Together => Pace::Fixed(prompts.len()),
            Waves::Fixed(size) => Pace::Fixed((*size).max(1) as usize),
            Waves::Adaptive(objective) => {
                // What is found of memory must not be what was there before.
                self.kept = None;
                let held = held::resident_bytes()?;
                let tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
                let work = (generate - 1, tokens as f64 / prompts.len() as f64);
                let controller = Controller::new(objective, work, model.sequence_bytes(capacity), held);
                Pace::Found(Box::new(controller))
            }
        };
        let mut live = Live { model, prompts, capacity, start, each, kept: self.kept.take(), traffic: None };
        let waves = run(&mut live, &mut pace, prompts.len(), generate)?;
        let (seconds, traffic) = (start.elapsed().as_secs_f64(), live.traffic);
        self.kept = live.kept;
        Ok(Served { sequences: Vec::new(), waves, seconds, traffic, search: pace.search() })
    }
}
