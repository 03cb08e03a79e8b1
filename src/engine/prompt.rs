//! Prompts of an exact number of tokens.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cell::PromptSource;
use crate::engine::sampling::random_tokens;
use crate::error::{Context, Error, Result};
use crate::package::Package;

/// Gives a batch of prompts, each of exactly the same number of tokens.
///
/// Random prompts differ from row to row. A text is tokenized and cut; one that is too short is repeated; each row
/// starts a little later in it, so that rows differ.
#[derive(Debug)]
pub struct Prompter {
    kind: Kind,
    batch: usize,
    tokens: usize,
}

#[derive(Debug)]
enum Kind {
    Ids(Vec<Vec<u32>>),
    Text { text: String, tokenizer: Box<tokenizers::Tokenizer> },
}

/// Tokens by which a row starts later in the text than the one before it.
const STRIDE: usize = 17;

impl Prompter {
    /// Draws the ids, or reads the text and the package's tokenizer.
    ///
    /// # Errors
    /// A text that cannot be read, a package without tokenizer.
    pub fn open(package: &Package, source: &PromptSource, batch: usize, tokens: usize) -> Result<Self> {
        let manifest = &package.manifest;
        let kind = match source {
            PromptSource::RandomTokens { seed } => {
                let mut random = ChaCha8Rng::seed_from_u64(*seed);
                let mut exclude = manifest.tokens.eos.clone();
                exclude.extend(manifest.tokens.pad);
                exclude.extend(manifest.tokens.bos);
                let vocab = manifest.shape.vocab_size as u32;
                Kind::Ids((0..batch).map(|_| random_tokens(&mut random, tokens, vocab, &exclude)).collect())
            }
            PromptSource::TextFile { path } => Kind::Text {
                text: std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the prompt `{}`", path.display()))?,
                tokenizer: Box::new(package.tokenizer()?),
            },
        };
        Ok(Self { kind, batch, tokens })
    }

    /// The prompts; a text is tokenized on every call.
    ///
    /// # Errors
    /// A text that has no tokens.
    pub fn ids(&self) -> Result<Vec<Vec<u32>>> {
        match &self.kind {
            Kind::Ids(ids) => Ok(ids.clone()),
            Kind::Text { text, tokenizer } => {
                let encoding = tokenizer
                    .encode(text.as_str(), false)
                    .map_err(|error| Error::new("cannot tokenize the prompt").because(error))?;
                let ids = encoding.get_ids();
                if ids.is_empty() {
                    return Err(Error::new("the prompt's text has no tokens"));
                }
                let row = |row: usize| ids.iter().cycle().skip(row * STRIDE % ids.len()).take(self.tokens).copied();
                Ok((0..self.batch).map(|number| row(number).collect()).collect())
            }
        }
    }
}
