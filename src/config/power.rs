//! `power`: as written, and checked.

use serde_yaml::{Location, Spanned};

use super::check::Checker;
use crate::cell::{MeasurementPlan, PowerPlan, PowerSource};
use crate::yaml::suggest;

/// The word that lets the machine decide.
const AUTO: &str = "auto";

/// Largest values that make sense; anything above is a slip of the hand.
const MAX_WATTS: f64 = 1000.0;
const MAX_BLOCKS: u32 = 1000;
const MAX_IDLE_SECONDS: f64 = 600.0;
const MAX_BLOCK_SECONDS: f64 = 86_400.0;

/// An idle time below it sees a processor's clocks go down and little else.
pub const MIN_IDLE_SECONDS: f64 = 0.5;

/// `power`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerEntry {
    pub source: Option<Spanned<String>>,
    #[serde(default)]
    pub rails: Vec<Spanned<String>>,
    pub estimate_watts_per_cpu: Option<Spanned<f64>>,
    pub idle_seconds: Option<Spanned<f64>>,
    pub blocks: Option<Spanned<u32>>,
    pub min_block_seconds: Option<Spanned<f64>>,
    pub max_block_seconds: Option<Spanned<f64>>,
}

/// The words for a source.
pub fn sources() -> Vec<&'static str> {
    std::iter::once(AUTO).chain(PowerSource::NAMES.iter().copied()).collect()
}

/// What is measured where the file says nothing.
fn defaults(measurement: &MeasurementPlan) -> PowerPlan {
    let full = PowerPlan::default();
    if !measurement.quick {
        return full;
    }
    PowerPlan { idle_seconds: 1.0, blocks: 3, min_block_seconds: 0.5, ..full }
}

impl Checker<'_> {
    /// The plan of every cell with the category.
    pub(super) fn power(&mut self, entry: Option<&Spanned<PowerEntry>>, measurement: &MeasurementPlan) -> PowerPlan {
        let Some(Spanned { value: entry, referenced: at, .. }) = entry else { return defaults(measurement) };
        let default = defaults(measurement);
        let source = entry.source.as_ref().and_then(|word| self.power_source(word));
        let watts =
            self.quantity(&entry.estimate_watts_per_cpu, "estimate_watts_per_cpu", f64::MIN_POSITIVE, MAX_WATTS);
        let plan = PowerPlan {
            source,
            rails: entry.rails.iter().map(|rail| rail.value.clone()).collect(),
            estimate_watts_per_cpu: watts,
            idle_seconds: self
                .quantity(&entry.idle_seconds, "idle_seconds", MIN_IDLE_SECONDS, MAX_IDLE_SECONDS)
                .unwrap_or(default.idle_seconds),
            blocks: self.count(&entry.blocks, "blocks", 1, MAX_BLOCKS).unwrap_or(default.blocks),
            min_block_seconds: self
                .quantity(&entry.min_block_seconds, "min_block_seconds", 0.1, MAX_BLOCK_SECONDS)
                .unwrap_or(default.min_block_seconds),
            max_block_seconds: self
                .quantity(&entry.max_block_seconds, "max_block_seconds", 0.1, MAX_BLOCK_SECONDS)
                .unwrap_or(default.max_block_seconds),
        };
        self.power_agrees(entry, &plan, *at);
        plan
    }

    fn power_source(&mut self, word: &Spanned<String>) -> Option<PowerSource> {
        if word.value == AUTO {
            return None;
        }
        let source = word.value.parse().ok();
        if source.is_none() {
            let message = format!("unknown source of power `{}`{}", word.value, suggest(&word.value, &sources()));
            self.problem(word.referenced, message);
        }
        source
    }

    /// Settings that contradict each other.
    fn power_agrees(&mut self, entry: &PowerEntry, plan: &PowerPlan, at: Location) {
        if plan.source == Some(PowerSource::Estimate) && plan.estimate_watts_per_cpu.is_none() {
            let message = "the source `estimate` needs a wattage: `estimate_watts_per_cpu: 15`";
            self.problem(entry.source.as_ref().map_or(at, |source| source.referenced), message);
        }
        if let Some(rail) = entry.rails.first().filter(|_| plan.source != Some(PowerSource::Hwmon)) {
            self.problem(rail.referenced, "`rails` are sensors of hwmon: they need `source: hwmon`");
        }
        for (place, rail) in entry.rails.iter().enumerate() {
            if !rail.value.contains('/') {
                let message =
                    format!("the rail `{}` is not written as `driver/label`; `ortbench doctor` lists them", rail.value);
                self.problem(rail.referenced, message);
            }
            if entry.rails[..place].iter().any(|other| other.value == rail.value) {
                self.problem(rail.referenced, format!("the rail `{}` stands twice in `rails`", rail.value));
            }
        }
        if plan.min_block_seconds > plan.max_block_seconds {
            let message = format!(
                "`min_block_seconds` is {} and `max_block_seconds` {}: a block cannot be both",
                plan.min_block_seconds, plan.max_block_seconds
            );
            let written = entry.max_block_seconds.as_ref().or(entry.min_block_seconds.as_ref());
            self.problem(written.map_or(at, |written| written.referenced), message);
        }
    }

    fn quantity(&mut self, value: &Option<Spanned<f64>>, name: &str, min: f64, max: f64) -> Option<f64> {
        let value = value.as_ref()?;
        if !(min..=max).contains(&value.value) {
            let from = if min == f64::MIN_POSITIVE { "above 0 and up to".to_owned() } else { format!("from {min} to") };
            self.problem(value.referenced, format!("`{name}` is {}, not {from} {max}", value.value));
        }
        Some(value.value)
    }
}
