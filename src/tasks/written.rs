//! A task's description as written: types, and where each value stands. What the values mean is checked in `check`.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_yaml::{Location, Spanned};

use super::Kind;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    pub version: Spanned<u32>,
    pub name: Spanned<String>,
    pub description: Option<String>,
    pub kind: Spanned<String>,
    pub data: Option<Spanned<String>>,
    pub id: Option<Spanned<String>>,
    pub context: Option<Spanned<String>>,
    pub contexts: Option<Spanned<String>>,
    pub continuation: Option<Spanned<String>>,
    pub choices: Option<Spanned<String>>,
    pub delimiter: Option<Spanned<String>>,
    pub answer: Option<Spanned<String>>,
    pub text: Option<Spanned<String>>,
    pub original: Option<Spanned<String>>,
    pub until: Option<Spanned<Vec<String>>>,
    pub max_tokens: Option<Spanned<u32>>,
    pub extract: Option<Spanned<Vec<Spanned<StepEntry>>>>,
    pub normalize: Option<Spanned<NormalizeEntry>>,
    pub metric: Option<Spanned<String>>,
    pub program: Option<Spanned<String>>,
    pub file: Option<Spanned<String>>,
    pub command: Option<Spanned<Vec<String>>>,
    pub seconds: Option<Spanned<f64>>,
    pub memory_mib: Option<Spanned<u32>>,
    pub images: Option<Spanned<String>>,
    pub preamble: Option<Spanned<String>>,
    pub fewshot: Option<Spanned<FewshotOrCount>>,
    pub chat: Option<Spanned<bool>>,
    pub system: Option<Spanned<String>>,
}

/// One step of `extract`: exactly one of the three.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepEntry {
    pub regex: Option<Spanned<String>>,
    pub take: Option<Spanned<String>>,
    pub remove: Option<Spanned<String>>,
    pub lowercase: Option<Spanned<bool>>,
}

/// `normalize`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormalizeEntry {
    pub ignore_case: Option<bool>,
    pub ignore_punctuation: Option<bool>,
    pub strip: Option<bool>,
    #[serde(default)]
    pub remove: Vec<Spanned<String>>,
}

/// `fewshot`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewshotEntry {
    pub count: Option<Spanned<u32>>,
    pub data: Option<Spanned<String>>,
    pub separator: Option<Spanned<String>>,
    pub sampler: Option<Spanned<String>>,
    pub turns: Option<bool>,
    pub like: Option<Spanned<String>>,
}

/// `fewshot`, or the count that a matrix file has in its place.
#[derive(Debug)]
pub enum FewshotOrCount {
    Entry(Box<FewshotEntry>),
    Count(u64),
}

impl<'de> Deserialize<'de> for FewshotOrCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FewshotVisitor;

        impl<'de> Visitor<'de> for FewshotVisitor {
            type Value = FewshotOrCount;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("`{count: COUNT, …}`")
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> Result<FewshotOrCount, E> {
                Ok(FewshotOrCount::Count(count))
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<FewshotOrCount, E> {
                Ok(FewshotOrCount::Count(count.try_into().unwrap_or(0)))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<FewshotOrCount, A::Error> {
                let entry = FewshotEntry::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(FewshotOrCount::Entry(Box::new(entry)))
            }
        }

        deserializer.deserialize_any(FewshotVisitor)
    }
}

const CHOICE: &[Kind] = &[Kind::Choice];
const GIVEN: &[Kind] = &[Kind::Choice, Kind::Continuation];
const PERPLEXITY: &[Kind] = &[Kind::Perplexity];
const GENERATION: &[Kind] = &[Kind::Generation];
const CODE: &[Kind] = &[Kind::Code];
const WRITING: &[Kind] = &[Kind::Generation, Kind::Code];
const ANSWERED: &[Kind] = &[Kind::Choice, Kind::Generation, Kind::Code];
const PROMPTED: &[Kind] = &[Kind::Choice, Kind::Continuation, Kind::Generation, Kind::Code];

impl Written {
    /// The keys that stand in the file and belong to some kinds only: place, name, those kinds.
    pub fn keys_of_kinds(&self) -> Vec<(Location, &'static str, &'static [Kind])> {
        fn at<T>(value: &Option<Spanned<T>>) -> Option<Location> {
            value.as_ref().map(|value| value.referenced)
        }
        [
            (at(&self.context), "context", PROMPTED),
            (at(&self.contexts), "contexts", CHOICE),
            (at(&self.continuation), "continuation", GIVEN),
            (at(&self.choices), "choices", CHOICE),
            (at(&self.delimiter), "delimiter", PROMPTED),
            (at(&self.answer), "answer", ANSWERED),
            (at(&self.text), "text", PERPLEXITY),
            (at(&self.original), "original", PERPLEXITY),
            (at(&self.until), "until", WRITING),
            (at(&self.max_tokens), "max_tokens", WRITING),
            (at(&self.extract), "extract", GENERATION),
            (at(&self.normalize), "normalize", GENERATION),
            (at(&self.metric), "metric", &[Kind::Choice, Kind::Continuation, Kind::Perplexity]),
            (at(&self.program), "program", CODE),
            (at(&self.file), "file", CODE),
            (at(&self.command), "command", CODE),
            (at(&self.seconds), "seconds", CODE),
            (at(&self.memory_mib), "memory_mib", CODE),
            (at(&self.images), "images", &[Kind::Choice, Kind::Generation]),
            (at(&self.preamble), "preamble", PROMPTED),
            (at(&self.fewshot), "fewshot", PROMPTED),
            (at(&self.chat), "chat", PROMPTED),
            (at(&self.system), "system", PROMPTED),
        ]
        .into_iter()
        .filter_map(|(place, name, kinds)| Some((place?, name, kinds)))
        .collect()
    }
}
