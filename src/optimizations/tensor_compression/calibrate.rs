//! What a model's caches hold, measured: it is run over tokens of two kinds, and its caches are read.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::engine::sampling::{Sampler, Sampling, random_tokens};
use crate::engine::{Decoder, Features, Model, Plan, Prompt};
use crate::error::Result;
use crate::optimizations::Workshop;
use crate::package::{Package, Port};

/// Sequences that are run together.
const ROWS: usize = 2;

/// Of prompts, and of the tokens that are drawn after them.
const SEED: u64 = 20_240_229;

/// A model that was run over so many tokens, with its caches.
#[derive(Debug)]
pub struct Calibration {
    decoder: Decoder,
    /// Tokens of a sequence.
    pub columns: usize,
}

impl Calibration {
    /// Runs a package over `tokens` tokens: half of each sequence are random ones, as prompts of benchmarks are, and half
    /// are the model's own, drawn at temperature 1, which are what it sees where it answers. No text is needed for that.
    ///
    /// # Errors
    /// A package that cannot be run here.
    pub fn run(package: &Package, workshop: &Workshop, tokens: usize) -> Result<Self> {
        let manifest = &package.manifest;
        let columns = (tokens / ROWS).clamp(2, manifest.shape.context_length.max(2) as usize);
        let plan = Plan { sequences: ROWS as u32, tokens: columns as u32, ..Plan::with_threads(workshop.threads) };
        let mut model = Model::load(workshop.runtime, package, workshop.backend, &plan)?;
        let mut decoder = Decoder::new(&model, ROWS, columns)?;
        let (mut random, exclude) = (ChaCha8Rng::seed_from_u64(SEED), package.special_tokens());
        let mut prompt = || random_tokens(&mut random, columns / 2, manifest.shape.vocab_size as u32, &exclude);
        let prompts: Vec<Prompt> = (0..ROWS).map(|_| Prompt::text(prompt())).collect();
        decoder.prefill(&mut model, &prompts, &Features::default())?;
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: SEED });
        for column in columns / 2..columns {
            workshop.report.progress("calibrate", column as u64, columns as u64)?;
            let chosen = (0..ROWS).map(|row| sampler.choose(decoder.logits().row(row)));
            decoder.step(&mut model, &chosen.collect::<Result<Vec<u32>>>()?)?;
        }
        Ok(Self { decoder, columns })
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        ROWS * self.columns
    }

    /// The values of a cache tensor: sequences, heads, tokens, channels.
    ///
    /// # Errors
    /// A tensor that is not one of the model's caches.
    pub fn values(&self, past: &Port) -> Result<Vec<f32>> {
        self.decoder.cached(&past.name)
    }
}
