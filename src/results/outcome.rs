//! How jobs ended, and how the jobs of one cell become one row.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cell::{Arm, Category, Cell, CellId, Status};
use crate::metrics::{self, Series};
use crate::protocol::{FactValue, ItemResults, OperatorTime, TaskResult};
use crate::results::impact::Impact;
use crate::results::{accuracy, columns};
use crate::stats::Summary;

/// One process's share of a cell: a category, and which of its repeated processes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobKey {
    /// The cell.
    pub cell: CellId,
    /// The category.
    pub category: Category,
    /// From 0.
    pub process: u32,
}

/// Raw values of one series from one repetition.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRun {
    /// The series' name.
    pub metric: &'static str,
    /// The repetition that the values belong to.
    pub repetition: u32,
    /// In the order measured.
    pub values: Vec<f64>,
}

/// What a job adds to `samples.csv`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Raw {
    /// Measurements.
    pub samples: Vec<SampleRun>,
    /// Figures of tasks' items. They are written and not read back: nothing is computed from them here.
    pub items: Vec<ItemResults>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEnd {
    /// The outcome.
    pub status: Status,
    /// Why it is not [`Status::Measured`].
    pub reason: Option<String>,
    /// What can be done about it.
    pub hint: Option<String>,
    /// Facts by name.
    pub facts: BTreeMap<String, FactValue>,
    /// What the row's reader should know.
    pub warnings: Vec<String>,
    /// When the process started, ISO 8601.
    pub started: String,
    /// From the start of the process to its end.
    pub seconds: f64,
    /// Results of tasks, of a job that was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskResult>,
    /// Times of nodes, of a job that profiled them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<OperatorTime>,
}

impl JobEnd {
    /// An end without result.
    pub fn without_result(status: Status, reason: impl Into<String>, hint: Option<String>) -> Self {
        Self {
            status,
            reason: Some(reason.into()),
            hint,
            facts: BTreeMap::new(),
            warnings: Vec::new(),
            started: String::new(),
            seconds: 0.0,
            tasks: Vec::new(),
            operators: Vec::new(),
        }
    }
}

/// A job that ended, with its samples (none unless it was measured).
#[derive(Debug, Clone, PartialEq)]
pub struct JobResult {
    /// How it ended.
    pub end: JobEnd,
    /// What it measured.
    pub samples: Vec<SampleRun>,
}

/// Why a cell was not started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Never [`Status::Measured`].
    pub status: Status,
    /// What is missing or too large.
    pub reason: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

/// A cell that ended: what its row says.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The configuration.
    pub cell: Cell,
    /// The worst outcome of its categories.
    pub status: Status,
    /// Why it is not [`Status::Measured`], each sentence with its category.
    pub reason: Option<String>,
    /// What can be done about it.
    pub hint: Option<String>,
    /// What the row's reader should know.
    pub warnings: Vec<String>,
    /// Categories that were measured whole.
    pub measured: Vec<Category>,
    /// Facts of the measured categories.
    pub facts: BTreeMap<String, FactValue>,
    /// Samples of the measured categories, by series.
    pub samples: BTreeMap<&'static str, Vec<f64>>,
    /// Their summaries.
    pub summaries: BTreeMap<&'static str, Summary>,
    /// Results of tasks, in the order of the matrix file.
    pub tasks: Vec<TaskResult>,
    /// Times of nodes, the longest first.
    pub operators: Vec<OperatorTime>,
    /// What its optimizations do, where that was measured.
    pub impact: Option<Impact>,
    /// When the first process started, ISO 8601; empty for a refused cell.
    pub started: String,
    /// Seconds of all processes.
    pub seconds: f64,
    /// The machine's ceilings at the cell's threads.
    pub ceilings: BTreeMap<String, f64>,
    /// Facts of the machine and of this program.
    pub environment: Arc<serde_json::Value>,
}

impl Outcome {
    /// A cell that was refused before it started.
    pub fn refused(cell: &Cell, refusal: &Refusal, environment: Arc<serde_json::Value>) -> Self {
        Self {
            status: refusal.status,
            reason: Some(refusal.reason.clone()),
            hint: refusal.hint.clone(),
            ..Self::empty(cell, environment)
        }
    }

    /// Joins the jobs of a cell. Figures of a category count only when all its processes were measured.
    pub fn of(
        cell: &Cell,
        jobs: &[(&JobKey, &JobResult)],
        ceilings: BTreeMap<String, f64>,
        environment: Arc<serde_json::Value>,
    ) -> Self {
        let mut outcome = Self { ceilings, ..Self::empty(cell, environment) };
        // Of two arms, the row is about the optimized one.
        let of_row = |key: &JobKey| {
            key.category != Category::OptimizationImpact || Arm::of_process(key.process) == Arm::Optimized
        };
        let mut reasons: Vec<String> = Vec::new();
        for &category in &cell.categories {
            let of_category = || jobs.iter().filter(|(key, _)| key.category == category);
            let Some((key, worst)) = of_category().max_by_key(|(_, job)| job.end.status) else { continue };
            if worst.end.status == Status::Measured {
                outcome.measured.push(category);
                of_category().filter(|(key, _)| of_row(key)).for_each(|(_, job)| outcome.absorb(job));
            } else {
                outcome.status = outcome.status.max(worst.end.status);
                let reason = worst.end.reason.as_deref().unwrap_or("no reason was given");
                let arm = match (category, Arm::of_process(key.process)) {
                    (Category::OptimizationImpact, Arm::Baseline) => "the baseline: ",
                    _ => "",
                };
                reasons.push(format!("{category}: {arm}{reason}"));
                outcome.hint = outcome.hint.take().or_else(|| worst.end.hint.clone());
            }
        }
        for (_, job) in jobs {
            outcome.seconds += job.end.seconds;
            for warning in &job.end.warnings {
                if !outcome.warnings.contains(warning) {
                    outcome.warnings.push(warning.clone());
                }
            }
        }
        if outcome.measured.contains(&Category::OptimizationImpact) {
            outcome.impact = Impact::of(jobs);
        }
        outcome.started = jobs.iter().map(|(_, job)| job.end.started.clone()).min().unwrap_or_default();
        let of_row: Vec<_> = jobs.iter().copied().filter(|(key, _)| of_row(key)).collect();
        if let Some(conflict) = changed_between_processes(&of_row) {
            outcome.status = outcome.status.max(Status::Invalid);
            reasons.push(conflict);
            outcome.hint = Some("start a new run: a resumed one would mix them".to_owned());
            outcome.discard();
        }
        outcome.reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        outcome.summaries =
            outcome.samples.iter().filter_map(|(name, values)| Some((*name, Summary::of(values)?))).collect();
        outcome
    }

    /// The summary of a series.
    pub fn summary(&self, series: &Series) -> Option<&Summary> {
        self.summaries.get(series.name)
    }

    /// What the worker and the figures themselves tell the row's reader.
    pub fn all_warnings(&self) -> Vec<String> {
        let mut warnings: Vec<_> = accuracy::gate_failure(self).into_iter().collect();
        warnings.extend_from_slice(&self.warnings);
        warnings.extend(columns::remarks(self));
        warnings
    }

    /// A fact that is a word or a sentence.
    pub fn text(&self, fact: &str) -> Option<&str> {
        match self.facts.get(fact)? {
            FactValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A fact that is a number.
    pub fn number(&self, fact: &str) -> Option<f64> {
        match self.facts.get(fact)? {
            FactValue::Integer(value) => Some(*value as f64),
            FactValue::Float(value) => Some(*value),
            FactValue::Bool(_) | FactValue::Text(_) => None,
        }
    }

    fn empty(cell: &Cell, environment: Arc<serde_json::Value>) -> Self {
        Self {
            cell: cell.clone(),
            status: Status::Measured,
            reason: None,
            hint: None,
            warnings: Vec::new(),
            measured: Vec::new(),
            facts: BTreeMap::new(),
            samples: BTreeMap::new(),
            summaries: BTreeMap::new(),
            tasks: Vec::new(),
            operators: Vec::new(),
            impact: None,
            started: String::new(),
            seconds: 0.0,
            ceilings: BTreeMap::new(),
            environment,
        }
    }

    fn absorb(&mut self, job: &JobResult) {
        for (name, value) in &job.end.facts {
            let kept = self.facts.get(name);
            if kept.is_none_or(|kept| replaces(name, kept, value)) {
                self.facts.insert(name.clone(), value.clone());
            }
        }
        // Series of arms that are held against each other have no place among those of one configuration.
        let of_row = |run: &&SampleRun| !metrics::IMPACT_SERIES.iter().any(|series| series.name == run.metric);
        for run in job.samples.iter().filter(of_row) {
            self.samples.entry(run.metric).or_default().extend(&run.values);
        }
        self.tasks.extend_from_slice(&job.end.tasks);
        self.operators.extend_from_slice(&job.end.operators);
    }

    fn discard(&mut self) {
        self.measured.clear();
        self.facts.clear();
        self.samples.clear();
        self.tasks.clear();
        self.operators.clear();
        self.impact = None;
    }
}

/// Of several processes' values the first counts, but for these, where the row states the worst.
fn replaces(name: &str, kept: &FactValue, new: &FactValue) -> bool {
    match (name, kept, new) {
        ("smallest_timing_seconds", FactValue::Float(kept), FactValue::Float(new)) => new < kept,
        ("clock_resolution_seconds", FactValue::Float(kept), FactValue::Float(new)) => new > kept,
        (
            "cold_start_cached_bytes"
            | "cgroup_peak_bytes"
            | "peak_anon_bytes"
            | "peak_file_bytes"
            | "gpu_process_peak_bytes"
            | "gpu_used_peak_bytes",
            FactValue::Integer(kept),
            FactValue::Integer(new),
        ) => new > kept,
        _ => false,
    }
}

/// Figures of two packages or two runtimes do not belong in one row; a package exported anew, or a runtime replaced,
/// between two processes (or before a resume) shows in these facts.
fn changed_between_processes(jobs: &[(&JobKey, &JobResult)]) -> Option<String> {
    for name in metrics::IDENTITY {
        let mut values = jobs.iter().filter_map(|(_, job)| job.end.facts.get(*name));
        let first = values.next();
        if let (Some(first), Some(other)) = (first, values.find(|value| Some(*value) != first)) {
            let (first, other) = (text(first), text(other));
            return Some(format!("`{name}` changed between the cell's processes, from {first} to {other}"));
        }
    }
    None
}

fn text(value: &FactValue) -> String {
    match value {
        FactValue::Bool(value) => value.to_string(),
        FactValue::Integer(value) => value.to_string(),
        FactValue::Float(value) => value.to_string(),
        FactValue::Text(value) => value.clone(),
    }
}
