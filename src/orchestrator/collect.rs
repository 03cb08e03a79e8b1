//! Collects a worker's messages and decides how its job ended.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cell::{Category, Cell, Status};
use crate::metrics;
use crate::orchestrator::child::{End, Ended};
use crate::orchestrator::conditions::Conditions;
use crate::orchestrator::ending;
use crate::protocol::{FactValue, Message, OperatorTime, PROTOCOL_VERSION, TaskResult};
use crate::results::{JobEnd, Raw, SampleRun, validate, validate_tasks};
use crate::units;

/// What a line of a worker's standard output was.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// A message, taken in.
    Message,
    /// The worker entered a phase.
    Phase(String, Option<(u64, u64)>),
    /// Not a message: a library that prints where it should not.
    Noise,
}

/// The messages of one process.
#[derive(Debug, Default)]
pub struct Collector {
    facts: BTreeMap<String, FactValue>,
    raw: Raw,
    tasks: Vec<TaskResult>,
    operators: Vec<OperatorTime>,
    warnings: Vec<String>,
    phase: Option<String>,
    noise: usize,
    /// Bytes of the package in the page cache before the start, where it was to be emptied of them.
    cached_bytes: Option<u64>,
    /// Why the process had no reference to compare with, where the cell has one.
    missing_reference: Option<String>,
    /// The first thing that makes the messages unusable.
    problem: Option<(Status, String)>,
    verdict: Option<Verdict>,
}

#[derive(Debug)]
enum Verdict {
    Done,
    Failed { status: Status, reason: String, hint: Option<String> },
}

impl Collector {
    /// For a process that could be given no reference, and why; `None` where it lacks none. The sentence becomes a
    /// warning, and no verdict is expected of the process.
    pub fn without_reference(missing: Option<String>) -> Self {
        Self { missing_reference: missing, ..Self::default() }
    }

    /// Notes under which conditions the process runs.
    pub fn conditions(&mut self, conditions: &Conditions) {
        self.warnings.extend_from_slice(&conditions.warnings);
        self.cached_bytes = conditions.cached_bytes;
    }

    fn fact(&mut self, name: &str, bytes: Option<u64>) {
        self.facts.extend(bytes.map(|bytes| (name.to_owned(), bytes.into())));
    }

    /// Takes in a line.
    pub fn line(&mut self, line: &[u8]) -> Line {
        if line.trim_ascii().is_empty() {
            return Line::Message;
        }
        match serde_json::from_slice::<Message>(line) {
            Ok(message) => self.message(message),
            Err(error) if looks_like_a_message(line) => {
                let start = String::from_utf8_lossy(&line[..line.len().min(120)]).trim().to_owned();
                self.object(
                    Status::Failed,
                    format!("the worker sent a message that is not understood ({error}): {start}"),
                );
                Line::Message
            }
            Err(_) => {
                self.noise += 1;
                Line::Noise
            }
        }
    }

    /// How the job ended, and its samples and items, which are none unless it was measured.
    pub fn finish(mut self, cell: &Cell, category: Category, ended: &Ended, log: &Path) -> (JobEnd, Raw) {
        self.fact("cold_start_cached_bytes", self.cached_bytes);
        self.fact("cgroup_peak_bytes", ended.group.and_then(|group| group.peak));
        self.fact("peak_anon_bytes", ended.peaks.map(|peaks| peaks.anonymous));
        self.fact("peak_file_bytes", ended.peaks.map(|peaks| peaks.file_backed));
        let (status, reason, hint) = match self.failure(ended, cell.measurement.timeout_seconds, log) {
            Some(failure) => failure,
            None => match self.check(cell, category) {
                Ok(()) => (Status::Measured, None, None),
                Err(reason) => (Status::Invalid, Some(reason), None),
            },
        };
        self.remark(ended);
        self.warnings.extend(self.missing_reference.take());
        let measured = status == Status::Measured;
        let (raw, tasks, operators) =
            if measured { (self.raw, self.tasks, self.operators) } else { Default::default() };
        let end = JobEnd {
            status,
            reason,
            hint,
            facts: self.facts,
            warnings: self.warnings,
            started: String::new(),
            seconds: ended.seconds,
            tasks,
            operators,
        };
        (end, raw)
    }

    /// How a process ended that measures nothing; `None` where it did what it was told.
    pub fn failed(mut self, ended: &Ended, timeout_seconds: f64, log: &Path) -> Option<JobEnd> {
        let (status, reason, hint) = self.failure(ended, timeout_seconds, log)?;
        let reason = reason.unwrap_or_else(|| "no reason was given".to_owned());
        Some(JobEnd { seconds: ended.seconds, ..JobEnd::without_result(status, reason, hint) })
    }

    fn check(&self, cell: &Cell, category: Category) -> Result<(), String> {
        validate::check(cell, category, &self.facts, &self.raw.samples)?;
        let alone = self.missing_reference.is_some();
        validate_tasks::check(cell, category, alone, &self.facts, &self.tasks, &self.raw.items)
    }

    /// The ceilings that a process measured, and why there are no more: one that was measured before the process
    /// failed is as good as any.
    pub fn ceilings(
        mut self,
        ended: &Ended,
        timeout_seconds: f64,
        log: &Path,
    ) -> (BTreeMap<String, f64>, Option<String>) {
        let mut problem = self.failure(ended, timeout_seconds, log).and_then(|(_, reason, _)| reason);
        let mut ceilings = BTreeMap::new();
        for (name, value) in self.facts.into_iter().filter(|(name, _)| metrics::find_ceiling(name).is_some()) {
            match (validate::check_fact(&name, &value), value) {
                (Ok(()), FactValue::Float(value)) => drop(ceilings.insert(name, value)),
                (Ok(()), FactValue::Integer(value)) => drop(ceilings.insert(name, value as f64)),
                (Ok(()), FactValue::Bool(_) | FactValue::Text(_)) => {}
                (Err(reason), _) => problem = problem.or(Some(reason)),
            }
        }
        if ceilings.is_empty() {
            problem = problem.or_else(|| Some("the worker reported no ceiling".to_owned()));
        }
        (ceilings, problem)
    }

    fn message(&mut self, message: Message) -> Line {
        match message {
            Message::Hello { protocol } if protocol != PROTOCOL_VERSION => self.object(
                Status::Failed,
                format!("the worker speaks version {protocol} of the protocol and the runner {PROTOCOL_VERSION}: the program's file was replaced during the run"),
            ),
            Message::Hello { .. } => {}
            Message::Phase { name, done } => {
                self.phase = Some(name.clone());
                return Line::Phase(name, done);
            }
            Message::Fact { name, value } => {
                self.facts.insert(name, value);
            }
            Message::Samples { metric, repetition, values } => match metrics::find_series(&metric) {
                Some(series) => self.raw.samples.push(SampleRun { metric: series.name, repetition, values }),
                None => self.object(
                    Status::Invalid,
                    format!("the worker reported a series `{metric}` that this program does not know"),
                ),
            },
            Message::Task { result } => self.tasks.push(*result),
            Message::Operator { time } => self.operators.push(*time),
            Message::Items { items } => self.raw.items.push(items),
            Message::Warning { text } => self.warnings.push(text),
            Message::Done => self.verdict = Some(Verdict::Done),
            Message::Failed { status: Status::Measured, reason, .. } => {
                self.object(Status::Failed, format!("the worker failed with the status of a success: {reason}"));
            }
            Message::Failed { status, reason, hint } => self.verdict = Some(Verdict::Failed { status, reason, hint }),
        }
        Line::Message
    }

    fn object(&mut self, status: Status, reason: String) {
        self.problem.get_or_insert((status, reason));
    }

    fn failure(
        &mut self,
        ended: &Ended,
        timeout_seconds: f64,
        log: &Path,
    ) -> Option<(Status, Option<String>, Option<String>)> {
        if let Some(Verdict::Failed { status, reason, hint }) =
            self.verdict.take_if(|v| matches!(v, Verdict::Failed { .. }))
        {
            return Some((status, Some(reason), hint));
        }
        if let Some((status, reason)) = self.problem.take() {
            return Some((status, Some(reason), Some(format!("see `{}`", log.display()))));
        }
        if self.verdict.is_some() {
            return None;
        }
        let phase = self.phase.as_deref();
        match ended.end {
            End::Own(status) => {
                let ending = ending::describe(status, ended.memory_kill, ended.group, phase, log);
                Some((ending.status, Some(ending.reason), ending.hint))
            }
            End::TimedOut => {
                let limit = units::seconds(timeout_seconds);
                let place = phase.map(|phase| format!(", in phase `{phase}`")).unwrap_or_default();
                let hint = "raise the cell's timeout, or ask for less".to_owned();
                Some((Status::TimedOut, Some(format!("the process took longer than {limit}{place}")), Some(hint)))
            }
            End::Interrupted => Some((Status::Failed, Some("the run was interrupted".to_owned()), None)),
        }
    }

    /// Some libraries crash while they are unloaded. What was measured before is no worse for it, and the row says so.
    fn remark(&mut self, ended: &Ended) {
        if self.noise > 0 {
            self.warnings
                .push(format!("{} lines of standard output were no messages; they are in the log", self.noise));
        }
        match ended.end {
            End::Own(status) if matches!(self.verdict, Some(Verdict::Done)) && !status.success() => {
                self.warnings.push(format!("after everything was measured the process ended badly ({status})"));
            }
            End::TimedOut if matches!(self.verdict, Some(Verdict::Done)) => {
                self.warnings.push("after everything was measured the process did not end".to_owned());
            }
            _ => {}
        }
    }
}

/// An object with a `type` is meant for us, whatever is in it.
fn looks_like_a_message(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line)
        .is_ok_and(|value| value.get("type").is_some_and(|t| t.is_string()))
}
