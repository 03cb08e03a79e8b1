//! Figures and words that a process gives once: one row each.

use Category::Speed;

use super::{Fact, FactKind};
use crate::cell::Category;

/// Every fact, in the order of their columns.
pub const FACTS: &[Fact] = &[
    fact("runtime_version", FactKind::Text, None, "Version of ONNX Runtime that was loaded."),
    fact("runtime_build", FactKind::Text, None, "ONNX Runtime's own build description."),
    fact(
        "provider_nodes",
        FactKind::Integer,
        None,
        "Nodes of the optimized graph that the named provider runs (a fused subgraph counts its nodes).",
    ),
    fact(
        "fallback_nodes",
        FactKind::Integer,
        None,
        "Nodes of the optimized graph that ran on another provider than the one named.",
    ),
    fact(
        "node_placement",
        FactKind::Text,
        None,
        "Nodes by provider, e.g. `OpenVINOExecutionProvider 412, CPUExecutionProvider 3 (Cast 2, Gather 1)`.",
    ),
    fact(
        "cache_mode",
        FactKind::Text,
        None,
        "`in_place`: one buffer is past and present; `append`: two buffers in turn, the provider copies.",
    ),
    fact(
        "package_hash",
        FactKind::Text,
        None,
        "SHA-256 of the package's manifest, which holds the hashes of its files.",
    ),
    fact("package_weights", FactKind::Text, None, "`checkpoint` or `random`."),
    fact("parameters_total", FactKind::Integer, None, "Weights of the model, tied weights once."),
    fact("parameters_active_per_token", FactKind::Integer, None, "Weights that one decoded token multiplies with."),
    fact("package_bytes", FactKind::Integer, None, "Size of the package's files."),
    fact(
        "weights_bytes_per_step",
        FactKind::Integer,
        None,
        "Bytes of weights that one decode step must read, active experts only.",
    ),
    fact("cache_bytes_per_token", FactKind::Integer, None, "Key/value cache of one token of one sequence, all layers."),
    fact(
        "cache_computed_bytes",
        FactKind::Integer,
        None,
        "The key/value cache allocated for this cell, from the manifest: batch × capacity × bytes per token, twice in `append` mode.",
    ),
    fact(
        "decode_context_tokens",
        FactKind::Integer,
        Some(Speed),
        "Mean number of cached tokens at which decode was measured.",
    ),
    fact(
        "decode_bytes_per_step",
        FactKind::Integer,
        Some(Speed),
        "Weights and cache bytes that a mean decode step must read; the numerator of the model-bandwidth utilisation.",
    ),
    fact(
        "decode_flops_per_step",
        FactKind::Float,
        Some(Speed),
        "2 × active parameters and the attention's products for every sequence of a mean decode step.",
    ),
    fact(
        "prefill_flops",
        FactKind::Float,
        Some(Speed),
        "2 × active parameters × prompt tokens and the attention's products; the head only where its logits are computed.",
    ),
    fact("warmup_runs", FactKind::Integer, None, "Unmeasured runs before the first measured one."),
    fact("clock_resolution_seconds", FactKind::Float, None, "Smallest step seen of the clock that timed everything."),
    fact("smallest_timing_seconds", FactKind::Float, None, "The shortest single timing behind this row."),
    fact(
        "output_tokens_hash",
        FactKind::Text,
        Some(Speed),
        "First 16 digits of the SHA-256 of the generated ids of the first measured repetition: equal hashes, equal tokens.",
    ),
];

/// What the machine can do at most, measured once a run for each number of threads. Utilisation is relative to them.
pub const CEILINGS: &[Fact] = &[
    fact(
        "ceiling_memory_bandwidth_bytes_per_second",
        FactKind::Float,
        None,
        "Memory read by all of the cell's threads at once, bytes a second.",
    ),
    fact(
        "ceiling_fp32_flops_per_second",
        FactKind::Float,
        None,
        "A large fp32 matrix product through ONNX Runtime's CPU provider.",
    ),
    fact(
        "ceiling_fp16_flops_per_second",
        FactKind::Float,
        None,
        "The same with fp16 operands, as the CPU provider runs them.",
    ),
    fact(
        "ceiling_int8_flops_per_second",
        FactKind::Float,
        None,
        "The same with int8 weights; a multiplication and an addition count two.",
    ),
    fact(
        "ceiling_int4_flops_per_second",
        FactKind::Float,
        None,
        "The same with int4 weights; a multiplication and an addition count two.",
    ),
];

/// Facts in which all processes of a cell must agree: figures of two packages do not belong in one row.
pub const IDENTITY: &[&str] = &["package_hash", "runtime_version", "runtime_build"];

const fn fact(name: &'static str, kind: FactKind, category: Option<Category>, description: &'static str) -> Fact {
    Fact { name, kind, category, description }
}
