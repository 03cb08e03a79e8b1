//! `ortbench columns`: documents the columns of the results.

use std::io::Write;
use std::process::ExitCode;

use crate::error::{Context, Result};
use crate::results::columns;

/// The options of `ortbench columns`.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print CSV.
    #[arg(long)]
    csv: bool,
    /// Print Markdown (the default).
    #[arg(long)]
    markdown: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if args.json {
        let text = serde_json::to_string_pretty(&columns::json()).context("cannot express the columns as JSON")?;
        writeln!(out, "{text}").context("cannot print the columns")?;
    } else if args.csv {
        let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(out);
        for row in columns::csv() {
            writer.write_record(&row).context("cannot print the columns")?;
        }
        writer.flush().context("cannot print the columns")?;
    } else {
        write!(out, "{}", columns::markdown()).context("cannot print the columns")?;
    }
    Ok(ExitCode::SUCCESS)
}
