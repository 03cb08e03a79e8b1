//! `ortbench compare`: prints a finished run as a table.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench compare`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench compare` is not part of this build"))
}
