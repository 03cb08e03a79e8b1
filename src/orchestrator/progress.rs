//! What a person sees while a matrix runs: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::results::{self, JobEnd, JobKey, Outcome};
use crate::units;

/// Told what happens.
pub trait Progress {
    /// The run starts with so many jobs left.
    fn started(&mut self, jobs: usize);
    /// Something that does not belong to one cell.
    fn note(&mut self, text: &str);
    /// A process starts.
    fn job_started(&mut self, job: &JobKey);
    /// The process entered a phase.
    fn phase(&mut self, job: &JobKey, name: &str, done: Option<(u64, u64)>);
    /// A process ended, or will not be started (`None`).
    fn job_ended(&mut self, job: &JobKey, end: Option<&JobEnd>);
    /// A cell's row is written; so many of all are.
    fn cell_ended(&mut self, outcome: &Outcome, ended: usize, cells: usize);
    /// Nothing more will be told.
    fn finished(&mut self);
}

/// The display that fits standard error.
pub fn for_standard_error(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar(ProgressBar::hidden()))
    } else {
        Box::new(Lines)
    }
}

/// Says nothing.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn started(&mut self, _jobs: usize) {}
    fn note(&mut self, _text: &str) {}
    fn job_started(&mut self, _job: &JobKey) {}
    fn phase(&mut self, _job: &JobKey, _name: &str, _done: Option<(u64, u64)>) {}
    fn job_ended(&mut self, _job: &JobKey, _end: Option<&JobEnd>) {}
    fn cell_ended(&mut self, _outcome: &Outcome, _ended: usize, _cells: usize) {}
    fn finished(&mut self) {}
}

/// A line when a job starts and when a cell ends.
#[derive(Debug)]
pub struct Lines;

impl Progress for Lines {
    fn started(&mut self, jobs: usize) {
        eprintln!("{jobs} processes to run");
    }

    fn note(&mut self, text: &str) {
        eprintln!("{text}");
    }

    fn job_started(&mut self, job: &JobKey) {
        eprintln!("{}: {} {}", job.cell, job.category, job.process);
    }

    fn phase(&mut self, _job: &JobKey, _name: &str, _done: Option<(u64, u64)>) {}

    fn job_ended(&mut self, _job: &JobKey, _end: Option<&JobEnd>) {}

    fn cell_ended(&mut self, outcome: &Outcome, ended: usize, cells: usize) {
        eprintln!("[{ended}/{cells}] {}", sentence(outcome));
    }

    fn finished(&mut self) {}
}

/// A bar with the time that is left. It is drawn when something happens and not by a clock: a display that wakes up
/// takes time from what is measured.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Progress for Bar {
    fn started(&mut self, jobs: usize) {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {eta} left  {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        self.0 = ProgressBar::with_draw_target(Some(jobs as u64), ProgressDrawTarget::stderr()).with_style(style);
    }

    fn note(&mut self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
    }

    fn job_started(&mut self, job: &JobKey) {
        self.0.set_message(format!("{} {}", job.cell, job.category));
    }

    fn phase(&mut self, job: &JobKey, name: &str, done: Option<(u64, u64)>) {
        let steps = done.map(|(done, all)| format!(" {done}/{all}")).unwrap_or_default();
        self.0.set_message(format!("{} {} {name}{steps}", job.cell, job.category));
    }

    fn job_ended(&mut self, _job: &JobKey, _end: Option<&JobEnd>) {
        self.0.inc(1);
    }

    fn cell_ended(&mut self, outcome: &Outcome, _ended: usize, _cells: usize) {
        self.0.suspend(|| eprintln!("{}", sentence(outcome)));
    }

    fn finished(&mut self) {
        self.0.finish_and_clear();
    }
}

fn sentence(outcome: &Outcome) -> String {
    let mut sentence = match &outcome.reason {
        None => format!("{}: {} in {}", outcome.cell.id, outcome.status, units::seconds(outcome.seconds)),
        Some(reason) => format!("{}: {}: {reason}", outcome.cell.id, outcome.status),
    };
    if let Some(score) = results::score(outcome) {
        sentence.push_str(&format!("; accuracy {score}"));
    }
    if let Some(failure) = results::gate_failure(outcome) {
        sentence.push_str(&format!("; {failure}"));
    }
    sentence
}
