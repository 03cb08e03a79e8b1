//! `ortbench run`: runs a matrix.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench run`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench run` is not part of this build"))
}
