//! The matrix file as written: types, and where each value stands. What the values mean is checked in `check`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Location, Spanned};

use super::accuracy::AccuracyEntry;
use super::axes::Axis;
use super::optimizations::OptimizationsEntry;
use super::power::PowerEntry;
use super::problem::Problem;
use crate::yaml;

/// The whole file.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub version: Spanned<u32>,
    pub name: Spanned<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "for the file's readers; the text is copied into the results")]
    pub description: Option<String>,
    pub models: Spanned<Vec<ModelEntry>>,
    pub backends: Spanned<Vec<BackendEntry>>,
    pub matrix: Spanned<AxesEntry>,
    pub categories: Option<Spanned<AxisEntry>>,
    pub accuracy: Option<Spanned<AccuracyEntry>>,
    pub accuracy_floor: Option<Spanned<String>>,
    pub power: Option<Spanned<PowerEntry>>,
    pub prompt: Option<PromptEntry>,
    pub measurement: Option<MeasurementEntry>,
    pub strict_placement: Option<bool>,
    pub offload_dir: Option<Spanned<String>>,
    pub derived_dir: Option<Spanned<String>>,
    #[serde(default)]
    pub exclude: Vec<Spanned<AxesEntry>>,
    #[serde(default)]
    pub include: Vec<Spanned<AxesEntry>>,
    #[serde(default)]
    pub overrides: Vec<Spanned<OverrideEntry>>,
}

impl File {
    /// Whether cells may switch optimizations on.
    pub fn names_optimizations(&self) -> bool {
        let axes = std::iter::once(&self.matrix.value).chain(self.include.iter().map(|rule| &rule.value));
        axes.into_iter().any(|axes| axes.optimizations.is_some())
    }
}

/// One of `models`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    pub name: Spanned<String>,
    pub kind: Option<Spanned<String>>,
    /// Of a language model.
    pub package: Option<Spanned<String>>,
    /// Of a graph.
    pub path: Option<Spanned<String>>,
    /// What a graph is fed.
    pub inputs: Option<Spanned<Named<InputEntry>>>,
    /// What a graph's outputs are held against.
    pub outputs: Option<Spanned<Named<OutputEntry>>>,
    /// Items of a graph's run: a number, or the name of a free dimension.
    pub items: Option<Spanned<String>>,
    /// What it was exported from, where models of several names have one.
    pub checkpoint: Option<Spanned<String>>,
    pub precision: Option<Spanned<String>>,
    pub flavour: Option<Spanned<String>>,
}

/// An input of a graph.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputEntry {
    pub shape: Option<Spanned<Vec<Spanned<String>>>>,
    pub fill: Option<Spanned<String>>,
    pub array: Option<Spanned<String>>,
    pub text: Option<Spanned<String>>,
    pub low: Option<Spanned<f64>>,
    pub high: Option<Spanned<f64>>,
    pub seed: Option<Spanned<u64>>,
}

/// An output of a graph.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputEntry {
    pub rtol: Option<Spanned<f64>>,
    pub atol: Option<Spanned<f64>>,
    pub expected: Option<Spanned<String>>,
    pub array: Option<Spanned<String>>,
}

/// Keys of the writer's own choice, in the order written, with their places.
#[derive(Debug)]
pub struct Named<T>(pub Vec<(Spanned<String>, Spanned<T>)>);

/// `dimensions`: a mapping of sizes or a list of such.
#[derive(Debug)]
pub enum DimensionsEntry {
    One(Named<i128>),
    Many(Vec<Spanned<Named<i128>>>),
}

/// One of `backends`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendEntry {
    pub name: Spanned<String>,
    pub runtime: Spanned<RuntimeEntry>,
    pub provider: Spanned<ProviderEntry>,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// A name, or `{path: …}`.
#[derive(Debug)]
pub enum RuntimeEntry {
    Name(String),
    Path(String),
}

/// A word, or `{plugin: …, name: …}`.
#[derive(Debug)]
pub enum ProviderEntry {
    Word(String),
    Plugin { library: String, name: String },
}

/// The axes, in `matrix` and in the rules.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AxesEntry {
    pub model: Option<Spanned<AxisEntry>>,
    pub backend: Option<Spanned<AxisEntry>>,
    pub precision: Option<Spanned<AxisEntry>>,
    pub flavour: Option<Spanned<AxisEntry>>,
    pub threads: Option<Spanned<AxisEntry>>,
    pub residency: Option<Spanned<AxisEntry>>,
    pub memory_budget: Option<Spanned<AxisEntry>>,
    pub memory_limit: Option<Spanned<AxisEntry>>,
    pub micro_batch: Option<Spanned<AxisEntry>>,
    pub offload: Option<Spanned<AxisEntry>>,
    pub guess: Option<Spanned<AxisEntry>>,
    pub optimizations: Option<Spanned<OptimizationsEntry>>,
    pub dimensions: Option<Spanned<DimensionsEntry>>,
    pub batch: Option<Spanned<AxisEntry>>,
    pub image: Option<Spanned<AxisEntry>>,
    pub prompt_tokens: Option<Spanned<AxisEntry>>,
    pub generate_tokens: Option<Spanned<AxisEntry>>,
    /// Of an `exclude` rule.
    pub reason: Option<Spanned<String>>,
}

impl AxesEntry {
    /// Where an axis is written, if it is.
    pub fn place(&self, axis: Axis) -> Option<Location> {
        match axis {
            Axis::Dimensions => self.dimensions.as_ref().map(|written| written.referenced),
            Axis::Optimizations => self.optimizations.as_ref().map(|written| written.referenced),
            axis => self.on(axis).map(|written| written.referenced),
        }
    }

    /// What is written for an axis of words or numbers.
    pub fn on(&self, axis: Axis) -> Option<&Spanned<AxisEntry>> {
        match axis {
            Axis::Model => &self.model,
            Axis::Precision => &self.precision,
            Axis::Flavour => &self.flavour,
            Axis::Threads => &self.threads,
            Axis::Residency => &self.residency,
            Axis::MemoryBudget => &self.memory_budget,
            Axis::MemoryLimit => &self.memory_limit,
            Axis::MicroBatch => &self.micro_batch,
            Axis::Offload => &self.offload,
            Axis::Guess => &self.guess,
            Axis::Dimensions | Axis::Optimizations => &None,
            Axis::Batch => &self.batch,
            Axis::Image => &self.image,
            Axis::PromptTokens => &self.prompt_tokens,
            Axis::GenerateTokens => &self.generate_tokens,
            Axis::Backend => &self.backend,
        }
        .as_ref()
    }
}

/// One of `overrides`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverrideEntry {
    pub when: AxesEntry,
    pub set: SetEntry,
}

/// What an override sets.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetEntry {
    pub warmup: Option<Spanned<u32>>,
    pub repetitions: Option<Spanned<u32>>,
    pub min_seconds: Option<Spanned<f64>>,
    pub processes: Option<Spanned<u32>>,
    pub timeout_seconds: Option<Spanned<f64>>,
    pub categories: Option<Spanned<AxisEntry>>,
    pub strict_placement: Option<bool>,
}

/// `measurement`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasurementEntry {
    pub profile: Option<Spanned<String>>,
    pub warmup: Option<Spanned<u32>>,
    pub repetitions: Option<Spanned<u32>>,
    pub min_seconds: Option<Spanned<f64>>,
    pub processes: Option<Spanned<u32>>,
    pub timeout_seconds: Option<Spanned<f64>>,
}

/// `prompt`: one of two.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptEntry {
    pub random_tokens: Option<Spanned<RandomTokens>>,
    pub text_file: Option<Spanned<String>>,
}

/// Random ids.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomTokens {
    #[serde(default)]
    pub seed: u64,
}

/// A value or a list of values, as text: what a value means depends on the axis. Elements of a list keep their
/// spelling; a lone value that YAML takes for a number or a truth value is spelled as YAML understood it.
#[derive(Debug)]
pub enum AxisEntry {
    One(String),
    Many(Vec<Spanned<String>>),
}

impl<'de> Deserialize<'de> for AxisEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AxisVisitor;

        impl<'de> Visitor<'de> for AxisVisitor {
            type Value = AxisEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value or a list of values")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<AxisEntry, E> {
                Ok(AxisEntry::One(value.to_owned()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<AxisEntry, E> {
                Ok(AxisEntry::One(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<AxisEntry, E> {
                Ok(AxisEntry::One(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<AxisEntry, E> {
                Ok(AxisEntry::One(value.to_string()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<AxisEntry, E> {
                Ok(AxisEntry::One(value.to_string()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AxisEntry, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(AxisEntry::Many(values))
            }
        }

        deserializer.deserialize_any(AxisVisitor)
    }
}

impl<'de> Deserialize<'de> for RuntimeEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct ByPath {
            path: String,
        }
        struct RuntimeVisitor;

        impl<'de> Visitor<'de> for RuntimeVisitor {
            type Value = RuntimeEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of an installed runtime or `{path: FILE}`")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<RuntimeEntry, E> {
                Ok(RuntimeEntry::Name(value.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RuntimeEntry, A::Error> {
                ByPath::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|entry| RuntimeEntry::Path(entry.path))
            }
        }

        deserializer.deserialize_any(RuntimeVisitor)
    }
}

impl<'de> Deserialize<'de> for ProviderEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct ByPlugin {
            plugin: String,
            name: String,
        }
        struct ProviderVisitor;

        impl<'de> Visitor<'de> for ProviderVisitor {
            type Value = ProviderEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a provider or `{plugin: LIBRARY, name: PROVIDER}`")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<ProviderEntry, E> {
                Ok(ProviderEntry::Word(value.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<ProviderEntry, A::Error> {
                ByPlugin::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|entry| ProviderEntry::Plugin { library: entry.plugin, name: entry.name })
            }
        }

        deserializer.deserialize_any(ProviderVisitor)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NamedVisitor(PhantomData))
    }
}

struct NamedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NamedVisitor<T> {
    type Value = Named<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("names with what belongs to them")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Named(entries))
    }
}

impl<'de> Deserialize<'de> for DimensionsEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DimensionsVisitor;

        impl<'de> Visitor<'de> for DimensionsVisitor {
            type Value = DimensionsEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("names of free dimensions with their sizes, as `{batch: 8}`, or a list of such")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DimensionsEntry, A::Error> {
                NamedVisitor(PhantomData).visit_map(map).map(DimensionsEntry::One)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<DimensionsEntry, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(DimensionsEntry::Many(values))
            }
        }

        deserializer.deserialize_any(DimensionsVisitor)
    }
}

/// Reads the text into [`File`].
pub fn parse(text: &str) -> Result<File, Problem> {
    if text.trim().is_empty() {
        return Err(Problem::whole(
            "it is empty; it needs at least `version`, `name`, `models`, `backends` and `matrix`",
        ));
    }
    yaml::read(text)
}
