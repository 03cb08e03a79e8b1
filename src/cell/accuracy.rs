//! What is asked of the category `accuracy`: tasks, the reference, the gate.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CellId, PromptSource};

/// Everything about a cell's answers that a matrix file settles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccuracyPlan {
    /// Task sets, in the order of the file.
    pub tasks: Vec<TaskRef>,
    /// Seed of everything that is drawn: few-shot examples, a limit's choice of items.
    pub seed: u64,
    /// How items are run.
    pub scoring: Scoring,
    /// Whether programs that the model writes may be run.
    pub run_code: bool,
    /// The text on which distributions are compared with the reference's; `None` compares tasks' answers alone.
    pub fidelity: Option<FidelityPlan>,
    /// The cell whose answers are right by definition: this cell's own id where it is the reference itself.
    pub reference: Option<CellId>,
    /// The gate: every task's score must be at least this share of the reference's (0.99 is MLPerf's usual one).
    pub floor: Option<f64>,
}

named_enum! {
    /// How items of tasks are run. The results are the same.
    Scoring {
        /// Batches of similar length; what the choices of an item share is computed once.
        Batched => "batched",
        /// One sequence after the other, each from its first token: what the other way is measured against.
        OneByOne => "one_by_one",
    }
}

/// A task as a matrix file names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRef {
    /// The name in results, unique among a cell's tasks.
    pub name: String,
    /// Where the description is.
    pub description: TaskSource,
    /// The items' file, absolute, where it is not the one that the description names.
    pub data: Option<PathBuf>,
    /// The file that examples come from, absolute, where it is not the one that the description names.
    pub examples: Option<PathBuf>,
    /// At most that many items, the first ones.
    pub limit: Option<u32>,
    /// Number of examples before each item, where it is not the description's.
    pub fewshot: Option<u32>,
    /// Whether prompts go through the model's chat template, where it is not the description's word.
    pub chat: Option<bool>,
    /// Longest sequence in tokens, where it is not the model's context; longer ones are cut from the left.
    pub max_length: Option<u32>,
    /// Longest generated answer in tokens, where it is not the description's.
    pub max_tokens: Option<u32>,
}

impl TaskRef {
    /// A task of that name, with everything as its description says.
    pub fn new(name: impl Into<String>, description: TaskSource) -> Self {
        Self {
            name: name.into(),
            description,
            data: None,
            examples: None,
            limit: None,
            fewshot: None,
            chat: None,
            max_length: None,
            max_tokens: None,
        }
    }
}

/// Where a task's description comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskSource {
    /// One that the program carries, by name.
    Ready(String),
    /// A YAML file, absolute.
    File(PathBuf),
}

/// The tokens over which a cell is compared with its reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FidelityPlan {
    /// Where the tokens come from.
    pub source: PromptSource,
    /// Tokens to score, at most.
    pub tokens: u32,
    /// Tokens of a window; windows follow each other without overlap.
    pub window: u32,
    /// Tokens at the start of each window that are context alone.
    pub context: u32,
    /// Greedy continuations to compare, each from a window's context.
    pub generations: u32,
    /// Tokens of each continuation.
    pub generate_tokens: u32,
}
