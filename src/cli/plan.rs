//! `ortbench plan`: prints the expanded matrix without running anything.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench plan`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench plan` is not part of this build"))
}
