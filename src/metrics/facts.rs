//! Figures and words that a process gives once: one row each.

use Category::{Accuracy, Operators, Speed};

use super::{Fact, FactKind, impact, joined, optimizations, power};
use crate::cell::Category;

/// Every fact, in the order of their columns.
pub const FACTS: &[Fact] = &joined::<_, { OF_CELLS.len() + OF_IMPACT.len() }>(OF_CELLS, OF_IMPACT);

const OF_CELLS: &[Fact] = &joined::<_, { GENERAL.len() + power::FACTS.len() }>(GENERAL, power::FACTS);

const OF_IMPACT: &[Fact] =
    &joined::<_, { impact::FACTS.len() + optimizations::FACTS.len() }>(impact::FACTS, optimizations::FACTS);

const GENERAL: &[Fact] = &[
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
        "engine_cache",
        FactKind::Text,
        None,
        "Of a TensorRT cell, by its first process: `built` where engines were built when the model was loaded, `reused` where all lay in the cache of an earlier run, `none` where TensorRT took no part of the graph.",
    ),
    fact(
        "engine_build_seconds",
        FactKind::Float,
        None,
        "Of a TensorRT cell whose engines were built: seconds in which that process's sessions were created, which are in its `load_seconds` too; empty where engines were reused.",
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
        "SHA-256 of the package's manifest, which holds the hashes of its files; of a graph, of the hashes of its ONNX file and of the files beside it that hold its constants.",
    ),
    fact("package_weights", FactKind::Text, None, "`checkpoint`, `random`, or `random, router skewed`."),
    fact("parameters_total", FactKind::Integer, None, "Weights of the model, tied weights once."),
    fact("graph_nodes", FactKind::Integer, None, "Nodes of a graph as its file has them, before any optimization."),
    fact(
        "inputs_hash",
        FactKind::Text,
        None,
        "First 16 digits of the SHA-256 over names, types, shapes and elements of a graph's inputs: equal ones were fed the same.",
    ),
    fact(
        "runs_per_timing",
        FactKind::Integer,
        None,
        "Runs of a graph that were timed together, because one is too short for the clock or there would be too many samples.",
    ),
    fact("parameters_active_per_token", FactKind::Integer, None, "Weights that one decoded token multiplies with."),
    fact(
        "package_bytes",
        FactKind::Integer,
        None,
        "Size of the package's files; of a graph, of its file and those beside it.",
    ),
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
    fact("gpu_name", FactKind::Text, None, "The GPU that a cell on CUDA or TensorRT ran on, as NVML names it."),
    fact(
        "gpu_process_peak_bytes",
        FactKind::Integer,
        None,
        "The most memory of the GPU that a process of the cell held, by NVML every 100 ms from the end of the load or the warm-up on; empty where NVML does not see the process (containers).",
    ),
    fact("gpu_used_peak_bytes", FactKind::Integer, None, "The same of all processes together, and the driver."),
    fact(
        "gpu_sm_clock_mhz",
        FactKind::Float,
        None,
        "Clock of the GPU's multiprocessors while the cell's first category was measured (median), by NVML as the next ones.",
    ),
    fact("gpu_memory_clock_mhz", FactKind::Float, None, "Clock of its memory (median)."),
    fact("gpu_temperature_celsius", FactKind::Float, None, "Its temperature (largest)."),
    fact(
        "gpu_utilization_share",
        FactKind::Score,
        None,
        "Share of the time during which a kernel ran on it (mean of the driver's own means).",
    ),
    fact(
        "gpu_throttled_by",
        FactKind::Text,
        None,
        "What kept its clocks down, with the share of readings, e.g. `power cap 35 %`; `nothing` where nothing did.",
    ),
    fact(
        "cold_start_cached_bytes",
        FactKind::Integer,
        None,
        "Of a cell with `memory_limit`: bytes of the package that stayed in the page cache when they were put out of it before the process; 0 is a cold start.",
    ),
    fact(
        "cgroup_peak_bytes",
        FactKind::Integer,
        None,
        "Of a cell with `memory_limit`: the most that the process's control group held, page cache included; the largest of its processes.",
    ),
    fact(
        "peak_anon_bytes",
        FactKind::Integer,
        None,
        "Of a cell with an axis of memory: largest RssAnon of any of its processes, looked at from outside every 100 ms.",
    ),
    fact(
        "peak_file_bytes",
        FactKind::Integer,
        None,
        "The same of RssFile and RssShmem: mapped files, of which the page cache may hold more.",
    ),
    fact(
        "bytes_read_per_token",
        FactKind::Score,
        Some(Speed),
        "Of a pack, over all measured decode steps (those of `throughput` where `speed` is not asked for), as the next ones: bytes of records read ÷ tokens generated by all sequences.",
    ),
    fact(
        "disk_read_bytes_per_second",
        FactKind::Float,
        Some(Speed),
        "Bytes of records read ÷ the time during which at least one read was under way.",
    ),
    fact(
        "disk_busy_share",
        FactKind::Score,
        Some(Speed),
        "Share of the decode time during which at least one read was under way.",
    ),
    fact("wait_share", FactKind::Score, Some(Speed), "Share of the decode time spent waiting for records."),
    fact(
        "expert_hit_rate",
        FactKind::Score,
        Some(Speed),
        "Routed experts that were in memory when they were asked for ÷ those asked for; empty without a mixture.",
    ),
    fact(
        "guess_precision",
        FactKind::Score,
        Some(Speed),
        "Experts read on a guess that were then asked for ÷ those read on a guess; empty without guesses.",
    ),
    fact(
        "evictions_per_token",
        FactKind::Score,
        Some(Speed),
        "Records dropped to make room ÷ tokens generated by all sequences.",
    ),
    fact("prefill_read_bytes", FactKind::Integer, Some(Speed), "Mean bytes of records that a measured prefill read."),
    fact("held_bytes", FactKind::Integer, Some(Speed), "Bytes of records in memory at the end."),
    fact(
        "held_peak_bytes",
        FactKind::Integer,
        Some(Speed),
        "The most bytes of records in memory since the pack was loaded.",
    ),
    fact(
        "spilled_bytes_per_token",
        FactKind::Score,
        Some(Speed),
        "Of a cell with `offload: disk`: bytes of caches written to the disk ÷ tokens generated by all sequences.",
    ),
    fact("spill_read_bytes_per_token", FactKind::Score, Some(Speed), "The same of bytes of caches read back."),
    fact(
        "loader_reads",
        FactKind::Text,
        None,
        "How the loader of a pack reads here: `pool` (threads), `uring` or `mmap`, and whether past the page cache (`direct`) or through it.",
    ),
    fact("pinned_bytes", FactKind::Integer, None, "Bytes of records of a pack that stay in memory."),
    fact(
        "streamed_bytes_per_pass",
        FactKind::Integer,
        None,
        "Stored bytes of a pack's dense records that each pass reads again.",
    ),
    fact("expert_slots", FactKind::Integer, None, "Experts of the most common size for which there is room in memory."),
    fact(
        "prompt_repetition",
        FactKind::Text,
        None,
        "`rotating`: each repetition of `speed` and `throughput` has another prompt; `identical`: all have the same.",
    ),
    fact(
        "fed_tokens",
        FactKind::Text,
        None,
        "`greedy`: `speed` and `throughput` feed the likeliest token; `drawn`: tokens of a seeded generator, since random weights answer in loops. The choice is computed and hashed all the same.",
    ),
    fact(
        "disk_bandwidth_bytes_per_second",
        FactKind::Float,
        None,
        "What the disk of a pack gives, past the page cache, in reads as the loader makes them: of its own shards in drawn order, at most 3 s, after the measurement and without the model in memory.",
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
    fact(
        "accuracy_score",
        FactKind::Score,
        Some(Accuracy),
        "Mean over the cell's tasks, but for perplexities, of the figure that stands for each (tasks.csv has them all).",
    ),
    fact(
        "accuracy_score_stderr",
        FactKind::Score,
        Some(Accuracy),
        "Standard error of that mean, tasks taken as independent: √Σ stderr² ÷ tasks.",
    ),
    fact("accuracy_tasks", FactKind::Text, Some(Accuracy), "Each task's score, its standard error and its items."),
    fact("accuracy_items", FactKind::Integer, Some(Accuracy), "Items scored, over all tasks."),
    fact(
        "accuracy_truncated_items",
        FactKind::Integer,
        Some(Accuracy),
        "Items of which a request was cut from the left to fit the context.",
    ),
    fact("accuracy_scoring_seconds", FactKind::Float, Some(Accuracy), "Wall time of all tasks, without loading."),
    fact(
        "accuracy_gate",
        FactKind::Text,
        Some(Accuracy),
        "`pass` or `fail`: whether every task keeps the matrix's `accuracy_floor`, of a graph whether every output is within its tolerances; empty without a floor or a reference.",
    ),
    fact(
        "accuracy_gate_detail",
        FactKind::Text,
        Some(Accuracy),
        "The task that is furthest below its reference, with both scores, and the floor; of a graph, the output and the element that are furthest beyond their tolerance.",
    ),
    fact(
        "accuracy_of_reference_ratio",
        FactKind::Score,
        Some(Accuracy),
        "The smallest ratio of a task's score to the reference's (for perplexities, the reference's to the cell's); empty where the reference's score is 0.",
    ),
    fact(
        "answer_flips",
        FactKind::Integer,
        Some(Accuracy),
        "Items, over all tasks, that are right in one and wrong in the other of cell and reference.",
    ),
    fact("answer_flips_to_right", FactKind::Integer, Some(Accuracy), "Of these, from wrong to right."),
    fact("answer_flips_to_wrong", FactKind::Integer, Some(Accuracy), "Of these, from right to wrong."),
    fact(
        "answers_changed",
        FactKind::Integer,
        Some(Accuracy),
        "Items with another answer than the reference's, those that are wrong in both among them.",
    ),
    fact("flip_items", FactKind::Integer, Some(Accuracy), "Items that can flip: documents of perplexities cannot."),
    fact("reference_cell", FactKind::Text, Some(Accuracy), "The cell whose answers this one is compared with."),
    fact(
        "outputs_compared",
        FactKind::Integer,
        Some(Accuracy),
        "Outputs of a graph that were compared, as the next ones: with those of the reference cell, or with expected ones of a file.",
    ),
    fact("output_elements", FactKind::Integer, Some(Accuracy), "Elements of these outputs."),
    fact(
        "output_mismatches",
        FactKind::Integer,
        Some(Accuracy),
        "Elements with |found − expected| > atol + rtol × |expected|, and such as are finite in one only.",
    ),
    fact(
        "output_max_absolute_difference",
        FactKind::Score,
        Some(Accuracy),
        "Largest |found − expected| over finite elements of all outputs.",
    ),
    fact(
        "output_max_relative_difference",
        FactKind::Score,
        Some(Accuracy),
        "Largest |found − expected| ÷ |expected| over finite elements with another expected value than 0.",
    ),
    fact(
        "output_min_cosine",
        FactKind::Score,
        Some(Accuracy),
        "Smallest cosine similarity of an output of floats with what is expected.",
    ),
    fact("worst_output", FactKind::Text, Some(Accuracy), "The output of the worst element; empty where all are equal."),
    fact(
        "worst_element",
        FactKind::Text,
        Some(Accuracy),
        "The element with the largest difference in units of its tolerance: its index, its value and the expected one.",
    ),
    fact(
        "output_differences",
        FactKind::Text,
        Some(Accuracy),
        "Of each output (the first eight): elements beyond the tolerance, largest differences, cosine.",
    ),
    fact("profiled_runs", FactKind::Integer, Some(Operators), "Runs of a graph that ONNX Runtime's profile covers."),
    fact(
        "top_operators",
        FactKind::Text,
        Some(Operators),
        "The five operators that take most of the time of all nodes, with their share; operators.csv has the nodes.",
    ),
    fact("fidelity_tokens", FactKind::Integer, Some(Accuracy), "Tokens over which distributions were compared."),
    fact(
        "kl_divergence_mean",
        FactKind::Score,
        Some(Accuracy),
        "Mean of KL(reference ‖ cell) over the tokens, in nats; the reference's logits are stored as docs/accuracy.md says.",
    ),
    fact(
        "kl_divergence_mean_stderr",
        FactKind::Score,
        Some(Accuracy),
        "Its standard error, tokens taken as independent.",
    ),
    fact("kl_divergence_median", FactKind::Score, Some(Accuracy), "Median over the tokens, in nats."),
    fact("kl_divergence_p90", FactKind::Score, Some(Accuracy), "90th percentile over the tokens, in nats."),
    fact("kl_divergence_p99", FactKind::Score, Some(Accuracy), "99th percentile; empty below 100 tokens."),
    fact("kl_divergence_max", FactKind::Score, Some(Accuracy), "Largest over the tokens, in nats."),
    fact(
        "top1_agreement_share",
        FactKind::Score,
        Some(Accuracy),
        "Share of tokens at which cell and reference choose the same next token.",
    ),
    fact("top1_agreement_stderr", FactKind::Score, Some(Accuracy), "Its standard error: √(p(1−p)/(n−1))."),
    fact(
        "top5_overlap_share",
        FactKind::Score,
        Some(Accuracy),
        "Mean share of the reference's five likeliest tokens that are among the cell's.",
    ),
    fact(
        "rms_probability_difference",
        FactKind::Score,
        Some(Accuracy),
        "Root mean square, over the tokens, of the difference in the probability of the text's own next token.",
    ),
    fact(
        "max_logit_difference",
        FactKind::Score,
        Some(Accuracy),
        "Largest difference of a log-probability among the tokens that the reference keeps exactly (its likeliest).",
    ),
    fact(
        "perplexity",
        FactKind::Float,
        Some(Accuracy),
        "exp of the mean negative log-likelihood of the fidelity text.",
    ),
    fact("reference_perplexity", FactKind::Float, Some(Accuracy), "The same of the reference."),
    fact("perplexity_ratio", FactKind::Float, Some(Accuracy), "Perplexity ÷ the reference's, over the same tokens."),
    fact(
        "perplexity_ratio_stderr",
        FactKind::Score,
        Some(Accuracy),
        "Its standard error by the delta method over paired tokens: ratio × stderr of the mean difference of log-likelihoods.",
    ),
    fact(
        "greedy_generations",
        FactKind::Integer,
        Some(Accuracy),
        "Greedy continuations compared with the reference's.",
    ),
    fact(
        "greedy_identical_share",
        FactKind::Score,
        Some(Accuracy),
        "Share of them in which every token is the reference's.",
    ),
    fact(
        "first_divergent_token_min",
        FactKind::Integer,
        Some(Accuracy),
        "Smallest index, from 0, at which a continuation leaves the reference's; empty where none does.",
    ),
    fact(
        "first_divergent_token_median",
        FactKind::Score,
        Some(Accuracy),
        "Median index over the continuations that leave the reference's; empty where none does.",
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
pub const IDENTITY: &[&str] = &["package_hash", "inputs_hash", "runtime_version", "runtime_build"];

const fn fact(name: &'static str, kind: FactKind, category: Option<Category>, description: &'static str) -> Fact {
    Fact { name, kind, category, description }
}
