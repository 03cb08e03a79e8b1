//! The work of a language model's blocks: prefill of the cell's prompt, decode behind it.

use std::ops::RangeFrom;

use super::blocks::Work;
use crate::categories::Context;
use crate::categories::common::choose;
use crate::categories::feeding::{Feeding, Tokens, Turn};
use crate::cell::Cell;
use crate::engine::{Checkpoint, Decoder, Features, Model, Prompt};
use crate::error::Result;

/// Whether every run needs a prompt that the process has not seen: where weights are read while the model runs, the
/// same one again would find what it needs in memory. Where caches wait on disk, there is also no way back.
pub fn needs_fresh_prompts(cell: &Cell) -> bool {
    cell.memory.offload || !cell.holds_all_weights()
}

/// What both kinds of work need.
pub struct Parts<'a> {
    pub context: &'a Context<'a>,
    pub model: &'a mut Model,
    pub decoder: &'a mut Decoder,
    pub feeding: &'a mut Feeding,
    /// Numbers of the prompts to come.
    pub turns: &'a mut RangeFrom<u32>,
    /// As [`needs_fresh_prompts`] says.
    pub fresh: bool,
}

impl Parts<'_> {
    /// Another prompt, and the tokens that follow it.
    fn turn(&mut self) -> Result<(Vec<Prompt>, Features, Tokens)> {
        let turn = Turn::Measured(self.turns.next().unwrap_or(0));
        let (prompter, tokens) = self.feeding.turn(turn)?;
        let prompts = prompter.prompts()?;
        let features = self.model.see(&prompts)?;
        Ok((prompts, features, tokens))
    }

    fn batch(&self) -> u64 {
        u64::from(self.context.cell.workload.batch)
    }
}

/// Prefill, without tokenization and the vision tower.
pub struct Prefill<'a> {
    parts: Parts<'a>,
    prompts: Vec<Prompt>,
    features: Features,
}

impl<'a> Prefill<'a> {
    pub fn new(parts: Parts<'a>) -> Self {
        Self { parts, prompts: Vec::new(), features: Features::default() }
    }
}

impl Work for Prefill<'_> {
    fn prepare(&mut self) -> Result<()> {
        (self.prompts, self.features, _) = self.parts.turn()?;
        Ok(())
    }

    fn prepares_every_run(&self) -> bool {
        self.parts.fresh
    }

    fn run(&mut self) -> Result<u64> {
        let parts = &mut self.parts;
        parts.decoder.prefill(parts.model, &self.prompts, &self.features)?;
        Ok(parts.batch() * u64::from(parts.context.cell.workload.prompt_tokens))
    }
}

/// All decode steps behind a prompt, the choice of tokens among them.
pub struct Decode<'a> {
    parts: Parts<'a>,
    /// Where the prompt ends.
    checkpoint: Option<Checkpoint>,
    first: Vec<u32>,
    tokens: Tokens,
}

impl<'a> Decode<'a> {
    pub fn new(parts: Parts<'a>) -> Self {
        Self { parts, checkpoint: None, first: Vec::new(), tokens: Tokens::Chosen }
    }
}

impl Work for Decode<'_> {
    fn prepare(&mut self) -> Result<()> {
        let (prompts, features, tokens) = self.parts.turn()?;
        let parts = &mut self.parts;
        parts.decoder.prefill(parts.model, &prompts, &features)?;
        self.first = choose(parts.decoder)?;
        self.tokens = tokens;
        self.checkpoint = if parts.fresh { None } else { parts.decoder.checkpoint()? };
        Ok(())
    }

    fn prepares_every_run(&self) -> bool {
        self.parts.fresh
    }

    fn run(&mut self) -> Result<u64> {
        let parts = &mut self.parts;
        if let Some(checkpoint) = &self.checkpoint {
            parts.decoder.rewind(checkpoint)?;
        }
        let mut chosen = self.first.clone();
        let steps = u64::from(parts.context.cell.workload.generate_tokens.saturating_sub(1));
        for _ in 0..steps {
            parts.decoder.step(parts.model, &self.tokens.after(&mut chosen))?;
            chosen = choose(parts.decoder)?;
        }
        Ok(parts.batch() * steps)
    }
}
