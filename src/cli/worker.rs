//! `ortbench worker` (hidden): the measuring side of a run.

use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::error::{Context, Result};
use crate::worker;

/// The options of `ortbench worker`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs one job from standard input; messages go to standard output.
pub fn run(_args: Args) -> Result<ExitCode> {
    // A runner that is killed outright must not leave a worker measuring for nobody.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie the worker to its parent")?;
    let report = worker::claim_stdout()?;
    let job = worker::read_job(std::io::stdin())?;
    let measured = worker::run(&job, &report)?;
    Ok(if measured { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
