//! What is known of a run: the sum of its journal's events. A runner at work and a reader of a finished folder build it
//! in the same way, one event after the other.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::cell::{Category, Cell, CellId, Status};
use crate::digest;
use crate::error::{Context, Error, Result};
use crate::results::folder::{JOURNAL, SAMPLES};
use crate::results::journal::{self, Event, JOURNAL_VERSION};
use crate::results::{JobEnd, JobKey, JobResult, Outcome, Refusal, SampleRun, samples};

/// The state of a run.
#[derive(Debug, Default)]
pub struct Record {
    /// The matrix's name.
    pub name: String,
    /// [`matrix_hash`] of the cells.
    pub matrix_hash: String,
    /// Every cell, in the order of the rows.
    pub cells: Vec<Cell>,
    /// Length of `samples.csv` that jobs account for; `None` before the first job ended.
    pub samples_length: Option<u64>,
    refused: BTreeMap<CellId, Refusal>,
    jobs: BTreeMap<JobKey, Ended>,
    ceilings: BTreeMap<u32, Ceilings>,
    sessions: Vec<Session>,
}

#[derive(Debug)]
struct Ended {
    result: JobResult,
    session: usize,
}

#[derive(Debug)]
struct Ceilings {
    values: BTreeMap<String, f64>,
    problem: Option<String>,
}

#[derive(Debug)]
struct Session {
    time: String,
    environment: Arc<serde_json::Value>,
}

impl Record {
    /// Reads the record of a run from its folder; the second value is the length of the journal's whole lines.
    ///
    /// # Errors
    /// A folder that is no run's, or whose files are damaged.
    pub fn load(folder: &Path) -> Result<(Self, u64)> {
        if !folder.join(JOURNAL).is_file() {
            return Err(Error::new(format!("`{}` is no run's folder: it has no {JOURNAL}", folder.display()))
                .hint("name a folder that `ortbench run` made"));
        }
        let (events, length) = journal::read(&folder.join(JOURNAL))?;
        let samples_length = events.iter().rev().find_map(|event| match event {
            Event::JobEnded { samples_length, .. } => Some(*samples_length),
            _ => None,
        });
        let mut samples = match samples_length {
            Some(length) => samples::read(&folder.join(SAMPLES), length)?,
            None => BTreeMap::new(),
        };
        let mut record = Self::default();
        for event in events {
            let measured = match &event {
                Event::Started { version, .. } if *version != JOURNAL_VERSION => {
                    return Err(Error::new(format!(
                        "the run in `{}` was written in version {version} of the journal, this program knows {JOURNAL_VERSION}",
                        folder.display()
                    ))
                    .hint("use the version of ortbench that wrote it"));
                }
                Event::JobEnded { job, end, .. } if end.status == Status::Measured => {
                    samples.remove(job).unwrap_or_default()
                }
                _ => Vec::new(),
            };
            record.apply(event, measured);
        }
        if record.sessions.is_empty() {
            return Err(Error::new(format!("the journal in `{}` does not say what was to run", folder.display()))
                .hint("start a new run"));
        }
        Ok((record, length))
    }

    /// Takes in what happened; `samples` are those of a job that was measured.
    pub fn apply(&mut self, event: Event, samples: Vec<SampleRun>) {
        match event {
            Event::Started { time, name, matrix_hash, cells, refused, environment, .. } => {
                (self.name, self.matrix_hash, self.cells, self.refused) = (name, matrix_hash, cells, refused);
                self.sessions.push(Session { time, environment: Arc::new(environment) });
            }
            Event::Resumed { time, refused, retry_failed, environment } => {
                if retry_failed {
                    self.jobs.retain(|_, job| job.result.end.status == Status::Measured);
                }
                self.refused = refused;
                self.sessions.push(Session { time, environment: Arc::new(environment) });
            }
            Event::Ceilings { threads, values, problem } => {
                self.ceilings.insert(threads, Ceilings { values, problem });
            }
            Event::JobEnded { job, end, samples_length } => {
                self.samples_length = Some(samples_length);
                let session = self.sessions.len().saturating_sub(1);
                self.jobs.insert(job, Ended { result: JobResult { end: *end, samples }, session });
            }
            Event::JobStarted { .. } | Event::Interrupted { .. } | Event::Finished { .. } => {}
        }
    }

    /// The cell of that id.
    pub fn cell(&self, id: &CellId) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.id == *id)
    }

    /// What was refused before it started.
    pub fn refused(&self) -> &BTreeMap<CellId, Refusal> {
        &self.refused
    }

    /// How a job ended, once it did.
    pub fn end(&self, job: &JobKey) -> Option<&JobEnd> {
        self.jobs.get(job).map(|ended| &ended.result.end)
    }

    /// True when the job is still to be done. What follows a job that ended badly is not: a category of which one
    /// process failed is not measured however the others end, and what one process found unsupported the next one
    /// will find too.
    pub fn is_due(&self, job: &JobKey) -> bool {
        if self.refused.contains_key(&job.cell) || self.jobs.contains_key(job) {
            return false;
        }
        !self.jobs_of(&job.cell).any(|(ended, result)| match result.end.status {
            Status::Measured => false,
            Status::Unsupported => true,
            _ => ended.category == job.category,
        })
    }

    /// The row of a cell of which no job is due; `None` while one is.
    pub fn outcome(&self, cell: &Cell) -> Option<Outcome> {
        if let Some(refusal) = self.refused.get(&cell.id) {
            let environment = self.sessions.last().map(|session| session.environment.clone()).unwrap_or_default();
            return Some(Outcome::refused(cell, refusal, environment));
        }
        if jobs(cell).any(|job| self.is_due(&job)) {
            return None;
        }
        let ended: Vec<_> = self.jobs_of(&cell.id).collect();
        let session = self.jobs.iter().filter(|(job, _)| job.cell == cell.id).map(|(_, job)| job.session).max();
        let environment = session.map(|index| self.sessions[index].environment.clone()).unwrap_or_default();
        let ceilings = self.ceilings.get(&cell.threads).map(|ceilings| ceilings.values.clone()).unwrap_or_default();
        Some(Outcome::of(cell, &ended, ceilings, environment))
    }

    /// The rows of all cells that ended, in the order of the matrix.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.cells.iter().filter_map(|cell| self.outcome(cell)).collect()
    }

    /// Numbers of threads for which the ceilings are not known and a cell is still to be measured.
    pub fn ceilings_due(&self) -> Vec<u32> {
        let due = self.cells.iter().filter(|cell| jobs(cell).any(|job| self.is_due(&job)));
        let mut threads: Vec<u32> = due.map(|cell| cell.threads).collect();
        threads.sort_unstable();
        threads.dedup();
        threads.retain(|threads| self.ceilings.get(threads).is_none_or(|ceilings| ceilings.values.is_empty()));
        threads
    }

    /// The contents of `environment.json`.
    pub fn environment(&self) -> serde_json::Value {
        let sessions: Vec<_> = self
            .sessions
            .iter()
            .map(|session| json!({ "time": session.time, "environment": *session.environment }))
            .collect();
        let ceilings: Vec<_> = self
            .ceilings
            .iter()
            .map(|(threads, ceilings)| json!({ "threads": threads, "values": ceilings.values, "problem": ceilings.problem }))
            .collect();
        json!({ "sessions": sessions, "ceilings": ceilings })
    }

    fn jobs_of(&self, cell: &CellId) -> impl Iterator<Item = (&JobKey, &JobResult)> {
        self.jobs.iter().filter(move |(job, _)| job.cell == *cell).map(|(job, ended)| (job, &ended.result))
    }
}

/// Every job of a cell. Memory is measured once a process, so it takes several, and so do the arms of a comparison; the
/// others repeat within one.
pub fn jobs(cell: &Cell) -> impl Iterator<Item = JobKey> {
    cell.categories.iter().flat_map(move |&category| {
        let repeated = cell.measurement.processes.max(1);
        let processes = match category {
            Category::Memory => repeated,
            // Pairs, a process an arm.
            Category::OptimizationImpact => 2 * repeated,
            _ => 1,
        };
        (0..processes).map(move |process| JobKey { cell: cell.id.clone(), category, process })
    })
}

/// SHA-256 of everything that is to be measured, so that a run is continued with what it was started with.
///
/// # Errors
/// Two cells of one id, which rows and logs could not tell apart.
pub fn matrix_hash(cells: &[Cell]) -> Result<String> {
    let mut seen = HashSet::new();
    if let Some(twice) = cells.iter().find(|cell| !seen.insert(&cell.id)) {
        return Err(Error::new(format!("the matrix has two cells with the id `{}`", twice.id)));
    }
    let text = serde_json::to_vec(cells).context("cannot express the cells as JSON")?;
    Ok(digest::sha256(text))
}
