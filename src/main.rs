//! Parse, dispatch, print the error chain once, exit.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = ortbench::cli::Cli::parse();
    ortbench::cli::dispatch(cli).unwrap_or_else(|error| {
        eprintln!("error: {}", error.chain());
        if let Some(hint) = error.find_hint() {
            eprintln!("hint: {hint}");
        }
        ExitCode::from(error.exit_code())
    })
}
