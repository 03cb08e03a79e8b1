//! The figures that workers report: one row each. A new metric is one row here; `results` makes its columns, their
//! statistics and their documentation from it.
//!
//! Definitions follow `docs/method.md`. Units stand in the names.

use crate::cell::Category;

/// Which direction is better, for comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A smaller value is better.
    Lower,
    /// A larger value is better.
    Higher,
    /// The figure describes, it does not judge.
    Neither,
}

/// A figure measured many times; results carry its count, centre, spread and interval.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    /// Name, with the unit at its end.
    pub name: &'static str,
    /// Unit in words.
    pub unit: &'static str,
    /// The category that measures it; `None` for figures that every category's process gives.
    pub category: Option<Category>,
    /// Direction of improvement.
    pub better: Better,
    /// Definition in one sentence.
    pub description: &'static str,
    /// True when percentiles of the distribution are of interest (latencies), not only its centre.
    pub percentiles: bool,
}

/// The kinds of a fact's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactKind {
    /// Yes or no.
    Bool,
    /// A count or a number of bytes.
    Integer,
    /// A quantity.
    Float,
    /// A word or a sentence.
    Text,
}

/// A figure or word that a process gives once.
#[derive(Debug, Clone, Copy)]
pub struct Fact {
    /// Name, with the unit at its end where it has one.
    pub name: &'static str,
    /// Kind of the value.
    pub kind: FactKind,
    /// The category that gives it; `None` when every category's process does.
    pub category: Option<Category>,
    /// Definition in one sentence.
    pub description: &'static str,
}

const fn series(
    name: &'static str,
    unit: &'static str,
    category: Option<Category>,
    better: Better,
    percentiles: bool,
    description: &'static str,
) -> Series {
    Series { name, unit, category, better, description, percentiles }
}

const fn fact(name: &'static str, kind: FactKind, category: Option<Category>, description: &'static str) -> Fact {
    Fact { name, kind, category, description }
}

use Better::{Higher, Lower, Neither};
use Category::{Memory, Speed, Throughput};

/// Every series, in the order of their columns.
pub const SERIES: &[Series] = &[
    series(
        "load_seconds",
        "s",
        None,
        Lower,
        false,
        "Creation of the session: reading, optimizing and prepacking the graph and its weights; one value a process, the page cache as it was found.",
    ),
    series(
        "first_run_seconds",
        "s",
        None,
        Lower,
        false,
        "The cold first prefill of a process, right after the load; one value a process.",
    ),
    series(
        "ttft_seconds",
        "s",
        Some(Speed),
        Lower,
        true,
        "Time to first token: from the request, tokenization included where the prompt is a text, to the first token chosen.",
    ),
    series(
        "prefill_seconds",
        "s",
        Some(Speed),
        Lower,
        true,
        "The model's run over the whole prompt, without tokenization and sampling.",
    ),
    series(
        "prefill_tokens_per_second",
        "tokens/s",
        Some(Speed),
        Higher,
        false,
        "Prompt tokens of all sequences ÷ prefill time (llama-bench's pp).",
    ),
    series("itl_seconds", "s", Some(Speed), Lower, true, "Inter-token latency: every gap between consecutive tokens."),
    series(
        "tpot_seconds",
        "s",
        Some(Speed),
        Lower,
        true,
        "Time per output token of a repetition: (end to end − TTFT) ÷ (tokens − 1).",
    ),
    series(
        "decode_tokens_per_second",
        "tokens/s",
        Some(Speed),
        Higher,
        false,
        "Tokens after the first of all sequences ÷ time after the first token (llama-bench's tg), at the context that follows the prompt.",
    ),
    series("end_to_end_seconds", "s", Some(Speed), Lower, false, "From the request to the last token."),
    series(
        "output_tokens_per_second",
        "tokens/s",
        Some(Throughput),
        Higher,
        false,
        "Generated tokens over all sequences of the batch ÷ time from the first request to the last token (prefill included).",
    ),
    series(
        "total_tokens_per_second",
        "tokens/s",
        Some(Throughput),
        Higher,
        false,
        "Prompt and generated tokens of the batch ÷ time from the first request to the last token.",
    ),
    series(
        "requests_per_second",
        "requests/s",
        Some(Throughput),
        Higher,
        false,
        "Sequences of the batch ÷ time from the first request to the last token.",
    ),
    series(
        "batch_seconds",
        "s",
        Some(Throughput),
        Lower,
        true,
        "One whole batch, from the first request to the last token.",
    ),
    series(
        "baseline_rss_bytes",
        "bytes",
        Some(Memory),
        Neither,
        false,
        "Resident memory with the runtime loaded and no model.",
    ),
    series(
        "peak_rss_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Largest resident memory of the process from before the load to the end (VmHWM after a reset).",
    ),
    series(
        "peak_rss_above_baseline_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Peak resident memory less the baseline.",
    ),
    series(
        "peak_anonymous_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Largest RssAnon seen by the sampling thread in any phase.",
    ),
    series(
        "peak_file_backed_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Largest RssFile seen by the sampling thread in any phase: mapped weights and libraries.",
    ),
    series(
        "loaded_anonymous_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "RssAnon after the load, before the first run.",
    ),
    series(
        "loaded_file_backed_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "RssFile after the load, before the first run.",
    ),
    series("prefill_peak_anonymous_bytes", "bytes", Some(Memory), Lower, false, "Largest RssAnon during prefill."),
    series(
        "decode_anonymous_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "RssAnon at steady decode (median of the phase's samples).",
    ),
    series(
        "decode_file_backed_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "RssFile at steady decode (median of the phase's samples).",
    ),
    series(
        "decode_pss_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Proportional set size after the last decode step (smaps_rollup).",
    ),
    series(
        "cache_measured_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Growth of RssAnon while the key/value cache was allocated and touched.",
    ),
    series(
        "major_faults",
        "count",
        Some(Memory),
        Lower,
        false,
        "Page faults that needed the disk, from load to the end.",
    ),
    series(
        "minor_faults",
        "count",
        Some(Memory),
        Neither,
        false,
        "Page faults served from memory, from load to the end.",
    ),
    series(
        "disk_read_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Bytes that the process caused to be read from the disk (/proc/self/io read_bytes).",
    ),
];

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

/// Series that a cell without decode steps (one generated token) legitimately leaves empty.
pub const NEED_DECODE: &[&str] = &[
    "itl_seconds",
    "tpot_seconds",
    "decode_tokens_per_second",
    "decode_anonymous_bytes",
    "decode_file_backed_bytes",
    "decode_pss_bytes",
];

/// Series in which zero can be true. In all others a zero shows that nothing was measured.
pub const MAY_BE_ZERO: &[&str] = &[
    "major_faults",
    "minor_faults",
    "disk_read_bytes",
    // The allocator may place a small cache in pages that are resident already.
    "cache_measured_bytes",
];

/// Facts in which all processes of a cell must agree: figures of two packages do not belong in one row.
pub const IDENTITY: &[&str] = &["package_hash", "runtime_version", "runtime_build"];

/// The ceiling of that name.
pub fn find_ceiling(name: &str) -> Option<&'static Fact> {
    CEILINGS.iter().find(|fact| fact.name == name)
}

/// The series of that name.
pub fn find_series(name: &str) -> Option<&'static Series> {
    SERIES.iter().find(|series| series.name == name)
}

/// The fact of that name.
pub fn find_fact(name: &str) -> Option<&'static Fact> {
    FACTS.iter().find(|fact| fact.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_snake_case() {
        let mut names: Vec<_> =
            SERIES.iter().map(|s| s.name).chain(FACTS.iter().chain(CEILINGS).map(|f| f.name)).collect();
        assert!(names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn exceptions_name_series_that_exist() {
        for name in NEED_DECODE.iter().chain(MAY_BE_ZERO) {
            assert!(find_series(name).is_some(), "{name}");
        }
        for name in IDENTITY {
            assert!(find_fact(name).is_some(), "{name}");
        }
    }
}
