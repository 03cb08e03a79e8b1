//! Figures of the category `power`: one row each. What is measured and what is estimated have names of their own.

use Better::{Higher, Lower, Neither};

use super::{Better, Fact, FactKind, Series};
use crate::cell::Category;

/// Series, in the order of their columns.
pub(super) const SERIES: &[Series] = &[
    series(
        "prefill_energy_joules_per_token",
        "J/token",
        Lower,
        "Energy of a block of prefills ÷ prompt tokens of all its sequences and runs; what is counted stands in `power_counted`.",
    ),
    series(
        "prefill_energy_above_idle_joules_per_token",
        "J/token",
        Lower,
        "The same less the idle power before the block × the block's seconds; within the meter's error it may be negative.",
    ),
    series("prefill_tokens_per_joule", "tokens/J", Higher, "Prompt tokens ÷ energy of a block of prefills."),
    series("prefill_power_watts", "W", Neither, "Mean power of a block of prefills: energy ÷ seconds."),
    series(
        "prefill_peak_power_watts",
        "W",
        Neither,
        "Largest mean power in a block of prefills over any window of `power_peak_window_seconds` or more.",
    ),
    series(
        "prefill_energy_delay_product_joule_seconds",
        "J·s",
        Lower,
        "Energy × time of one prefill of the whole batch, both means over the block.",
    ),
    series(
        "prefill_idle_power_watts",
        "W",
        Neither,
        "Mean power before a block of prefills, over `idle_seconds` of sleep with the model loaded.",
    ),
    series("prefill_block_seconds", "s", Neither, "Seconds of work of a block of prefills, measured or estimated."),
    series(
        "decode_energy_joules_per_token",
        "J/token",
        Lower,
        "Energy of a block of decode steps ÷ tokens of all its sequences and runs; what is counted stands in `power_counted`.",
    ),
    series(
        "decode_energy_above_idle_joules_per_token",
        "J/token",
        Lower,
        "The same less the idle power before the block × the block's seconds; within the meter's error it may be negative.",
    ),
    series("decode_tokens_per_joule", "tokens/J", Higher, "Tokens ÷ energy of a block of decode steps."),
    series("decode_power_watts", "W", Neither, "Mean power of a block of decode steps: energy ÷ seconds."),
    series(
        "decode_peak_power_watts",
        "W",
        Neither,
        "Largest mean power in a block of decode steps over any window of `power_peak_window_seconds` or more.",
    ),
    series(
        "decode_energy_delay_product_joule_seconds",
        "J·s",
        Lower,
        "Energy × time of all decode steps behind one prompt for the whole batch, both means over the block.",
    ),
    series(
        "decode_idle_power_watts",
        "W",
        Neither,
        "Mean power before a block of decode steps, over `idle_seconds` of sleep with the model loaded.",
    ),
    series("decode_block_seconds", "s", Neither, "Seconds of work of a block of decode steps, measured or estimated."),
    series(
        "graph_energy_joules_per_run",
        "J/run",
        Lower,
        "Of a graph: energy of a block of runs ÷ runs; what is counted stands in `power_counted`.",
    ),
    series(
        "graph_energy_above_idle_joules_per_run",
        "J/run",
        Lower,
        "The same less the idle power before the block × the block's seconds; within the meter's error it may be negative.",
    ),
    series("graph_runs_per_joule", "runs/J", Higher, "Of a graph: runs ÷ energy of a block of runs."),
    series("graph_power_watts", "W", Neither, "Of a graph: mean power of a block of runs, energy ÷ seconds."),
    series(
        "graph_peak_power_watts",
        "W",
        Neither,
        "Of a graph: largest mean power in a block of runs over any window of `power_peak_window_seconds` or more.",
    ),
    series(
        "graph_energy_delay_product_joule_seconds",
        "J·s",
        Lower,
        "Of a graph: energy × time of one run, both means over the block.",
    ),
    series(
        "graph_idle_power_watts",
        "W",
        Neither,
        "Of a graph: mean power before a block of runs, over `idle_seconds` of sleep with the graph loaded.",
    ),
    series(
        "graph_block_seconds",
        "s",
        Neither,
        "Of a graph: seconds of work of a block of runs, measured or estimated.",
    ),
    series(
        "estimated_prefill_energy_joules_per_token",
        "J/token",
        Lower,
        "No measurement: seconds of the processor that the process and its children used in a block of prefills × `power_estimate_watts_per_cpu` ÷ prompt tokens.",
    ),
    series(
        "estimated_prefill_tokens_per_joule",
        "tokens/J",
        Higher,
        "No measurement: prompt tokens ÷ estimated energy of a block of prefills.",
    ),
    series(
        "estimated_prefill_power_watts",
        "W",
        Neither,
        "No measurement: estimated energy of a block of prefills ÷ seconds.",
    ),
    series(
        "estimated_prefill_energy_delay_product_joule_seconds",
        "J·s",
        Lower,
        "No measurement: estimated energy × time of one prefill of the whole batch.",
    ),
    series(
        "estimated_decode_energy_joules_per_token",
        "J/token",
        Lower,
        "No measurement: seconds of the processor that the process and its children used in a block of decode steps × `power_estimate_watts_per_cpu` ÷ tokens.",
    ),
    series(
        "estimated_decode_tokens_per_joule",
        "tokens/J",
        Higher,
        "No measurement: tokens ÷ estimated energy of a block of decode steps.",
    ),
    series(
        "estimated_decode_power_watts",
        "W",
        Neither,
        "No measurement: estimated energy of a block of decode steps ÷ seconds.",
    ),
    series(
        "estimated_decode_energy_delay_product_joule_seconds",
        "J·s",
        Lower,
        "No measurement: estimated energy × time of all decode steps behind one prompt for the whole batch.",
    ),
    series(
        "estimated_graph_energy_joules_per_run",
        "J/run",
        Lower,
        "No measurement: seconds of the processor that the process and its children used in a block of runs × `power_estimate_watts_per_cpu` ÷ runs.",
    ),
    series(
        "estimated_graph_runs_per_joule",
        "runs/J",
        Higher,
        "No measurement: runs ÷ estimated energy of a block of runs.",
    ),
    series(
        "estimated_graph_power_watts",
        "W",
        Neither,
        "No measurement: estimated energy of a block of runs ÷ seconds.",
    ),
    series(
        "estimated_graph_energy_delay_product_joule_seconds",
        "J·s",
        Lower,
        "No measurement: estimated energy × time of one run.",
    ),
];

/// Facts, in the order of their columns.
pub(super) const FACTS: &[Fact] = &[
    fact(
        "power_source",
        FactKind::Text,
        "Where the energy's figures come from: `rapl`, `amd_energy`, `nvml`, `hwmon`, `battery`, or `estimate`, which fills the columns `estimated_…` alone. With a GPU's meter and the processor's: `nvml + rapl`.",
    ),
    fact("power_counted", FactKind::Text, "The domains whose energy is added up, e.g. `package-0, dram of package-0`."),
    fact(
        "power_domains",
        FactKind::Text,
        "Every domain that was read with its mean power in prefill and decode, those that are not added up among them (parts of others, or what contains them).",
    ),
    fact(
        "prefill_processor_joules_per_token",
        FactKind::Score,
        "The processor's share of `prefill_energy_joules_per_token`, over all blocks; empty where it has no domain of its own.",
    ),
    fact("prefill_dram_joules_per_token", FactKind::Score, "The memory's share."),
    fact("prefill_gpu_joules_per_token", FactKind::Score, "The GPU's share."),
    fact(
        "decode_processor_joules_per_token",
        FactKind::Score,
        "The processor's share of `decode_energy_joules_per_token`, over all blocks; empty where it has no domain of its own.",
    ),
    fact("decode_dram_joules_per_token", FactKind::Score, "The memory's share."),
    fact("decode_gpu_joules_per_token", FactKind::Score, "The GPU's share."),
    fact(
        "graph_processor_joules_per_run",
        FactKind::Score,
        "The processor's share of `graph_energy_joules_per_run`, over all blocks; empty where it has no domain of its own.",
    ),
    fact("graph_dram_joules_per_run", FactKind::Score, "The memory's share."),
    fact("graph_gpu_joules_per_run", FactKind::Score, "The GPU's share."),
    fact(
        "power_update_seconds",
        FactKind::Float,
        "Median time between two changes of the slowest counted meter, measured with the model loaded and idle; a block lasts 100 of them at least.",
    ),
    fact("power_sampling_seconds", FactKind::Float, "Time between two readings of the sampling thread."),
    fact("power_peak_window_seconds", FactKind::Float, "The shortest window over which peak power is a mean."),
    fact("power_read_seconds", FactKind::Float, "Mean time of the sampling thread's reading of all meters."),
    fact(
        "power_sampler_cpu_share",
        FactKind::Score,
        "Processor time of the sampling thread ÷ time: its share of one processor.",
    ),
    fact(
        "power_sampler_watts",
        FactKind::Score,
        "Power of the sampling itself: energy above idle of a reading (from reading without a pause for 100 updates) × readings a second. Within the meter's error it may be negative; empty where 100 updates take longer than 2 s.",
    ),
    fact(
        "power_estimate_watts_per_cpu",
        FactKind::Float,
        "The wattage of a busy logical processor that the matrix states; empty where energy was measured.",
    ),
];

/// Whether a series is there or not as the meter has it.
pub fn depends_on_meter(series: &str) -> bool {
    !series.ends_with("_block_seconds") && SERIES.iter().any(|known| known.name == series)
}

/// Whether a series stands for an estimate and not for a measurement.
pub fn is_estimate(series: &str) -> bool {
    series.starts_with("estimated_")
}

const fn series(name: &'static str, unit: &'static str, better: Better, description: &'static str) -> Series {
    Series { name, unit, category: Some(Category::Power), better, description, percentiles: false }
}

const fn fact(name: &'static str, kind: FactKind, description: &'static str) -> Fact {
    Fact { name, kind, category: Some(Category::Power), description }
}
