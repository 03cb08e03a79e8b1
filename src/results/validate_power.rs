//! What cannot be true of figures of energy.

use std::collections::BTreeMap;

use crate::cell::{Category, Cell, PowerSource};
use crate::metrics::{self, SERIES};
use crate::protocol::FactValue;
use crate::results::SampleRun;

/// A block's mean power cannot be above its peak; rounding is no contradiction.
const ROUNDING: f64 = 1.001;

/// Checks that a job measured or estimated, and not something of both, and that its figures agree.
///
/// # Errors
/// The sentence that becomes the `invalid` cell's reason.
pub fn check(cell: &Cell, facts: &BTreeMap<String, FactValue>, samples: &[SampleRun]) -> Result<(), String> {
    let Some(FactValue::Text(source)) = facts.get("power_source") else {
        return Err("the source of the energy's figures is not said".to_owned());
    };
    let estimated = source == PowerSource::Estimate.name();
    for series in SERIES.iter().filter(|series| series.category == Some(Category::Power)) {
        if !metrics::depends_on_meter(series.name) || metrics::is_empty_for(series.name, cell) {
            continue;
        }
        let present = samples.iter().any(|run| run.metric == series.name && !run.values.is_empty());
        let expected = metrics::is_estimate(series.name) == estimated;
        if present != expected {
            let what = if present { "a sample" } else { "no sample" };
            return Err(format!("with the source `{source}` there is {what} of `{}`", series.name));
        }
    }
    for phase in ["prefill", "decode", "graph"] {
        let of = |name: &str| {
            let name = format!("{phase}_{name}");
            samples.iter().filter(move |run| run.metric == name).map(|run| (run.repetition, &run.values))
        };
        for ((block, mean), (_, peak)) in of("power_watts").zip(of("peak_power_watts")) {
            if mean.iter().zip(peak).any(|(mean, peak)| *mean > *peak * ROUNDING) {
                return Err(format!("the mean power of {phase} is above its peak, in block {block}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake;

    fn figures(cell: &Cell) -> (BTreeMap<String, FactValue>, Vec<SampleRun>) {
        let known = |(metric, repetition, values)| SampleRun { metric, repetition, values };
        let samples = fake::samples(cell, Category::Power, 0).into_iter().map(known).collect();
        (fake::facts(cell), samples)
    }

    #[test]
    fn an_estimate_is_no_measurement() {
        let cell = fake::cell("a", "cpu");
        let (mut facts, mut samples) = figures(&cell);
        assert_eq!(check(&cell, &facts, &samples), Ok(()));
        facts.insert("power_source".to_owned(), "estimate".into());
        let why = check(&cell, &facts, &samples).unwrap_err();
        assert_eq!(why, "with the source `estimate` there is a sample of `prefill_energy_joules_per_token`");
        for run in &mut samples {
            let name = format!("estimated_{}", run.metric);
            run.metric = metrics::find_series(&name).map_or(run.metric, |series| series.name);
        }
        samples.retain(|run| metrics::is_estimate(run.metric) || !metrics::depends_on_meter(run.metric));
        assert_eq!(check(&cell, &facts, &samples), Ok(()));
        facts.insert("power_source".to_owned(), "rapl".into());
        assert!(check(&cell, &facts, &samples).unwrap_err().contains("no sample of `prefill_energy"));
        facts.remove("power_source");
        assert!(check(&cell, &facts, &samples).unwrap_err().contains("is not said"));
    }

    #[test]
    fn a_peak_is_not_below_the_mean() {
        let cell = fake::cell("a", "cpu");
        let (facts, mut samples) = figures(&cell);
        let peak = samples.iter_mut().find(|run| run.metric == "decode_peak_power_watts").unwrap();
        peak.values[0] = 1.0;
        let why = check(&cell, &facts, &samples).unwrap_err();
        assert_eq!(why, "the mean power of decode is above its peak, in block 0");
    }

    #[test]
    fn a_single_token_has_no_decode() {
        let mut cell = fake::cell("a", "cpu");
        cell.workload.generate_tokens = 1;
        let (facts, samples) = figures(&cell);
        assert!(samples.iter().all(|run| !run.metric.starts_with("decode_")));
        assert_eq!(check(&cell, &facts, &samples), Ok(()));
    }
}
