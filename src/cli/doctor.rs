//! `ortbench doctor`: says what this machine has and lacks.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench doctor` is not part of this build"))
}
