//! `ortbench generate`: lets a model answer a prompt.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench generate`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench generate` is not part of this build"))
}
