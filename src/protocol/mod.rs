//! What a worker is told and what it answers.
//!
//! The parent writes one [`Job`] as JSON to the worker's standard input and closes it. The worker writes one
//! [`Message`] a line (JSON Lines) to its standard output; everything that libraries print goes to standard error.
//! The last message is [`Message::Done`] or [`Message::Failed`]; a worker that ends without either has crashed.

mod operators;
mod reporter;
mod task;

pub use operators::OperatorTime;
pub use reporter::Reporter;
pub use task::{ItemResults, TaskResult};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cell::{Category, Cell, Status};

/// Raised whenever a message changes its meaning; both sides are the same binary, so a mismatch is a bug or a
/// binary that was replaced during a run.
pub const PROTOCOL_VERSION: u32 = 1;

/// What a worker process is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`PROTOCOL_VERSION`] of the parent.
    pub protocol: u32,
    /// The libonnxruntime to load, absolute.
    pub library: PathBuf,
    /// The work.
    pub work: Work,
}

/// The kinds of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Measure one category of one cell.
    Measure {
        /// The configuration.
        cell: Box<Cell>,
        /// What to measure.
        category: Category,
        /// Which of the cell's repeated processes this is, from 0.
        process: u32,
        /// The folder of the reference's answers: the reference itself writes it, other cells read it. `None` where
        /// the cell has no reference or the category needs none.
        #[serde(default)]
        reference: Option<PathBuf>,
        /// The folder for caches that wait on disk, where the cell's do.
        #[serde(default)]
        offload: Option<PathBuf>,
    },
    /// Derive the packages that a cell's optimizations run and that are not there yet.
    Prepare {
        /// The configuration.
        cell: Box<Cell>,
    },
    /// Measure what this machine can do at most (memory bandwidth, arithmetic), with this many threads.
    Ceilings {
        /// Threads used.
        threads: u32,
    },
    /// Say what the library offers: version, build, providers, devices.
    Describe,
}

/// One line from worker to parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// First line.
    Hello {
        /// [`PROTOCOL_VERSION`] of the worker.
        protocol: u32,
    },
    /// The worker entered a phase (`load`, `warmup`, `measure`, …); for progress and for the reason of a crash.
    Phase {
        /// Name of the phase.
        name: String,
        /// Steps done and to do, where known.
        done: Option<(u64, u64)>,
    },
    /// A figure or word that is true of the whole process; named in `metrics::FACTS`.
    Fact {
        /// Name in the table.
        name: String,
        /// The value.
        value: FactValue,
    },
    /// Raw measurements of one series; named in `metrics::SERIES`.
    Samples {
        /// Name in the table.
        metric: String,
        /// The repetition, or the process, that they belong to.
        repetition: u32,
        /// Values in the series' unit, in the order measured. JSON has no word for what is not finite and writes
        /// `null`, which reads back as NaN, so that the cell becomes `invalid` and not a riddle.
        #[serde(deserialize_with = "null_as_nan")]
        values: Vec<f64>,
    },
    /// The result of a task set.
    Task {
        /// The row.
        result: Box<TaskResult>,
    },
    /// Figures of a task's items.
    Items {
        /// The values.
        items: ItemResults,
    },
    /// A node's time in a profile.
    Operator {
        /// The row.
        time: Box<OperatorTime>,
    },
    /// Something that the row's reader should know.
    Warning {
        /// The sentence.
        text: String,
    },
    /// Everything was measured.
    Done,
    /// The work ended without a result.
    Failed {
        /// How it ended; never [`Status::Measured`].
        status: Status,
        /// Operation and cause in one line.
        reason: String,
        /// What can be done about it.
        hint: Option<String>,
    },
}

fn null_as_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

fn null_as_nan_by_name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// A fact's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FactValue {
    /// Yes or no.
    Bool(bool),
    /// A count or a number of bytes.
    Integer(u64),
    /// A quantity.
    Float(f64),
    /// A word or a sentence.
    Text(String),
}

impl From<bool> for FactValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<u64> for FactValue {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}
impl From<f64> for FactValue {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}
impl From<String> for FactValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}
impl From<&str> for FactValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}
