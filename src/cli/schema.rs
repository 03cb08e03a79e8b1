//! `ortbench schema`: prints the JSON Schema of the matrix file.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench schema`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench schema` is not part of this build"))
}
