//! Which tokens of a larger vocabulary a package kept: `kept_tokens.json`, of packages whose vocabulary was trimmed.

use std::fs;

use serde::{Deserialize, Serialize};

use super::Package;
use crate::error::{Context, Error, Result};

/// The file's name.
pub const KEPT_TOKENS: &str = "kept_tokens.json";

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptTokens {
    /// Tokens of the model that the package was made of.
    pub vocab_size: u64,
    /// Of each token, its id there; they ascend.
    pub old_ids: Vec<u32>,
}

impl Package {
    /// The map of a trimmed vocabulary; `None` where the package has all tokens that it was made with.
    ///
    /// # Errors
    /// A file that cannot be read or does not fit the vocabulary.
    pub fn kept_tokens(&self) -> Result<Option<KeptTokens>> {
        if !self.manifest.files.iter().any(|file| file.path == KEPT_TOKENS) {
            return Ok(None);
        }
        let path = self.root.join(KEPT_TOKENS);
        let failed = || format!("cannot use `{}`", path.display());
        let kept: KeptTokens = serde_json::from_slice(&fs::read(&path).with_context(failed)?).with_context(failed)?;
        let ascend = kept.old_ids.is_sorted_by(|a, b| a < b);
        let within = kept.old_ids.last().is_none_or(|&last| u64::from(last) < kept.vocab_size);
        if kept.old_ids.len() as u64 != self.manifest.shape.vocab_size || !ascend || !within {
            return Err(Error::new(failed())
                .because(std::io::Error::other("its ids are not those of the package's vocabulary"))
                .hint("the file was changed or damaged; trim the package again"));
        }
        Ok(Some(kept))
    }
}
