//! A task set's description, checked: what becomes of a record, and how answers are judged (`docs/tasks.md`).

use std::path::{Path, PathBuf};

use super::answer::Judging;
use super::{Kind, check, ready};
use crate::cell::{TaskRef, TaskSource};
use crate::error::{Error, Result};
use crate::yaml;

/// A valid description.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// What it is, for readers.
    pub about: Option<String>,
    /// What its items ask.
    pub kind: Kind,
    /// The items' file, absolute, where the description names one.
    pub data: Option<PathBuf>,
    /// The figure that stands for the task.
    pub metric: &'static str,
    /// What is asked of a record.
    pub(super) form: Form,
    /// Expression for an item's id.
    pub(super) id: Option<String>,
    /// Expression for a path or a list of paths.
    pub(super) images: Option<String>,
    /// Between a context and its continuation.
    pub(super) delimiter: String,
    /// Template of the text before everything.
    pub(super) preamble: Option<String>,
    /// The examples before an item.
    pub(super) fewshot: Fewshot,
    /// Whether prompts go through the chat template.
    pub(super) chat: bool,
    /// The system turn of a chat.
    pub(super) system: Option<String>,
    /// Texts at which an answer ends.
    pub until: Vec<String>,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// How a generated text is judged.
    pub(super) judging: Judging,
    /// How the programs of the kind `code` are run.
    pub run: Option<ProgramRun>,
    /// Its text, which the task's hash covers.
    pub(super) source: String,
}

/// Templates and expressions of a kind, as texts.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    Choice { inputs: Inputs, answer: String },
    Continuation { context: String, continuation: String },
    Perplexity { text: String, original: Option<String> },
    Generation { context: String, answer: String },
    Code { context: String, program: String, answer: Option<String> },
}

/// What the choices of an item differ in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Inputs {
    /// One context, a continuation a choice.
    Continuations { context: String, choices: String },
    /// A context a choice, one continuation.
    Contexts { contexts: String, continuation: String },
}

/// The examples before an item.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fewshot {
    pub count: usize,
    /// Absolute; `None` is the items' own file.
    pub data: Option<PathBuf>,
    pub separator: String,
    /// Drawn by the seed; else the first ones.
    pub random: bool,
    /// In a chat, whether each example is two turns of its own; else they stand in the item's turn.
    pub turns: bool,
    /// Expression whose value an item and its examples have in common.
    pub like: Option<String>,
}

impl Fewshot {
    /// Whether any record of the examples' file may be one, not only the first ones.
    pub fn whole_file(&self) -> bool {
        self.random || self.like.is_some()
    }
}

/// How a program is run.
#[derive(Debug, Clone, PartialEq)]
pub struct ProgramRun {
    /// The file's name.
    pub file: String,
    /// The command, run in the file's folder.
    pub command: Vec<String>,
    /// Longest run.
    pub seconds: f64,
    /// Most memory in MiB.
    pub memory_mib: u32,
}

/// A description together with what a matrix file says of the task.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The items' file, absolute.
    pub data: PathBuf,
    /// The file that examples come from, absolute; `None` is the items' own.
    pub examples: Option<PathBuf>,
    /// Examples before each item.
    pub fewshot: usize,
    /// Whether prompts go through the chat template.
    pub chat: bool,
    /// Longest answer in tokens.
    pub max_tokens: usize,
}

/// Descriptions are written by hand; anything larger is another file.
const MAX_BYTES: u64 = 1 << 20;

impl Description {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// An unknown ready description; any unknown key, wrong value, template that does not parse or contradiction, with
    /// line and column.
    pub fn open(source: &TaskSource) -> Result<Self> {
        match source {
            TaskSource::Ready(name) => Self::parse(&format!("{name}.yaml"), None, ready::find(name)?),
            TaskSource::File(path) => {
                let shown = path.display().to_string();
                let failed = || format!("cannot read the task description `{shown}`");
                let hint = "`ortbench tasks` lists the descriptions that the program carries";
                let text = yaml::text_of(path, MAX_BYTES, failed, hint)?;
                Self::parse(&shown, path.parent(), &text)
            }
        }
    }

    /// Checks a description's text; `shown` is its name in messages, relative paths start at `folder`.
    ///
    /// # Errors
    /// As [`Description::open`].
    pub fn parse(shown: &str, folder: Option<&Path>, text: &str) -> Result<Self> {
        check::check(folder, text).map_err(|problems| {
            yaml::report("task description", shown, text, problems)
                .hint("`docs/tasks.md` explains the keys; `ortbench tasks NAME` prints one as an example")
        })
    }

    /// The descriptions that the program carries: names and texts.
    pub fn ready() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        ready::READY.iter()
    }

    /// Examples before each item, where the matrix file says nothing else.
    pub fn examples(&self) -> usize {
        self.fewshot.count
    }

    /// What applies once a matrix file has its say.
    ///
    /// # Errors
    /// No items' file; examples, chats or written answers where the kind has none.
    pub fn settings(&self, task: &TaskRef) -> Result<Settings> {
        let Some(data) = task.data.clone().or_else(|| self.data.clone()) else {
            return Err(Error::new(format!("the task `{}` has no items: its description names no file", task.name))
                .hint("add `data: FILE` to the task in the matrix file"));
        };
        let fewshot = task.fewshot.map_or(self.fewshot.count, |count| count as usize);
        let chat = task.chat.unwrap_or(self.chat);
        if let Some(examples) = task.examples.as_ref().filter(|_| fewshot == 0) {
            let (name, path) = (&task.name, examples.display());
            return Err(Error::new(format!("the task `{name}` takes no examples, and `{path}` is named for them"))
                .hint("say how many: `fewshot: COUNT`"));
        }
        let examples = task.examples.clone().or_else(|| self.fewshot.data.clone());
        let refuse = |what: &str, hint: &str| {
            Err(Error::new(format!("the task `{}` is of kind `{}`, which has no {what}", task.name, self.kind))
                .hint(hint))
        };
        match &self.form {
            Form::Perplexity { .. } if chat => refuse("chats", "leave `chat` out"),
            Form::Perplexity { .. } if fewshot > 0 => refuse("examples", "leave `fewshot` out"),
            Form::Code { answer: None, .. } if fewshot > 0 => refuse(
                "examples without the key `answer`",
                "add `answer` to the description: a template of the program that stands in an example",
            ),
            _ if fewshot > 0 && self.images.is_some() => {
                Err(Error::new(format!("the task `{}` has images, and its items cannot have examples", task.name))
                    .hint("leave `fewshot` out"))
            }
            Form::Choice { .. } | Form::Continuation { .. } | Form::Perplexity { .. } if task.max_tokens.is_some() => {
                refuse("answers that a model writes", "leave `max_tokens` out; `max_length` bounds what is scored")
            }
            _ => {
                let max_tokens = task.max_tokens.map_or(self.max_tokens, |tokens| tokens as usize);
                Ok(Settings { data, examples, fewshot, chat, max_tokens })
            }
        }
    }
}
