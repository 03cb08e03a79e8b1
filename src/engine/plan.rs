//! Every knob of an execution. An optimization edits a plan; the engine does not know that it exists.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Residency};
use crate::engine::serving::Waves;
use crate::engine::stages::Stages;
use crate::loader::spill::SpillCodec;
use crate::package::Padding;
use crate::runtime::{Arena, SharedThreads};

/// How present relates to past in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How the CPU provider's memory for activations grows; `None` takes an arena for a graph in one piece, and none for
    /// one in parts.
    pub arena: Option<Arena>,
    /// Whether tensors of known sizes are given one piece of memory together; `None` as for the arena.
    pub memory_pattern: Option<bool>,
    /// Give freed memory of the arena back to the system after each run of a prompt.
    pub shrink: bool,
    /// Let ONNX Runtime optimize the decoder's graph when it is loaded: not where that was done before.
    pub optimize_graph: bool,
    /// How unequal prompts are padded; `None` takes what the package prefers.
    pub padding: Option<Padding>,
    /// Where a pack's weights live; `None` is all in memory.
    pub residency: Option<Residency>,
    /// Bytes that the process may hold in all, for residencies that can do with less than the weights.
    pub budget: Option<u64>,
    /// Bytes for a pack's records as a share of what all of them take, for residencies that can do with less than the
    /// weights; never less than what works. Another way to say how much than [`Plan::budget`].
    pub weights_share: Option<f64>,
    /// Read records that stream before the computation asks for them.
    pub read_ahead: bool,
    /// Sequences that go through a part of the model together; set, a pack runs part by part.
    pub micro_batch: Option<u32>,
    /// Processes that run the segments of a pack between them, by `Pipeline`; `None` is this process alone.
    pub stages: Option<Stages>,
    /// The folder for caches that wait on disk; set, a pack runs part by part.
    pub offload: Option<PathBuf>,
    /// How caches and hidden states that wait on disk are stored there.
    pub offload_codec: SpillCodec,
    /// Copy a pack's weights to memory of ONNX Runtime's ahead of use, which devices need, even where the provider
    /// could take them where they are. Packs of the form `inputs` only.
    pub copies_weights: bool,
    /// Keep caches and logits in memory of ONNX Runtime's, as devices need, even where the provider could take them in
    /// the program's own.
    pub copies_caches: bool,
    /// Decode in steps of fixed shapes at fixed addresses, as for a provider that captures them, where caches are kept in
    /// place in memory of ONNX Runtime's.
    pub fixed_steps: bool,
    /// Experts a token that are guessed of the next layer and read ahead while the disk is idle; 0 guesses none. For
    /// packs with experts on demand.
    pub guess: u32,
    /// Runs may have more sequences and tokens than the next two say, as scoring does: what is built for shapes
    /// beforehand must allow them.
    pub any_shape: bool,
    /// Sequences of a batch, and tokens of each: the cache that a budget must leave room for.
    pub sequences: u32,
    /// See [`Plan::sequences`].
    pub tokens: u32,
    /// How many of the sequences go through the model together.
    pub waves: Waves,
}

impl Plan {
    /// The plan of a cell without any optimization. Where caches wait on disk, the folder is for the caller to name.
    pub fn of(cell: &Cell) -> Self {
        let workload = &cell.workload;
        Self {
            images: workload.image.is_some(),
            residency: cell.memory.residency,
            budget: cell.memory.budget_bytes,
            micro_batch: cell.memory.micro_batch,
            guess: cell.memory.guess,
            sequences: workload.batch,
            tokens: workload.prompt_tokens + workload.generate_tokens,
            ..Self::with_threads(cell.threads)
        }
    }

    /// Every knob with its value in words, for whoever compares plans.
    pub fn knobs(&self) -> BTreeMap<String, String> {
        // All fields: a new one that is left out here would escape the search for contradictions.
        let Self {
            threads,
            session_config,
            cache,
            images,
            arena,
            memory_pattern,
            shrink,
            optimize_graph,
            padding,
            residency,
            budget,
            weights_share,
            read_ahead,
            micro_batch,
            stages,
            offload,
            offload_codec,
            copies_weights,
            copies_caches,
            fixed_steps,
            guess,
            any_shape,
            sequences,
            tokens,
            waves,
        } = self;
        let mut knobs: BTreeMap<String, String> =
            session_config.iter().map(|(key, value)| (format!("session option {key}"), value.clone())).collect();
        let mut knob = |name: &str, value: &dyn std::fmt::Debug| knobs.insert(name.to_owned(), format!("{value:?}"));
        knob("threads", threads);
        knob("cache mode", cache);
        knob("vision tower", images);
        knob("arena", arena);
        knob("memory pattern", memory_pattern);
        knob("shrinking of the arena", shrink);
        knob("optimization of the graph", optimize_graph);
        knob("padding", padding);
        knob("residency", residency);
        knob("memory budget", budget);
        knob("share of weights in memory", weights_share);
        knob("reading ahead", read_ahead);
        knob("micro-batch", micro_batch);
        knob("stages", stages);
        knob("offload folder", offload);
        knob("codec of what waits on disk", offload_codec);
        knob("copies of weights", copies_weights);
        knob("copies of caches", copies_caches);
        knob("fixed steps", fixed_steps);
        knob("guesses", guess);
        knob("shapes", any_shape);
        knob("sequences", sequences);
        knob("tokens", tokens);
        knob("waves", waves);
        knobs
    }

    /// The most sequences that are in memory together.
    pub fn at_once(&self) -> u32 {
        self.waves.most(self.sequences)
    }

    /// Whether a pack's graph runs in parts, a layer at a time.
    pub fn cuts_the_graph(&self) -> bool {
        self.micro_batch.is_some() || self.offload.is_some() || self.stages.is_some()
    }

    /// Whether threads may spin between operators: not where they would take the cores that the readers of records need.
    pub fn spins(&self) -> bool {
        !matches!(self.residency, Some(Residency::Stream | Residency::Experts))
    }

    /// The pool that the parts' sessions share, where the graph is cut.
    pub fn shared_threads(&self) -> Option<SharedThreads> {
        let threads = self.stages.as_ref().map_or(self.threads, |stages| stages.threads(self.threads));
        self.cuts_the_graph().then_some(SharedThreads { threads, spin: self.spins() })
    }

    /// Defaults with that many threads.
    pub fn with_threads(threads: u32) -> Self {
        Self {
            threads,
            session_config: BTreeMap::new(),
            cache: None,
            images: false,
            arena: None,
            memory_pattern: None,
            shrink: false,
            optimize_graph: true,
            padding: None,
            residency: None,
            budget: None,
            weights_share: None,
            read_ahead: true,
            micro_batch: None,
            stages: None,
            offload: None,
            offload_codec: SpillCodec::None,
            copies_weights: false,
            copies_caches: false,
            fixed_steps: false,
            guess: 0,
            any_shape: false,
            sequences: 1,
            tokens: 0,
            waves: Waves::Together,
        }
    }
}
