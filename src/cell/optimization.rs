//! Optimizations by name, as a matrix file switches them on.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ModelRef;

named_enum! {
    /// An optimization.
    Technique {
        /// Graphs compiled ahead of time, and what ONNX Runtime's allocators are told.
        RuntimeMemory => "runtime_memory",
        /// What is in memory of a pack's weights under a budget.
        SmartPaging => "smart_paging",
        /// How many sequences run together, found while running.
        AdaptiveMicrobatching => "adaptive_microbatching",
        /// Fused graphs and operators of this program's own.
        KernelFusion => "kernel_fusion",
        /// A model over several devices, simulated, and held against a run over two processes.
        DistributedSimulation => "distributed_simulation",
        /// Compressed caches, shards and waiting states.
        TensorCompression => "tensor_compression",
        /// Shards that are read ahead of use.
        ShardingStreaming => "sharding_streaming",
        /// Weights and caches on disk beyond a budget.
        DiskOffload => "disk_offload",
        /// Edits of the graph: fewer layers, experts, tokens.
        ModelSurgery => "model_surgery",
        /// Layer by layer over many sequences.
        DiskPipeline => "disk_pipeline",
        /// Caches and hidden states of waiting sequences on disk.
        ActivationOffload => "activation_offload",
    }
}

named_enum! {
    /// What the category `optimization_impact` compares, by the name of its series.
    ImpactMetric {
        /// Median over sequences of the time from the request to the first token.
        Ttft => "impact_ttft_seconds",
        /// Tokens a second of one step after the next, over all sequences that run together.
        Decode => "impact_decode_tokens_per_second",
        /// Generated tokens ÷ time from the first request to the last token.
        Throughput => "impact_tokens_per_second",
        /// Loading.
        Load => "impact_load_seconds",
        /// The most anonymous memory.
        PeakAnonymous => "impact_peak_anon_bytes",
        /// The most resident memory, files that are mapped included.
        PeakResident => "impact_peak_rss_bytes",
        /// Bytes read from disk by a run.
        BytesRead => "impact_read_bytes",
    }
}

impl ImpactMetric {
    /// Whether more of it is better.
    pub fn higher_is_better(self) -> bool {
        matches!(self, Self::Decode | Self::Throughput)
    }
}

/// Which arm of a comparison a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Without the techniques.
    Baseline,
    /// With them.
    Optimized,
}

impl Arm {
    /// The arm of a process of the category `optimization_impact`: A B, B A, A B, …, so that a drift of the machine's
    /// speed falls on both alike.
    pub fn of_process(process: u32) -> Self {
        let (pair, second) = (process / 2, process % 2 == 1);
        if second == pair.is_multiple_of(2) { Self::Optimized } else { Self::Baseline }
    }
}

/// A technique and what it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    /// The technique.
    pub technique: Technique,
    /// Its options as written, where they are not the defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

impl fmt::Display for Switched {
    /// The name, and the options in brackets: `tensor_compression(cache=int8)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.technique.name())?;
        if self.options.is_empty() {
            return Ok(());
        }
        let options: Vec<_> = self.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        write!(f, "({})", options.join(", "))
    }
}

/// What a cell switches on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptimizationPlan {
    /// Techniques, in the order of [`Technique`]; none where the cell is the baseline itself.
    pub switched: Vec<Switched>,
    /// The model's package of standard operators, where the matrix file says which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<ModelRef>,
    /// The folder for packages that are derived from the cell's.
    pub derived: PathBuf,
}

impl Switched {
    /// Several in words: `none`, or the techniques joined by `+`.
    pub fn together(all: &[Self]) -> String {
        if all.is_empty() {
            return "none".to_owned();
        }
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
    }
}

impl fmt::Display for OptimizationPlan {
    /// As [`Switched::together`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Switched::together(&self.switched))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_alternate() {
        use Arm::{Baseline as A, Optimized as B};
        assert_eq!((0..8).map(Arm::of_process).collect::<Vec<_>>(), [A, B, B, A, A, B, B, A]);
    }

    #[test]
    fn combinations_in_words() {
        let options = BTreeMap::from([("cache".to_owned(), "int4".to_owned())]);
        let switched = vec![
            Switched { technique: Technique::TensorCompression, options },
            Switched { technique: Technique::DiskPipeline, options: BTreeMap::new() },
        ];
        let plan = |switched| OptimizationPlan { switched, plain: None, derived: PathBuf::new() };
        assert_eq!(plan(switched).to_string(), "tensor_compression(cache=int4)+disk_pipeline");
        assert_eq!(plan(Vec::new()).to_string(), "none");
    }
}
