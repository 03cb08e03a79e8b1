//! Every knob of an execution. An optimization edits a plan; the engine does not know that it exists.

use std::collections::BTreeMap;

use crate::cell::Cell;
use crate::package::Padding;

/// How present relates to past in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// One buffer of full capacity is past and present: no copy a token.
    InPlace,
    /// Two buffers in turn: the provider writes past and new tokens into the other one.
    Append,
}

impl CacheMode {
    /// The word in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::InPlace => "in_place",
            Self::Append => "append",
        }
    }
}

/// How a model is loaded and run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Threads of one operator.
    pub threads: u32,
    /// Session configuration entries.
    pub session_config: BTreeMap<String, String>,
    /// The cache's mode; `None` takes the best that graph and provider allow.
    pub cache: Option<CacheMode>,
    /// Load the vision tower, for prompts with images.
    pub images: bool,
    /// How unequal prompts are padded; `None` takes what the package prefers.
    pub padding: Option<Padding>,
}

impl Plan {
    /// The plan of a cell without any optimization.
    pub fn of(cell: &Cell) -> Self {
        Self { images: cell.workload.image.is_some(), ..Self::with_threads(cell.threads) }
    }

    /// Defaults with that many threads.
    pub fn with_threads(threads: u32) -> Self {
        Self { threads, session_config: BTreeMap::new(), cache: None, images: false, padding: None }
    }
}
