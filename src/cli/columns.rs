//! `ortbench columns`: documents the columns of the results.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench columns`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench columns` is not part of this build"))
}
