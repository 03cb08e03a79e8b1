//! What a pipeline is told, and what its processes are told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cell::{Backend, Residency};
use crate::engine::plan::{CacheMode, Plan};
use crate::engine::serving::Waves;
use crate::error::{Error, Result};
use crate::package::Padding;

/// How connections between stages are slowed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// By whoever sends: a token bucket and a delay of this program's.
    Shaper,
    /// By the kernel's token bucket filter, in a network namespace; the delay is the sender's. Two stages only.
    Namespace,
}

impl Via {
    /// The word in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shaper => "shaper",
            Self::Namespace => "namespace",
        }
    }
}

/// A model that several processes run between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// Processes, this one included.
    pub count: u32,
    /// Bytes a second of each connection; `None` for as fast as it is.
    pub bandwidth: Option<f64>,
    /// Seconds that a message is under way, besides.
    pub latency: f64,
    /// How that is brought about.
    pub via: Via,
    /// Groups of sequences that are under way at once.
    pub micro_batches: u32,
    /// Segments before each border; `None` where weights are to be as many on each side.
    pub borders: Option<Vec<usize>>,
}

impl Stages {
    /// Threads of each stage, of so many in all.
    pub fn threads(&self, all: u32) -> u32 {
        (all / self.count.max(1)).max(1)
    }

    /// Sequences of each group, of so many in all.
    pub fn group_sizes(&self, sequences: usize) -> Vec<usize> {
        let groups = (self.micro_batches.max(1) as usize).min(sequences).max(1);
        (0..groups).map(|group| sequences / groups + usize::from(group < sequences % groups)).collect()
    }
}

/// What a connection is slowed down to by whoever sends.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes a second.
    pub bandwidth: Option<f64>,
    /// Seconds.
    pub latency: f64,
}

/// What of a plan says something to one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    threads: u32,
    session_config: BTreeMap<String, String>,
    cache: Option<CacheMode>,
    padding: Option<Padding>,
    residency: Option<Residency>,
    budget: Option<u64>,
    weights_share: Option<f64>,
    read_ahead: bool,
    micro_batch: Option<u32>,
    copies_weights: bool,
    copies_caches: bool,
    guess: u32,
    sequences: u32,
    tokens: u32,
}

impl StagePlan {
    /// What a plan says to each of its stages: a share of threads and budget, and sequences in groups.
    ///
    /// # Errors
    /// What a model in stages cannot do (`unsupported`).
    pub fn of(plan: &Plan, stages: &Stages) -> Result<Self> {
        // All fields: a new one must be told to the stages, or refused here.
        let Plan {
            threads,
            session_config,
            cache,
            images,
            padding,
            residency,
            budget,
            weights_share,
            read_ahead,
            micro_batch: _,
            stages: _,
            offload,
            offload_codec: _,
            arena,
            memory_pattern,
            shrink,
            optimize_graph,
            copies_weights,
            copies_caches,
            fixed_steps,
            guess,
            any_shape: _,
            sequences,
            tokens,
            waves,
        } = plan.clone();
        let refuse = |what: &str| Err(Error::unsupported(format!("a model in stages {what}")));
        if offload.is_some() {
            return refuse("keeps its caches in memory, and not on disk");
        }
        if images {
            return refuse("takes no images");
        }
        let usual = Plan::with_threads(threads);
        let allocators = (usual.arena, usual.memory_pattern, usual.shrink);
        if (arena, memory_pattern, shrink) != allocators || optimize_graph != usual.optimize_graph {
            return refuse("has the allocators' defaults, and graphs that are not compiled");
        }
        if fixed_steps {
            return refuse("has no steps of fixed shapes");
        }
        if waves != Waves::Together {
            return refuse("cuts a batch into groups, and a queue of requests into no waves");
        }
        let micro_batch = stages.group_sizes(sequences as usize).into_iter().max().map(|size| size.max(1) as u32);
        Ok(Self {
            threads: stages.threads(threads),
            session_config,
            cache,
            padding,
            residency,
            budget: budget.map(|budget| budget / u64::from(stages.count.max(1))),
            weights_share,
            read_ahead,
            micro_batch,
            copies_weights,
            copies_caches,
            guess,
            sequences,
            tokens,
        })
    }

    /// As a plan for the engine.
    pub fn plan(&self) -> Plan {
        let all = self.clone();
        Plan {
            session_config: all.session_config,
            cache: all.cache,
            padding: all.padding,
            residency: all.residency,
            budget: all.budget,
            weights_share: all.weights_share,
            read_ahead: all.read_ahead,
            micro_batch: all.micro_batch,
            copies_weights: all.copies_weights,
            copies_caches: all.copies_caches,
            guess: all.guess,
            sequences: all.sequences,
            tokens: all.tokens,
            ..Plan::with_threads(all.threads)
        }
    }
}

/// What the process of a stage is told, as JSON on its standard input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`super::wire::VERSION`] of the pipeline.
    pub version: u16,
    /// The libonnxruntime to load, absolute.
    pub library: PathBuf,
    /// The pack.
    pub package: PathBuf,
    /// The backend.
    pub backend: Backend,
    /// How this stage is run.
    pub plan: StagePlan,
    /// Its place.
    pub stage: u32,
    /// Stages in all.
    pub count: u32,
    /// Its segments.
    pub segments: Range<usize>,
    /// Where the pipeline listens.
    pub head: SocketAddr,
    /// Where this stage listens.
    pub listen: IpAddr,
    /// Who connects must know it.
    pub secret: String,
    /// How it sends.
    pub limits: Limits,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_as_equal_as_they_can_be() {
        let stages = |micro_batches| Stages {
            count: 2,
            bandwidth: None,
            latency: 0.0,
            via: Via::Shaper,
            micro_batches,
            borders: None,
        };
        assert_eq!(stages(2).group_sizes(5), [3, 2]);
        assert_eq!(stages(4).group_sizes(3), [1, 1, 1]);
        assert_eq!(stages(0).group_sizes(3), [3]);
        assert_eq!((stages(1).threads(4), stages(1).threads(1)), (2, 1));
    }
}
