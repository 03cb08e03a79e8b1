//! What a technique can be told, and what it was told.

use std::collections::BTreeMap;

use crate::cell::{MemoryAmount, Switched};
use crate::yaml::suggest;

/// An option of a technique.
#[derive(Debug, Clone, Copy)]
pub struct OptionSpec {
    /// Its key.
    pub name: &'static str,
    /// What may stand there.
    pub kind: OptionKind,
    /// What stands there when nothing is written.
    pub default: &'static str,
    /// What it says, in one sentence.
    pub description: &'static str,
}

/// What an option's value is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptionKind {
    /// One of these words.
    Words(&'static [&'static str]),
    /// A whole number from the first to the second.
    Count(u32, u32),
    /// The same, or this word.
    CountOr(&'static str, u32, u32),
    /// A share as `50%`.
    Share,
    /// A count, a share as `25%`, or this word.
    AmountOr(&'static str),
    /// A number above 0, or this word.
    NumberOr(&'static str),
    /// Any text: a path, a list.
    Text,
}

impl OptionKind {
    /// What may stand there, in words.
    pub fn describe(self) -> String {
        match self {
            Self::Words(words) => words.join(", "),
            Self::Count(low, high) => format!("{low} to {high}"),
            Self::CountOr(word, low, high) => format!("{word}, or {low} to {high}"),
            Self::Share => "a share as 50%".to_owned(),
            Self::AmountOr(word) => format!("{word}, a count, or a share as 25%"),
            Self::NumberOr(word) => format!("{word}, or a number above 0"),
            Self::Text => "a text".to_owned(),
        }
    }

    fn check(self, text: &str) -> Result<(), String> {
        let count = |low: u32, high: u32| text.parse::<u32>().is_ok_and(|value| (low..=high).contains(&value));
        let fits = match self {
            Self::Words(words) if !words.contains(&text) => {
                return Err(format!("{}{}", self.describe(), suggest(text, words)));
            }
            Self::Words(_) => true,
            Self::Count(low, high) => count(low, high),
            Self::CountOr(word, low, high) => text == word || count(low, high),
            Self::Share => share(text).is_some(),
            Self::AmountOr(word) => text == word || text.parse::<u32>().is_ok() || share(text).is_some(),
            Self::NumberOr(word) => {
                text == word || text.parse::<f64>().is_ok_and(|value| value.is_finite() && value > 0.0)
            }
            Self::Text => !text.is_empty(),
        };
        if fits { Ok(()) } else { Err(self.describe()) }
    }
}

/// A share as `50%`, up to the whole.
fn share(text: &str) -> Option<f64> {
    match text.parse::<MemoryAmount>() {
        Ok(MemoryAmount::Hundredths(count)) if count <= 10_000 => Some(f64::from(count) / 10_000.0),
        _ => None,
    }
}

/// The values of a technique's options, defaults among them.
#[derive(Debug, Clone)]
pub struct Options(BTreeMap<&'static str, String>);

impl Options {
    /// The options of a technique that was switched on.
    ///
    /// # Errors
    /// An unknown key, or a value that is none of its option's.
    pub fn of(specs: &'static [OptionSpec], switched: &Switched) -> Result<Self, String> {
        let technique = switched.technique;
        let names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
        for (name, value) in &switched.options {
            let Some(spec) = specs.iter().find(|spec| spec.name == name) else {
                let known = if names.is_empty() { " (it has none)".to_owned() } else { suggest(name, &names) };
                return Err(format!("`{technique}` has no option `{name}`{known}"));
            };
            spec.kind
                .check(value)
                .map_err(|allowed| format!("`{name}` of `{technique}` is `{value}`; it is one of: {allowed}"))?;
        }
        let value = |spec: &OptionSpec| switched.options.get(spec.name).map_or(spec.default, String::as_str).to_owned();
        Ok(Self(specs.iter().map(|spec| (spec.name, value(spec))).collect()))
    }

    /// The value as written.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// True where the value is this word.
    pub fn is(&self, name: &str, word: &str) -> bool {
        self.text(name) == word
    }

    /// A count; `None` where a word stands there.
    pub fn count(&self, name: &str) -> Option<u32> {
        self.text(name).parse().ok()
    }

    /// A number; `None` where a word stands there.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.text(name).parse().ok()
    }

    /// A share from 0 to 1.
    pub fn share(&self, name: &str) -> Option<f64> {
        share(self.text(name))
    }
}
