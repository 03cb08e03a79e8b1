//! A queue of requests: how many of them go through the model together, and what each waited.
//!
//! All requests are there at the start. They are taken in their order, a wave of sequences after the other; a wave runs
//! to its last token before the next one begins.

use std::ops::Range;
use std::time::Instant;

use crate::engine::decoder::Decoder;
use crate::engine::model::Model;
use crate::engine::prompt::Prompt;
use crate::engine::sampling::argmax;
use crate::error::{Error, Result};
use crate::loader::spill::Traffic;
use crate::stats::Summary;

/// How many sequences of a queue go through the model together.
#[derive(Debug, Clone, PartialEq)]
pub enum Waves {
    /// All of them.
    Together,
    /// So many, and at the end what is left.
    Fixed(u32),
}

impl Waves {
    /// The most sequences that are in memory together, of so many.
    pub fn most(&self, sequences: u32) -> u32 {
        match self {
            Self::Together => sequences,
            Self::Fixed(size) => sequences.min((*size).max(1)),
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

/// Sequences that went through the model together.
#[derive(Debug, Clone, PartialEq)]
pub struct Wave {
    /// How many.
    pub size: usize,
    /// From the wave's start, its decoder's memory and its images among it, to the first tokens.
    pub prefill_seconds: f64,
    /// From the first tokens to the last.
    pub decode_seconds: f64,
    /// Decode steps: one less than the tokens of a sequence.
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
}

impl Served {
    /// The median over sequences of the time from the start of the queue to the first token.
    pub fn ttft_seconds(&self) -> f64 {
        let first: Vec<f64> = self.sequences.iter().map(|sequence| sequence.first_seconds).collect();
        Summary::of(&first).map_or(f64::NAN, |summary| summary.median)
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

/// Serves queues one after the other; the last decoder is kept for waves of its size.
#[derive(Debug)]
pub struct Server {
    waves: Waves,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    decoder: Decoder,
    size: usize,
    capacity: usize,
}

struct Queue<'a> {
    prompts: &'a [Prompt],
    generate: usize,
    /// Tokens of the longest sequence.
    capacity: usize,
}

/// What is done at each step of a wave: gets its sequences, the step, and the decoder with their logits; returns what is
/// fed next.
type Each<'a> = dyn FnMut(Range<usize>, usize, &Decoder) -> Result<Vec<u32>> + 'a;

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
        let mut served = self.run(model, prompts, generate, &mut |own, step, decoder| {
            let chosen: Vec<u32> = decoder.logits().rows().into_iter().map(argmax).collect::<Result<_>>()?;
            let now = start.elapsed().as_secs_f64();
            let fed = own.zip(chosen).map(|(number, token)| {
                let sequence = &mut sequences[number];
                sequence.tokens.push(token);
                sequence.last_seconds = now;
                if step == 0 {
                    sequence.first_seconds = now;
                }
                feed(number, step, token)
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
        self.run(model, prompts, steps + 1, &mut |own, step, decoder| {
            for (row, number) in own.clone().enumerate() {
                let logits = decoder.logits();
                let row = logits.row(row);
                look(number, step, row.as_slice().ok_or_else(|| Error::new("logits do not lie in order"))?)?;
            }
            // Nothing is fed after the last look.
            Ok(own.map(|number| forced[number].get(step).copied().unwrap_or(0)).collect())
        })
    }

    fn run(&mut self, model: &mut Model, prompts: &[Prompt], generate: usize, each: &mut Each) -> Result<Served> {
        let start = Instant::now();
        if prompts.is_empty() || generate == 0 {
            return Err(Error::new("a queue needs at least one request of at least one new token"));
        }
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        let queue = Queue { prompts, generate, capacity: longest + generate };
        let mut served = Served { sequences: Vec::new(), waves: Vec::new(), seconds: 0.0, traffic: None };
        let mut done = 0;
        while done < prompts.len() {
            let size = self.waves.most((prompts.len() - done) as u32) as usize;
            self.wave(model, &queue, done..done + size, each, &mut served)?;
            done += size;
        }
        served.seconds = start.elapsed().as_secs_f64();
        Ok(served)
    }

    fn wave(
        &mut self,
        model: &mut Model,
        queue: &Queue,
        own: Range<usize>,
        each: &mut Each,
        served: &mut Served,
    ) -> Result<()> {
        let start = Instant::now();
        let size = own.len();
        let decoder = self.decoder(model, size, queue.capacity)?;
        let (went_before, read_before) = (decoder.traffic(), read_bytes(model));
        let prompts = &queue.prompts[own.clone()];
        let features = model.see(prompts)?;
        decoder.prefill(model, prompts, &features)?;
        let mut fed = each(own.clone(), 0, decoder)?;
        let (first, read_between) = (Instant::now(), read_bytes(model));
        for step in 1..queue.generate {
            decoder.step(model, &fed)?;
            fed = each(own.clone(), step, decoder)?;
        }
        let last = Instant::now();
        if let (Some(was), Some(is)) = (went_before, decoder.traffic()) {
            let sum = served.traffic.get_or_insert_default();
            sum.written += is.written - was.written;
            sum.read += is.read - was.read;
        }
        served.waves.push(Wave {
            size,
            prefill_seconds: (first - start).as_secs_f64(),
            decode_seconds: (last - first).as_secs_f64(),
            steps: queue.generate - 1,
            prefill_read_bytes: read_between - read_before,
            decode_read_bytes: read_bytes(model) - read_between,
        });
        Ok(())
    }

    /// A decoder of that size: the last one, or a new one in its place.
    fn decoder(&mut self, model: &Model, size: usize, capacity: usize) -> Result<&mut Decoder> {
        if self.kept.as_ref().is_some_and(|kept| kept.size != size || kept.capacity < capacity) {
            // Before the next one is allocated: two need not fit at once.
            self.kept = None;
        }
        let kept = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let mut decoder = Decoder::new(model, size, capacity)?;
                decoder.touch_cache();
                Kept { decoder, size, capacity }
            }
        };
        Ok(&mut self.kept.insert(kept).decoder)
    }
}

/// Bytes that the loader has read since the model was loaded.
fn read_bytes(model: &Model) -> u64 {
    model.pager_statistics().map_or(0, |statistics| statistics.bytes_read)
}
