//! What cannot be true is not published: a measured job is looked over before its figures count.

use std::collections::BTreeMap;

use crate::cell::{Category, Cell, ImpactMetric, ProviderKind};
use crate::metrics::{self, FactKind, IMPACT_SERIES, SERIES, Series};
use crate::protocol::FactValue;
use crate::results::{SampleRun, validate_power};

/// A timing must be this many steps of the clock long, so that the clock's step is at most one percent of it.
const CLOCK_STEPS: f64 = 100.0;

/// Checks the figures of one job that says it measured `category`.
///
/// # Errors
/// The sentence that becomes the `invalid` cell's reason.
pub fn check(
    cell: &Cell,
    category: Category,
    facts: &BTreeMap<String, FactValue>,
    samples: &[SampleRun],
) -> Result<(), String> {
    for fact in facts {
        check_fact(fact.0, fact.1)?;
    }
    for run in samples {
        check_values(run)?;
    }
    for series in SERIES.iter().chain(IMPACT_SERIES).filter(|series| series.category.is_none_or(|of| of == category)) {
        check_present(cell, series, samples)?;
    }
    check_clock(category, facts, samples)?;
    if category == Category::Power {
        validate_power::check(cell, facts, samples)?;
    }
    check_memory_contains_weights(cell, facts, samples)
}

/// Checks the kind and the value of one fact.
///
/// # Errors
/// As [`check`].
pub fn check_fact(name: &str, value: &FactValue) -> Result<(), String> {
    let fact = metrics::find_fact(name)
        .or_else(|| metrics::find_ceiling(name))
        .ok_or_else(|| format!("the worker reported a fact `{name}` that this program does not know"))?;
    match (fact.kind, value) {
        (FactKind::Score, FactValue::Float(value)) if !value.is_finite() => Err(format!("`{name}` is not finite")),
        (FactKind::Score, FactValue::Float(_) | FactValue::Integer(_)) => Ok(()),
        (FactKind::Float, FactValue::Integer(0)) => Err(format!("`{name}` is 0")),
        (FactKind::Float, FactValue::Float(value)) if !value.is_finite() => Err(format!("`{name}` is not finite")),
        (FactKind::Float, FactValue::Float(value)) if *value <= 0.0 => Err(format!("`{name}` is {value}")),
        (FactKind::Float, FactValue::Float(_) | FactValue::Integer(_))
        | (FactKind::Integer, FactValue::Integer(_))
        | (FactKind::Text, FactValue::Text(_))
        | (FactKind::Bool, FactValue::Bool(_)) => Ok(()),
        (kind, value) => Err(format!("`{name}` should be of kind {kind:?} and is {value:?}")),
    }
}

fn check_values(run: &SampleRun) -> Result<(), String> {
    let name = run.metric;
    let negative_allowed = metrics::MAY_BE_NEGATIVE.contains(&name);
    let zero_allowed = negative_allowed || metrics::MAY_BE_ZERO.contains(&name);
    for &value in &run.values {
        if !value.is_finite() {
            return Err(format!("`{name}` has a value that is not finite, in repetition {}", run.repetition));
        }
        if (value < 0.0 && !negative_allowed) || (value == 0.0 && !zero_allowed) {
            return Err(format!("`{name}` has the value {value}, in repetition {}", run.repetition));
        }
    }
    Ok(())
}

fn check_present(cell: &Cell, series: &Series, samples: &[SampleRun]) -> Result<(), String> {
    // Not every kernel counts a process's reads.
    let may_lack = metrics::is_empty_for(series.name, cell)
        || metrics::depends_on_meter(series.name)
        || series.name == ImpactMetric::BytesRead.name();
    let present = samples.iter().any(|run| run.metric == series.name && !run.values.is_empty());
    if present || may_lack { Ok(()) } else { Err(format!("no sample of `{}` was measured", series.name)) }
}

/// The worker repeats what is short inside one timing and divides, so the shortest timing is its own fact. Where it is
/// not given, every duration was timed by itself.
fn check_clock(category: Category, facts: &BTreeMap<String, FactValue>, samples: &[SampleRun]) -> Result<(), String> {
    if category == Category::Memory {
        return Ok(());
    }
    let number = |name: &str| match facts.get(name) {
        Some(FactValue::Float(value)) => Some(*value),
        Some(FactValue::Integer(value)) => Some(*value as f64),
        _ => None,
    };
    let Some(resolution) = number("clock_resolution_seconds") else {
        return Err("the clock's resolution was not measured".to_owned());
    };
    let is_duration = |run: &&SampleRun| metrics::find_series(run.metric).is_some_and(|series| series.unit == "s");
    let durations =
        samples.iter().filter(is_duration).flat_map(|run| run.values.iter().map(|value| (run.metric, *value)));
    let shortest = match number("smallest_timing_seconds") {
        Some(timing) => Some(("smallest_timing_seconds", timing)),
        None => durations.min_by(|a, b| a.1.total_cmp(&b.1)),
    };
    match shortest {
        Some((name, value)) if value < CLOCK_STEPS * resolution => {
            Err(format!("`{name}` is {value} s, less than {CLOCK_STEPS} steps of the clock ({resolution} s each)"))
        }
        _ => Ok(()),
    }
}

/// A process that decoded with weights in host memory had at least one step's weights resident at its peak, unless it
/// had less memory, or reads them while it runs.
fn check_memory_contains_weights(
    cell: &Cell,
    facts: &BTreeMap<String, FactValue>,
    samples: &[SampleRun],
) -> Result<(), String> {
    let Some(FactValue::Integer(weights)) = facts.get("weights_bytes_per_step") else { return Ok(()) };
    if !weights_in_host_memory(cell) || !cell.holds_all_weights() {
        return Ok(());
    }
    let peaks = samples.iter().filter(|run| run.metric == "peak_rss_bytes").flat_map(|run| &run.values);
    match peaks.copied().find(|peak| *peak < *weights as f64) {
        Some(peak) => {
            Err(format!("`peak_rss_bytes` is {peak} and does not contain the {weights} bytes of weights read per step"))
        }
        None => Ok(()),
    }
}

/// True when the provider computes on the processor, out of the process's own memory.
pub fn weights_in_host_memory(cell: &Cell) -> bool {
    match cell.backend.provider {
        ProviderKind::Cpu => true,
        ProviderKind::OpenVino => {
            cell.backend.options.get("device_type").is_none_or(|device| device.to_ascii_uppercase().starts_with("CPU"))
        }
        ProviderKind::Cuda | ProviderKind::TensorRt | ProviderKind::Plugin => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::{self, facts};

    fn samples(cell: &Cell, category: Category) -> Vec<SampleRun> {
        let known = |(metric, repetition, values): (&str, u32, Vec<f64>)| SampleRun {
            metric: metrics::find_series(metric).expect("a known series").name,
            repetition,
            values,
        };
        fake::samples(cell, category, 0).into_iter().map(known).collect()
    }

    fn reason(category: Category, edit: impl FnOnce(&mut BTreeMap<String, FactValue>, &mut Vec<SampleRun>)) -> String {
        let cell = fake::cell("a", "cpu");
        let (mut facts, mut samples) = (facts(&cell), samples(&cell, category));
        edit(&mut facts, &mut samples);
        check(&cell, category, &facts, &samples).expect_err("should be invalid")
    }

    fn set(samples: &mut [SampleRun], metric: &str, value: f64) {
        samples.iter_mut().find(|run| run.metric == metric).expect("the series").values[0] = value;
    }

    #[test]
    fn plausible_figures_pass() {
        let cell = fake::cell("a", "cpu");
        for &category in Category::ALL {
            assert_eq!(check(&cell, category, &facts(&cell), &samples(&cell, category)), Ok(()));
        }
    }

    #[test]
    fn what_cannot_be_true_is_named() {
        use Category::{Memory, Speed};
        let cases = [
            (reason(Speed, |_, s| set(s, "ttft_seconds", 0.0)), "`ttft_seconds` has the value 0"),
            (reason(Speed, |_, s| set(s, "ttft_seconds", -1.0)), "`ttft_seconds` has the value -1"),
            (reason(Speed, |_, s| set(s, "itl_seconds", f64::NAN)), "not finite"),
            (reason(Speed, |_, s| s.retain(|run| run.metric != "tpot_seconds")), "no sample of `tpot_seconds`"),
            (reason(Speed, |f, _| drop(f.remove("clock_resolution_seconds"))), "resolution was not measured"),
            (
                reason(Speed, |f, _| drop(f.insert("smallest_timing_seconds".into(), 2e-6.into()))),
                "less than 100 steps of the clock",
            ),
            (
                reason(Speed, |f, s| {
                    f.remove("smallest_timing_seconds");
                    set(s, "itl_seconds", 1e-6);
                }),
                "`itl_seconds` is 0.000001 s, less than 100 steps",
            ),
            (reason(Speed, |f, _| drop(f.insert("speed_of_light".into(), 1.0.into()))), "does not know"),
            (reason(Speed, |f, _| drop(f.insert("prefill_flops".into(), 0.0.into()))), "`prefill_flops` is 0"),
            (reason(Speed, |f, _| drop(f.insert("package_hash".into(), 1_u64.into()))), "kind Text"),
            (reason(Memory, |_, s| set(s, "peak_rss_bytes", 1000.0)), "does not contain the"),
        ];
        for (reason, expected) in cases {
            assert!(reason.contains(expected), "{reason:?} should contain {expected:?}");
        }
    }

    #[test]
    fn a_single_token_needs_no_decode_figures() {
        let mut cell = fake::cell("a", "cpu");
        cell.workload.generate_tokens = 1;
        let mut samples = samples(&cell, Category::Speed);
        samples.retain(|run| !metrics::is_empty_for(run.metric, &cell));
        assert_eq!(check(&cell, Category::Speed, &facts(&cell), &samples), Ok(()));
    }
}
