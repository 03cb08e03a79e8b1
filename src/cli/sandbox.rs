//! `ortbench sandbox` (hidden): the process that watches a generated program, and the one that becomes it.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::error::Result;
use crate::sandbox;

/// The options of `ortbench sandbox`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Restrict this process and become the command, rather than watch one that does.
    #[arg(long)]
    enter: bool,
    /// The limits, as JSON.
    #[arg(long, value_name = "JSON")]
    limits: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command in the current folder.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.enter {
        // It returns only when it failed, and then it has said so.
        sandbox::enter(&args.limits, &args.command)?;
        return Ok(ExitCode::FAILURE);
    }
    sandbox::supervise(&args.limits, &args.command)?;
    Ok(ExitCode::SUCCESS)
}
