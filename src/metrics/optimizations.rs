//! What shows that an optimization acted: one row each.

use super::{Fact, FactKind};
use crate::cell::Category;

/// Evidence, in the order of its columns.
pub(super) const FACTS: &[Fact] = &[
    fact("pack_records", FactKind::Integer, "Records of the pack that was made of the package."),
    fact("pack_source_bytes", FactKind::Integer, "Bytes of weights that went into them."),
    fact("pack_bytes", FactKind::Integer, "Bytes of the pack."),
    fact(
        "paging_read_bytes_per_token",
        FactKind::Score,
        "Bytes that the loader read from disk ÷ generated tokens, prefill and decode together.",
    ),
    fact("paging_hit_share", FactKind::Score, "Share of the routed experts asked for that were in memory already."),
    fact(
        "paging_wait_share",
        FactKind::Score,
        "Share of the measured time in which the computation waited for the loader.",
    ),
    fact(
        "paging_evictions",
        FactKind::Integer,
        "Records that were dropped to make room, over all measured runs of the first optimized process.",
    ),
    fact(
        "paging_peak_bytes",
        FactKind::Integer,
        "The most that the loader held, records that are being read included.",
    ),
    fact(
        "waiting_written_bytes_per_token",
        FactKind::Score,
        "Bytes of caches and hidden states that went to disk ÷ generated tokens.",
    ),
    fact("waiting_read_bytes_per_token", FactKind::Score, "Bytes of them that came back ÷ generated tokens."),
    fact(
        "wave_sizes",
        FactKind::Text,
        "Sequences that ran together, wave after wave of the last measured run, where there was more than one wave.",
    ),
    fact(
        "fusion_nodes_before",
        FactKind::Integer,
        "Nodes of the decoder's graph before operators of this program took the place of some.",
    ),
    fact("fusion_nodes_after", FactKind::Integer, "Nodes after that."),
    fact("fusion_nodes_replaced", FactKind::Integer, "Nodes whose place they took."),
    fact(
        "fusion_operators",
        FactKind::Text,
        "Nodes of each operator of this program, e.g. `HeadNorm 36, SkipNorm 72, SwiGlu 36`.",
    ),
    fact("compiled_nodes_before", FactKind::Integer, "Nodes of the decoder's graph before it was compiled ahead of time."),
    fact("compiled_nodes_after", FactKind::Integer, "Nodes of the graph as ONNX Runtime optimized and saved it."),
    fact(
        "compiled_prepacked_constants",
        FactKind::Integer,
        "Constants that lie beside the graph in the order of ONNX Runtime's kernels, to be mapped instead of made at each load.",
    ),
    fact("compiled_prepacked_bytes", FactKind::Integer, "Their bytes."),
    fact("compiled_bytes", FactKind::Integer, "Bytes of the compiled graph with all its constants, prepacked or not."),
    fact("compile_seconds", FactKind::Float, "Seconds in which the graph was compiled and written, once."),
];

const fn fact(name: &'static str, kind: FactKind, description: &'static str) -> Fact {
    Fact { name, kind, category: Some(Category::OptimizationImpact), description }
}
