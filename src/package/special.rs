//! The texts of a tokenizer's special tokens, from `tokenizer_config.json` as checkpoints carry it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Context, Result};

/// The file.
const FILE: &str = "tokenizer_config.json";

/// What a tokenizer itself calls the first and the last token of a text. They need not be those of the model's own
/// settings, which name ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTexts {
    /// Beginning of a text; many tokenizers have none.
    pub bos: Option<String>,
    /// End of a text, or of a turn.
    pub eos: Option<String>,
}

impl SpecialTexts {
    /// Reads the file of a package; one without it has none.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let failed = || format!("cannot read `{}`", path.display());
        let config: Value = serde_json::from_slice(&fs::read(&path).with_context(failed)?).with_context(failed)?;
        // A text, or an object that says how the tokenizer treats it.
        let text = |key: &str| {
            let token = config.get(key)?;
            token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
        };
        Ok(Self { bos: text("bos_token"), eos: text("eos_token") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(SpecialTexts::read(folder.path()).unwrap(), SpecialTexts::default());
        let write = |text: &str| fs::write(folder.path().join(FILE), text).unwrap();
        write(r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>"}"#);
        let found = SpecialTexts::read(folder.path()).unwrap();
        assert_eq!((found.bos.as_deref(), found.eos.as_deref()), (Some("<s>"), Some("</s>")));
        write(r#"{"bos_token": null}"#);
        assert_eq!(SpecialTexts::read(folder.path()).unwrap(), SpecialTexts::default());
        write("{");
        assert!(SpecialTexts::read(folder.path()).is_err());
    }
}
