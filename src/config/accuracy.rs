//! `accuracy` and `accuracy_floor`: as written, and checked. What they mean for each cell is worked out in `plans`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_yaml::{Location, Spanned};

use super::axes::{Axes, Axis};
use super::check::Checker;
use super::file::{AxesEntry, AxisEntry, RandomTokens};
use super::paths;
use crate::cell::{Category, ModelKind, Scoring};

/// Largest values that make sense; anything above is a slip of the hand.
const MAX_ITEMS: u32 = 1 << 24;
const MAX_FEWSHOT: u32 = 1000;
const MAX_TOKENS: u32 = 1 << 24;
/// As in descriptions.
const MAX_ANSWER_TOKENS: u32 = 1 << 20;

/// `accuracy`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccuracyEntry {
    #[serde(default)]
    pub tasks: Vec<Spanned<TaskEntry>>,
    pub limit: Option<Spanned<u32>>,
    pub seed: Option<u64>,
    pub scoring: Option<Spanned<String>>,
    pub run_code: Option<bool>,
    pub reference: Option<Spanned<AxesEntry>>,
    pub fidelity: Option<Spanned<FidelityEntry>>,
}

/// One of `tasks`: a description alone, or with settings.
#[derive(Debug)]
pub enum TaskEntry {
    Description(String),
    Settings(Box<TaskSettings>),
}

/// A task with settings.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSettings {
    pub task: Spanned<String>,
    pub data: Option<Spanned<String>>,
    pub examples: Option<Spanned<String>>,
    pub name: Option<Spanned<String>>,
    pub limit: Option<Spanned<u32>>,
    pub fewshot: Option<Spanned<u32>>,
    pub chat: Option<bool>,
    pub max_length: Option<Spanned<u32>>,
    pub max_tokens: Option<Spanned<u32>>,
    pub when: Option<Spanned<AxesEntry>>,
}

/// `fidelity`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FidelityEntry {
    pub text: Option<Spanned<String>>,
    pub random_tokens: Option<Spanned<RandomTokens>>,
    pub tokens: Option<Spanned<u32>>,
    pub window: Option<Spanned<u32>>,
    pub context: Option<Spanned<u32>>,
    pub generations: Option<Spanned<u32>>,
    pub generate_tokens: Option<Spanned<u32>>,
}

impl<'de> Deserialize<'de> for TaskEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TaskVisitor;

        impl<'de> Visitor<'de> for TaskVisitor {
            type Value = TaskEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a task's description or `{task: DESCRIPTION, …}`")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<TaskEntry, E> {
                Ok(TaskEntry::Description(value.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TaskEntry, A::Error> {
                TaskSettings::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|settings| TaskEntry::Settings(Box::new(settings)))
            }
        }

        deserializer.deserialize_any(TaskVisitor)
    }
}

/// What is asked of every cell with the category, before a cell's own axes are filled in.
#[derive(Debug)]
pub struct Accuracy {
    pub tasks: Vec<Task>,
    pub seed: u64,
    pub scoring: Scoring,
    pub run_code: bool,
    pub reference: Option<Reference>,
    pub fidelity: Option<Fidelity>,
    pub floor: Option<f64>,
}

/// A text and its place in the file.
#[derive(Debug, Clone)]
pub struct Written {
    pub text: String,
    pub at: Location,
}

/// A task set.
#[derive(Debug)]
pub struct Task {
    /// A file, or the name of a ready description.
    pub description: Written,
    pub data: Option<Written>,
    pub examples: Option<Written>,
    pub name: Option<String>,
    pub limit: Option<u32>,
    pub fewshot: Option<u32>,
    pub chat: Option<bool>,
    pub max_length: Option<u32>,
    pub max_tokens: Option<u32>,
    pub when: Axes,
    pub at: Location,
}

/// Which cell is another's reference: one value on some axes.
#[derive(Debug)]
pub struct Reference {
    pub axes: Axes,
    pub at: Location,
}

/// The tokens that are compared with the reference.
#[derive(Debug)]
pub struct Fidelity {
    pub source: FidelitySource,
    pub tokens: u32,
    pub window: u32,
    pub context: u32,
    pub generations: u32,
    pub generate_tokens: u32,
}

/// Where they come from.
#[derive(Debug)]
pub enum FidelitySource {
    Text(Written),
    RandomTokens { seed: u64 },
}

impl Checker<'_> {
    /// Checks the section and the floor, whichever of them the file has.
    pub(super) fn accuracy(
        &mut self,
        entry: Option<&Spanned<AccuracyEntry>>,
        floor: Option<&Spanned<String>>,
    ) -> Option<Accuracy> {
        if let Some(floor) = floor.filter(|_| entry.is_none_or(|entry| entry.value.reference.is_none())) {
            self.problem(floor.referenced, "`accuracy_floor` needs the key `reference` in `accuracy`");
        }
        let without_tasks = entry.is_some_and(|entry| entry.value.tasks.is_empty());
        if let Some(floor) = floor.filter(|_| without_tasks) {
            self.problem(
                floor.referenced,
                "`accuracy_floor` is a share of tasks' scores, and `accuracy` has no `tasks`",
            );
        }
        let floor = floor.and_then(|floor| self.floor(floor));
        let Spanned { value: entry, referenced: at, .. } = entry?;
        let graphs = self.kinds.contains(&ModelKind::Graph) && entry.reference.is_some();
        if entry.tasks.is_empty() && entry.fidelity.is_none() && !graphs {
            self.problem(*at, "`accuracy` has neither `tasks` nor `fidelity`, so that nothing would be asked");
        }
        let limit = self.count(&entry.limit, "limit", 1, MAX_ITEMS);
        let scoring = entry.scoring.as_ref().and_then(|word| self.word(word, Scoring::NAMES));
        Some(Accuracy {
            tasks: entry.tasks.iter().map(|task| self.task(task, limit)).collect(),
            seed: entry.seed.unwrap_or(0),
            scoring: scoring.unwrap_or(Scoring::Batched),
            run_code: entry.run_code.unwrap_or(false),
            reference: entry.reference.as_ref().map(|axes| self.reference(axes)),
            fidelity: entry.fidelity.as_ref().map(|fidelity| self.fidelity(&fidelity.value, fidelity.referenced)),
            floor,
        })
    }

    /// The category needs the section: without it there is nothing to ask.
    pub(super) fn needs_accuracy(&mut self, categories: &Spanned<AxisEntry>) {
        let at = match &categories.value {
            AxisEntry::One(word) => (word == Category::Accuracy.name()).then_some(categories.referenced),
            AxisEntry::Many(words) => {
                words.iter().find(|word| word.value == Category::Accuracy.name()).map(|word| word.referenced)
            }
        };
        if let Some(at) = at {
            let message = "the category `accuracy` needs the section `accuracy` of the file, which names its tasks, a \
                           text for `fidelity` or, for graphs, a `reference`";
            self.problem(at, message);
        }
    }

    fn floor(&mut self, written: &Spanned<String>) -> Option<f64> {
        let words: Vec<_> = written.value.split_whitespace().collect();
        let share = match words[..] {
            [share, "of", "reference"] => share.parse().ok(),
            _ => None,
        };
        let share = share.filter(|share: &f64| *share > 0.0 && *share <= 1.0);
        if share.is_none() {
            let message = format!(
                "`accuracy_floor` is `{}`; write a share above 0 and up to 1 as `0.99 of reference`",
                written.value
            );
            self.problem(written.referenced, message);
        }
        share
    }

    fn task(&mut self, entry: &Spanned<TaskEntry>, limit: Option<u32>) -> Task {
        let at = entry.referenced;
        match &entry.value {
            TaskEntry::Description(text) => Task {
                description: self.written(text, at, "a task"),
                data: None,
                examples: None,
                name: None,
                limit,
                fewshot: None,
                chat: None,
                max_length: None,
                max_tokens: None,
                when: Axes::default(),
                at,
            },
            TaskEntry::Settings(settings) => {
                if let Some(name) = &settings.name {
                    self.name(name, "a task's name");
                }
                let (data, examples) = (settings.data.as_ref(), settings.examples.as_ref());
                let when = settings.when.as_ref();
                Task {
                    description: self.written(&settings.task.value, settings.task.referenced, "a task"),
                    data: data.map(|data| self.written(&data.value, data.referenced, "a task's data")),
                    examples: examples.map(|path| self.written(&path.value, path.referenced, "a task's examples")),
                    name: settings.name.as_ref().map(|name| name.value.clone()),
                    limit: self.count(&settings.limit, "limit", 1, MAX_ITEMS).or(limit),
                    fewshot: self.count(&settings.fewshot, "fewshot", 0, MAX_FEWSHOT),
                    chat: settings.chat,
                    max_length: self.count(&settings.max_length, "max_length", 1, MAX_TOKENS),
                    max_tokens: self.count(&settings.max_tokens, "max_tokens", 1, MAX_ANSWER_TOKENS),
                    when: when.map(|when| self.rule(&when.value, when.referenced, "tasks")).unwrap_or_default(),
                    at,
                }
            }
        }
    }

    fn reference(&mut self, entry: &Spanned<AxesEntry>) -> Reference {
        let axes = self.axes(&entry.value, "reference");
        if axes.names_nothing() {
            self.problem(entry.referenced, "`reference` names no axis");
        }
        for axis in Axis::ALL {
            if let Some(values) = axes.on(axis).filter(|values| values.len() > 1) {
                let message = format!(
                    "`reference` names {} values of `{}`, and each cell has one reference",
                    values.len(),
                    axis.name()
                );
                self.problem(entry.value.place(axis).unwrap_or(entry.referenced), message);
            }
        }
        Reference { axes, at: entry.referenced }
    }

    fn fidelity(&mut self, entry: &FidelityEntry, at: Location) -> Fidelity {
        let window = self.count(&entry.window, "window", 2, MAX_TOKENS).unwrap_or(256);
        let context = self.count(&entry.context, "context", 1, MAX_TOKENS).unwrap_or(window / 2);
        if let Some(written) = entry.context.as_ref().filter(|_| context >= window) {
            let message = format!("`context` is {context} of a `window` of {window} tokens, so that none is scored");
            self.problem(written.referenced, message);
        }
        Fidelity {
            source: self.fidelity_source(entry, at),
            tokens: self.count(&entry.tokens, "tokens", 1, MAX_TOKENS).unwrap_or(2048),
            window,
            context,
            generations: self.count(&entry.generations, "generations", 0, MAX_ITEMS).unwrap_or(8),
            generate_tokens: self.count(&entry.generate_tokens, "generate_tokens", 1, MAX_TOKENS).unwrap_or(32),
        }
    }

    fn fidelity_source(&mut self, entry: &FidelityEntry, at: Location) -> FidelitySource {
        match (&entry.text, &entry.random_tokens) {
            (Some(text), None) => FidelitySource::Text(self.written(&text.value, text.referenced, "the fidelity text")),
            (None, Some(random)) => FidelitySource::RandomTokens { seed: random.value.seed },
            _ => {
                self.problem(at, "`fidelity` needs one of `text` and `random_tokens`");
                FidelitySource::RandomTokens { seed: 0 }
            }
        }
    }

    fn written(&mut self, text: &str, at: Location, what: &str) -> Written {
        for problem in paths::unknown_placeholders(text, what) {
            self.problem(at, problem);
        }
        Written { text: text.to_owned(), at }
    }
}
