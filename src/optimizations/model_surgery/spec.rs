//! What is to be cut off, and how much of it can be.

use std::sync::Arc;

use super::experts::without_experts;
use crate::digest;
use crate::error::{Error, Result};
use crate::package::Manifest;

/// A number of things, or a share of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// The word for nothing to be done.
    Untouched,
    /// That many.
    Count(u64),
    /// That part, from 0 to 1.
    Share(f64),
}

impl Amount {
    /// `word`, a count, or a share as `25%`.
    pub fn parse(text: &str, word: &str) -> Option<Self> {
        if text == word {
            return Some(Self::Untouched);
        }
        let Some(percent) = text.strip_suffix('%') else { return text.parse().ok().map(Self::Count) };
        let percent: f64 = percent.trim_end().parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some(Self::Share(percent / 100.0))
    }

    /// How many of so many, a share rounded down.
    fn of(self, whole: u64) -> Option<u64> {
        match self {
            Self::Untouched => None,
            Self::Count(count) => Some(count),
            // A third of three is one, although thirds are not exact.
            Self::Share(share) => Some((share * whole as f64 + 1e-9) as u64),
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untouched => f.write_str("untouched"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

/// Texts and where they came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Texts {
    /// In words.
    pub source: String,
    /// The texts.
    pub texts: Arc<Vec<String>>,
}

impl Texts {
    /// First digits of the SHA-256 over all of them.
    fn hash(&self) -> String {
        let lengths: Vec<usize> = self.texts.iter().map(String::len).collect();
        digest::sha256(format!("{lengths:?}{}", self.texts.concat()))[..16].to_owned()
    }
}

/// What a surgery does. Every operation that is asked for is one edit with the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Layers that leave, the least important ones.
    pub drop_layers: Amount,
    /// Whether the first and the last layer stay.
    pub protect_ends: bool,
    /// Experts that stay in each layer, the most used ones.
    pub keep_experts: Amount,
    /// The texts whose tokens stay; `None` keeps the vocabulary.
    pub vocabulary: Option<Texts>,
    /// Whether the head computes the logits of chosen positions only.
    pub last_logits: bool,
    /// Tokens of the calibration, at most.
    pub calibration_tokens: u32,
    /// Their text; random tokens where there is none.
    pub calibration: Option<Texts>,
}

impl Spec {
    /// Everything that decides what becomes of a package.
    pub fn describe(&self) -> String {
        let texts = |texts: &Option<Texts>, none: &str| texts.as_ref().map_or(none.to_owned(), Texts::hash);
        format!(
            "drop_layers={} protect_ends={} keep_experts={} vocabulary={} last_logits={} calibration={}x{}",
            self.drop_layers,
            self.protect_ends,
            self.keep_experts,
            texts(&self.vocabulary, "untouched"),
            self.last_logits,
            self.calibration_tokens,
            texts(&self.calibration, "random"),
        )
    }

    /// Whether a package with this manifest can be operated on so.
    ///
    /// # Errors
    /// What the model lacks (`unsupported`), and a surgery that would remove everything, with the most that can go.
    pub fn check(&self, manifest: &Manifest) -> Result<()> {
        if manifest.pack.is_some() {
            return Err(Error::unsupported("the package is a pack, whose graph has no weights")
                .hint("operate on the package that it was made of, and pack the result"));
        }
        self.layers(manifest)?;
        self.experts(manifest)?;
        if self.vocabulary.is_some() && manifest.tokenizer.is_none() {
            return Err(Error::unsupported("the package has no tokenizer whose vocabulary could be trimmed")
                .hint("export it from a checkpoint that has a tokenizer.json"));
        }
        Ok(())
    }

    /// How many layers leave.
    ///
    /// # Errors
    /// More than can.
    pub fn layers(&self, manifest: &Manifest) -> Result<usize> {
        let layers = manifest.shape.layers;
        let wanted = self.drop_layers.of(layers).unwrap_or(0);
        let (free, who) = match self.protect_ends {
            true => (layers.saturating_sub(2), " (the first and the last one are protected)"),
            false => (layers.saturating_sub(1), ""),
        };
        if wanted > free {
            let whole = if wanted >= layers { "would leave none" } else { "is more than can go" };
            return Err(Error::unsupported(format!(
                "dropping {wanted} of the model's {layers} layers {whole}: at most {free} can go{who}"
            ))
            .hint("drop fewer layers"));
        }
        Ok(wanted as usize)
    }

    /// How many experts stay in each layer; `None` where all do.
    ///
    /// # Errors
    /// A model without experts, fewer than a token is sent to, more than there are.
    pub fn experts(&self, manifest: &Manifest) -> Result<Option<usize>> {
        let shape = &manifest.shape;
        if self.keep_experts == Amount::Untouched {
            return Ok(None);
        }
        let Some(experts) = shape.experts else {
            return Err(without_experts(&manifest.model.id, &manifest.model.architecture));
        };
        let kept = self.keep_experts.of(experts).unwrap_or(experts);
        let least = shape.experts_per_token.unwrap_or(1).max(1);
        if kept > experts {
            return Err(Error::unsupported(format!("{kept} experts cannot stay: the model has {experts} in a layer"))
                .hint("keep fewer, or `all`"));
        }
        if kept < least {
            return Err(Error::unsupported(format!(
                "keeping {kept} of {experts} experts is too few: every token is sent to {least}, so at most {} can go",
                experts.saturating_sub(least)
            ))
            .hint("keep more experts"));
        }
        Ok(Some(kept as usize))
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        let untouched = [self.drop_layers, self.keep_experts].iter().all(|amount| *amount == Amount::Untouched);
        untouched && self.vocabulary.is_none() && !self.last_logits
    }
}
