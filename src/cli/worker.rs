//! `ortbench worker` (hidden): the measuring side of a run.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench worker`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench worker` is not part of this build"))
}
