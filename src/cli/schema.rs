//! `ortbench schema`: prints the JSON Schema of the matrix file.

use std::process::ExitCode;

use crate::config;
use crate::error::{Context, Result};

/// The options of `ortbench schema`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(&config::schema()).context("cannot print the schema")?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}
