//! The tokens that a calibration looks at.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::engine::sampling::random_tokens;
use crate::error::{Error, Result};
use crate::package::Package;

/// Tokens that go through the model together. Longer ones hold more hidden states at a time.
const LENGTH: usize = 256;
const SEED: u64 = 2403_03853;

/// Token ids, window by window.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    /// Each of at least one token.
    pub ids: Vec<Vec<u32>>,
    /// What they are, in words.
    pub source: String,
}

impl Windows {
    /// Uniform token ids, special ones left out.
    pub fn random(package: &Package, tokens: usize) -> Self {
        let vocabulary = package.manifest.shape.vocab_size.min(u64::from(u32::MAX)) as u32;
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let ids = random_tokens(&mut random, tokens, vocabulary, &package.special_tokens());
        Self::of(package, ids, "random tokens")
    }

    /// Tokens of texts, which follow each other in a drawn order: the first of many would speak for one task alone.
    ///
    /// # Errors
    /// A package without tokenizer, texts without tokens.
    pub fn of_texts(package: &Package, texts: &[String], tokens: usize, source: &str) -> Result<Self> {
        let tokenizer = package.tokenizer()?;
        let mut order: Vec<&String> = texts.iter().collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(SEED));
        let mut ids = Vec::new();
        for text in order {
            if ids.len() >= tokens {
                break;
            }
            let encoding = tokenizer.encode(text.as_str(), false);
            let encoding =
                encoding.map_err(|error| Error::new("cannot tokenize the calibration text").because(error))?;
            ids.extend(encoding.get_ids());
        }
        ids.truncate(tokens);
        if ids.is_empty() {
            return Err(Error::new("the calibration text has no tokens").hint("name a file with some text"));
        }
        Ok(Self::of(package, ids, source))
    }

    fn of(package: &Package, ids: Vec<u32>, source: &str) -> Self {
        let length = LENGTH.min(package.manifest.shape.context_length.max(1) as usize);
        Self { ids: ids.chunks(length).map(<[u32]>::to_vec).collect(), source: source.to_owned() }
    }

    /// How many there are.
    pub fn tokens(&self) -> u64 {
        self.ids.iter().map(|window| window.len() as u64).sum()
    }
}
