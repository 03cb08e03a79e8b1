//! `ortbench compare`: prints a finished run as a table.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::error::{Context, Result};
use crate::results::record::Record;
use crate::results::{compare, folder};

/// The options of `ortbench compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run's folder; the newest one when left out.
    folder: Option<PathBuf>,
    /// Where runs are looked for.
    #[arg(long, value_name = "DIR", default_value = "results")]
    results: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let path = match args.folder {
        Some(path) => path,
        None => folder::newest(&args.results)?,
    };
    let (record, _) = Record::load(&path)?;
    let outcomes = record.outcomes();
    let mut out = std::io::stdout().lock();
    let mut print = || {
        writeln!(out, "{}\n", path.display())?;
        write!(out, "{}", compare::render(&outcomes))?;
        let unfinished = record.cells.len() - outcomes.len();
        if unfinished > 0 {
            writeln!(
                out,
                "{unfinished} of {} cells are not finished: `ortbench run --resume {}`",
                record.cells.len(),
                path.display()
            )?;
        }
        out.flush()
    };
    print().context("cannot print the comparison")?;
    Ok(ExitCode::SUCCESS)
}
