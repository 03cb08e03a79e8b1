//! What is fed, and how often and how long it is measured.

use serde_yaml::Spanned;

use super::{Checker, MAX_REPETITIONS, MAX_SECONDS, Set};
use crate::cell::{MeasurementPlan, PromptSource};
use crate::config::file::{MeasurementEntry, PromptEntry, SetEntry};
use crate::yaml::suggest;

impl Checker<'_> {
    pub(super) fn prompt(&mut self, entry: Option<&PromptEntry>) -> PromptSource {
        match entry.map(|entry| (&entry.random_tokens, &entry.text_file)) {
            None | Some((None, None)) => PromptSource::RandomTokens { seed: 0 },
            Some((Some(random), None)) => PromptSource::RandomTokens { seed: random.value.seed },
            Some((None, Some(file))) => {
                let path = self.path(&file.value);
                if !path.is_file() {
                    self.problem(file.referenced, format!("the prompt's file `{}` does not exist", path.display()));
                }
                PromptSource::TextFile { path }
            }
            Some((Some(_), Some(file))) => {
                self.problem(file.referenced, "`prompt` is either `random_tokens` or `text_file`, not both");
                PromptSource::RandomTokens { seed: 0 }
            }
        }
    }

    pub(super) fn measurement(&mut self, entry: &MeasurementEntry) -> MeasurementPlan {
        let profile = entry.profile.as_ref().map_or("full", |profile| profile.value.as_str());
        let quick = profile == "quick";
        if let Some(word) = entry.profile.as_ref().filter(|word| !["full", "quick"].contains(&word.value.as_str())) {
            let message = format!("unknown profile `{}`{}", word.value, suggest(&word.value, &["full", "quick"]));
            self.problem(word.referenced, message);
        }
        let (repetitions, min_seconds, processes) = if quick { (3, 0.2, 1) } else { (5, 1.0, 3) };
        MeasurementPlan {
            warmup: self.count(&entry.warmup, "warmup", 0, MAX_REPETITIONS).unwrap_or(1),
            repetitions: self.count(&entry.repetitions, "repetitions", 1, MAX_REPETITIONS).unwrap_or(repetitions),
            min_seconds: self.seconds(&entry.min_seconds, "min_seconds", 0.0).unwrap_or(min_seconds),
            processes: self.count(&entry.processes, "processes", 1, 1000).unwrap_or(processes),
            timeout_seconds: self.seconds(&entry.timeout_seconds, "timeout_seconds", 1.0).unwrap_or(300.0),
            quick,
        }
    }

    pub(super) fn set(&mut self, entry: &SetEntry) -> Set {
        Set {
            warmup: self.count(&entry.warmup, "warmup", 0, MAX_REPETITIONS),
            repetitions: self.count(&entry.repetitions, "repetitions", 1, MAX_REPETITIONS),
            min_seconds: self.seconds(&entry.min_seconds, "min_seconds", 0.0),
            processes: self.count(&entry.processes, "processes", 1, 1000),
            timeout_seconds: self.seconds(&entry.timeout_seconds, "timeout_seconds", 1.0),
            categories: entry.categories.as_ref().map(|axis| self.categories(axis)),
            strict_placement: entry.strict_placement,
        }
    }

    pub(in crate::config) fn count(
        &mut self,
        value: &Option<Spanned<u32>>,
        name: &str,
        min: u32,
        max: u32,
    ) -> Option<u32> {
        let value = value.as_ref()?;
        if !(min..=max).contains(&value.value) {
            self.problem(value.referenced, format!("`{name}` is {}, not from {min} to {max}", value.value));
        }
        Some(value.value)
    }

    pub(super) fn seconds(&mut self, value: &Option<Spanned<f64>>, name: &str, min: f64) -> Option<f64> {
        let value = value.as_ref()?;
        if !(min..=MAX_SECONDS).contains(&value.value) {
            let message = format!("`{name}` is {}, not from {min} to {MAX_SECONDS} seconds", value.value);
            self.problem(value.referenced, message);
        }
        Some(value.value)
    }
}
