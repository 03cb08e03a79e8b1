//! What a worker reports of a task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A task set's result: a row of `tasks.csv`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task's name in the matrix.
    pub task: String,
    /// `choice`, `continuation`, `perplexity`, `generation` or `code`.
    pub kind: String,
    /// Items that were scored.
    pub items: u64,
    /// Examples before each item.
    pub fewshot: u64,
    /// Whether prompts went through the chat template.
    pub chat: bool,
    /// Requests that were cut from the left to fit the context.
    pub truncated: u64,
    /// Items of which at least one request was cut.
    #[serde(default)]
    pub truncated_items: u64,
    /// The figure that stands for the task (`acc`, `exact_match`, …), one of those in `figures`.
    pub metric: String,
    /// Figures by name; each is named in `metrics::TASK_FIGURES`. What is not finite arrives as NaN, as samples do.
    #[serde(deserialize_with = "super::null_as_nan_by_name")]
    pub figures: BTreeMap<String, f64>,
    /// Wall time of scoring, tokenization and models' runs, without loading.
    pub seconds: f64,
    /// First digits of the SHA-256 over descriptions, items and settings: equal ones asked the same.
    pub hash: String,
}

impl TaskResult {
    /// The value of the figure that stands for the task.
    pub fn score(&self) -> Option<f64> {
        self.figures.get(&self.metric).copied()
    }

    /// Its standard error, where it has one.
    pub fn score_stderr(&self) -> Option<f64> {
        self.figures.get(&format!("{}_stderr", self.metric)).copied()
    }
}

/// Figures of the items of a task, for `samples.csv`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemResults {
    /// The task's name in the matrix.
    pub task: String,
    /// The figure; named in `metrics::ITEM_FIGURES`.
    pub metric: String,
    /// The items' ids.
    pub ids: Vec<String>,
    /// A value an item. What is not finite arrives as NaN, as samples do.
    #[serde(deserialize_with = "super::null_as_nan")]
    pub values: Vec<f64>,
}
