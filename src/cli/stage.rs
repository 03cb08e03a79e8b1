//! `ortbench stage` (hidden): some of a model's segments, for a pipeline in another process.

use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::engine::stages;
use crate::error::{Context, Result};

/// The options of `ortbench stage`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Works as the stage that the job on standard input describes.
pub fn run(_args: &Args) -> Result<ExitCode> {
    // A pipeline that is killed outright must not leave stages waiting for nobody.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie the stage to its pipeline")?;
    stages::run_child(std::io::stdin())?;
    Ok(ExitCode::SUCCESS)
}
