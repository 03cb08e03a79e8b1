//! What a model is fed while it is measured: prompts that change from run to run, and tokens that it chose or that are
//! drawn.
//!
//! Random weights answer in loops, which route to the same experts again and again: a cache of experts would look
//! better than any text lets it be. Such a model is fed drawn tokens, and what it would have chosen is still computed.

use std::mem;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cell::{PromptSource, Workload};
use crate::engine::Prompter;
use crate::engine::sampling::random_tokens;
use crate::error::Result;
use crate::package::{Package, Weights};
use crate::protocol::Reporter;

/// Which of a process's runs a prompt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The first, cold run (0), and the warm-up runs after it.
    Unmeasured(u32),
    /// A measured repetition.
    Measured(u32),
}

/// Prompts and tokens of a cell.
pub struct Feeding {
    package: Package,
    workload: Workload,
    prompter: Prompter,
    /// The seed of the prompts, where each turn has its own.
    rotating: Option<u64>,
    /// The seed of tokens that are drawn.
    drawn: Option<u64>,
}

/// Gives the tokens of one turn.
pub enum Tokens {
    /// Those that were chosen.
    Chosen,
    /// Those of a generator.
    Drawn {
        /// The generator.
        random: Box<ChaCha8Rng>,
        /// Ids are below it.
        vocab: u32,
        /// Ids that are not drawn.
        exclude: Vec<u32>,
    },
}

impl Feeding {
    /// Prompts rotate where they are random and weights are read from a disk, or are random themselves.
    ///
    /// # Errors
    /// As [`Prompter::open`].
    pub fn of(package: Package, workload: &Workload) -> Result<Self> {
        let prompter = Prompter::open(&package, workload)?;
        let random = package.manifest.model.weights == Weights::Random;
        let seed = match workload.prompt {
            PromptSource::RandomTokens { seed } => Some(seed),
            PromptSource::TextFile { .. } => None,
        };
        let rotating = seed.filter(|_| random || package.manifest.pack.is_some());
        let drawn = random.then_some(seed.unwrap_or(0));
        Ok(Self { package, workload: workload.clone(), prompter, rotating, drawn })
    }

    /// Says how the cell is fed.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn report(&self, report: &Reporter) -> Result<()> {
        report.fact("prompt_repetition", if self.rotating.is_some() { "rotating" } else { "identical" })?;
        report.fact("fed_tokens", if self.drawn.is_some() { "drawn" } else { "greedy" })
    }

    /// The prompts and the tokens of a turn.
    ///
    /// # Errors
    /// As [`Prompter::open`].
    pub fn turn(&mut self, turn: Turn) -> Result<(&Prompter, Tokens)> {
        if let Some(seed) = self.rotating {
            let prompt = PromptSource::RandomTokens { seed: turn.seed(seed) };
            let workload = Workload { prompt, ..self.workload.clone() };
            self.prompter = Prompter::open(&self.package, &workload)?;
        }
        let tokens = match self.drawn {
            None => Tokens::Chosen,
            Some(seed) => Tokens::drawn(
                turn.seed(seed),
                self.package.manifest.shape.vocab_size as u32,
                self.package.special_tokens(),
            ),
        };
        Ok((&self.prompter, tokens))
    }

    /// The package.
    pub fn package(&self) -> &Package {
        &self.package
    }
}

impl Turn {
    /// The workload's own seed for the first measured turn, and others for the others.
    fn seed(self, seed: u64) -> u64 {
        match self {
            Self::Unmeasured(number) => seed.wrapping_sub(1 + u64::from(number)),
            Self::Measured(number) => seed.wrapping_add(u64::from(number)),
        }
    }
}

impl Tokens {
    /// Another stream than that of the prompts, which have the same seeds.
    fn drawn(seed: u64, vocab: u32, exclude: Vec<u32>) -> Self {
        let mut random = Box::new(ChaCha8Rng::seed_from_u64(seed));
        random.set_stream(1);
        Self::Drawn { random, vocab, exclude }
    }

    /// What is fed where these tokens were chosen, one a row.
    pub fn after(&mut self, chosen: &mut Vec<u32>) -> Vec<u32> {
        match self {
            Self::Chosen => mem::take(chosen),
            Self::Drawn { random, vocab, exclude } => random_tokens(random, chosen.len(), *vocab, exclude),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_turn_has_its_own_seed() {
        let turns = [Turn::Unmeasured(0), Turn::Unmeasured(1), Turn::Measured(0), Turn::Measured(1)];
        assert_eq!(turns.map(|turn| turn.seed(7)), [6, 5, 7, 8]);
        assert_eq!(Turn::Unmeasured(0).seed(0), u64::MAX);
    }

    #[test]
    fn tokens_are_those_chosen_or_those_of_the_seed() {
        assert_eq!(Tokens::Chosen.after(&mut vec![3, 4]), [3, 4]);
        let draw = |seed| {
            let mut tokens = Tokens::drawn(seed, 50, vec![0, 1]);
            (0..20).flat_map(|_| tokens.after(&mut vec![9, 9])).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|id| (2..50).contains(id)));
        let mut prompts = ChaCha8Rng::seed_from_u64(1);
        assert_ne!(draw(1), random_tokens(&mut prompts, 40, 50, &[0, 1]), "a prompt has the same seed");
    }
}
