//! Figures measured many times: one row each.

use Better::{Higher, Lower, Neither};
use Category::{Memory, Speed, Throughput};

use super::{Better, Series, joined, power};
use crate::cell::{Category, Cell};

/// Every series, in the order of their columns.
pub const SERIES: &[Series] = &joined::<_, { GENERAL.len() + power::SERIES.len() }>(GENERAL, power::SERIES);

const GENERAL: &[Series] = &[
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
        "The cold first prefill of a process, right after the load; of a graph, its first run; one value a process.",
    ),
    series(
        "ttft_seconds",
        "s",
        Some(Speed),
        Lower,
        true,
        "Time to first token: from the request, tokenization and the work on its image included, to the first token chosen.",
    ),
    series(
        "prefill_seconds",
        "s",
        Some(Speed),
        Lower,
        true,
        "The decoder's run over the whole prompt, without tokenization, sampling and the vision tower.",
    ),
    series(
        "image_preparation_seconds",
        "s",
        Some(Speed),
        Lower,
        false,
        "Resizing, normalizing and cutting the images of all sequences into patches; part of TTFT. Empty for prompts of text.",
    ),
    series(
        "vision_seconds",
        "s",
        Some(Speed),
        Lower,
        false,
        "The vision tower's runs over the images of all sequences, one after the other; part of TTFT. Empty for prompts of text.",
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
        "latency_seconds",
        "s",
        Some(Speed),
        Lower,
        true,
        "One run of a graph on inputs that are bound; of runs that are timed together (`runs_per_timing`), their mean.",
    ),
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
        "runs_per_second",
        "runs/s",
        Some(Throughput),
        Higher,
        false,
        "Runs of a graph ÷ their time, in a closed loop; a value for each block of timings.",
    ),
    series(
        "items_per_second",
        "items/s",
        Some(Throughput),
        Higher,
        false,
        "The same times the items of a run, where the matrix says how many (`items`).",
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
    series(
        "vision_peak_anonymous_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Largest RssAnon while the vision tower ran, read every 10 ms and at its end. Empty for prompts of text.",
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
        "first_run_peak_anonymous_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Largest RssAnon during the first run of a graph, binding its inputs included.",
    ),
    series(
        "steady_anonymous_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "RssAnon while a graph runs again and again (median of the phase's samples).",
    ),
    series(
        "steady_file_backed_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "RssFile while a graph runs again and again (median of the phase's samples).",
    ),
    series(
        "steady_pss_bytes",
        "bytes",
        Some(Memory),
        Lower,
        false,
        "Proportional set size after the last of these runs (smaps_rollup).",
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

/// Series that a cell without decode steps (one generated token) legitimately leaves empty.
const NEED_DECODE: &[&str] = &[
    "itl_seconds",
    "tpot_seconds",
    "decode_tokens_per_second",
    "impact_decode_tokens_per_second",
    "decode_anonymous_bytes",
    "decode_file_backed_bytes",
    "decode_pss_bytes",
    "decode_energy_joules_per_token",
    "decode_energy_above_idle_joules_per_token",
    "graph_energy_above_idle_joules_per_run",
    "decode_tokens_per_joule",
    "decode_power_watts",
    "decode_peak_power_watts",
    "decode_energy_delay_product_joule_seconds",
    "decode_idle_power_watts",
    "decode_block_seconds",
    "estimated_decode_energy_joules_per_token",
    "estimated_decode_tokens_per_joule",
    "estimated_decode_power_watts",
    "estimated_decode_energy_delay_product_joule_seconds",
];

/// Series that a cell without an image legitimately leaves empty.
const NEED_IMAGE: &[&str] = &["image_preparation_seconds", "vision_seconds", "vision_peak_anonymous_bytes"];

/// Series that only graphs have.
const ONLY_OF_GRAPHS: &[&str] = &[
    "latency_seconds",
    "runs_per_second",
    "items_per_second",
    "first_run_peak_anonymous_bytes",
    "steady_anonymous_bytes",
    "steady_file_backed_bytes",
    "steady_pss_bytes",
    "graph_energy_joules_per_run",
    "graph_energy_above_idle_joules_per_run",
    "graph_runs_per_joule",
    "graph_power_watts",
    "graph_peak_power_watts",
    "graph_energy_delay_product_joule_seconds",
    "graph_idle_power_watts",
    "graph_block_seconds",
    "estimated_graph_energy_joules_per_run",
    "estimated_graph_runs_per_joule",
    "estimated_graph_power_watts",
    "estimated_graph_energy_delay_product_joule_seconds",
];

/// Series that graphs have as well as language models.
const OF_GRAPHS_TOO: &[&str] = &[
    "load_seconds",
    "first_run_seconds",
    "baseline_rss_bytes",
    "peak_rss_bytes",
    "peak_rss_above_baseline_bytes",
    "peak_anonymous_bytes",
    "peak_file_backed_bytes",
    "loaded_anonymous_bytes",
    "loaded_file_backed_bytes",
    "major_faults",
    "minor_faults",
    "disk_read_bytes",
];

/// Whether a cell leaves this series empty: it is of the other kind of model, without decode steps, without an image, or
/// without a number of items.
pub fn is_empty_for(series: &str, cell: &Cell) -> bool {
    if let Some(graph) = &cell.graph {
        let of_graphs = ONLY_OF_GRAPHS.contains(&series) || OF_GRAPHS_TOO.contains(&series);
        return !of_graphs || (series == "items_per_second" && graph.items.is_none());
    }
    let workload = &cell.workload;
    ONLY_OF_GRAPHS.contains(&series)
        || (workload.generate_tokens <= 1 && NEED_DECODE.contains(&series))
        || (workload.image.is_none() && NEED_IMAGE.contains(&series))
}

/// Names of the lists above.
#[cfg(test)]
pub(super) fn exceptions() -> impl Iterator<Item = &'static &'static str> {
    NEED_DECODE.iter().chain(NEED_IMAGE).chain(ONLY_OF_GRAPHS).chain(OF_GRAPHS_TOO)
}

/// Series in which zero can be true, beside those of [`MAY_BE_NEGATIVE`]. In all others a zero shows that nothing was
/// measured.
pub const MAY_BE_ZERO: &[&str] = &[
    "major_faults",
    "minor_faults",
    "disk_read_bytes",
    "impact_read_bytes",
    // The allocator may place a small cache in pages that are resident already.
    "cache_measured_bytes",
];

/// Series in which a negative value can be true: differences of two measurements.
pub const MAY_BE_NEGATIVE: &[&str] = &[
    "prefill_energy_above_idle_joules_per_token",
    "decode_energy_above_idle_joules_per_token",
    "graph_energy_above_idle_joules_per_run",
];

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
