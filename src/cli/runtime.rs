//! `ortbench runtime`: installs and lists builds of ONNX Runtime.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// The options of `ortbench runtime`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    Err(Error::new("`ortbench runtime` is not part of this build"))
}
