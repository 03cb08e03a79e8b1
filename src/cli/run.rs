//! `ortbench run`: runs a matrix.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cell::{Cell, RuntimeRef, Status};
use crate::config;
use crate::error::{Context, Error, Result};
use crate::orchestrator::child::Worker;
use crate::orchestrator::interrupt::{INTERRUPTED, Interrupt};
use crate::orchestrator::{self, Host, Options, Report, progress};
use crate::probe;
use crate::results::{Refusal, compare, folder};
use crate::runtime::catalog;

/// The options of `ortbench run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The matrix; `benchmarks.yaml` when left out (with `--resume`, the cells that the run was started with).
    file: Option<PathBuf>,
    /// Below this folder the run makes its own.
    #[arg(long, value_name = "DIR", default_value = "results")]
    results: PathBuf,
    /// Continue the run in this folder: what is finished stays.
    #[arg(long, value_name = "DIR", conflicts_with = "results")]
    resume: Option<PathBuf>,
    /// With `--resume`: do again what ended without a measurement.
    #[arg(long, requires = "resume")]
    retry_failed: bool,
    /// Run only cells whose id contains PATTERN (`*` stands for anything).
    #[arg(long, value_name = "PATTERN", conflicts_with = "resume")]
    cell: Option<String>,
    /// End with 0 even where cells are `unsupported`: what a provider lacks is a result of a comparison.
    #[arg(long)]
    allow_unsupported: bool,
    /// Begin the tables with a byte order mark, by which Excel knows UTF-8.
    #[arg(long)]
    excel: bool,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut progress = progress::for_standard_error(args.quiet);
    let matrix = match (&args.file, &args.resume) {
        (None, Some(_)) => None,
        (file, _) => Some(config::load(file.as_deref().unwrap_or("benchmarks.yaml".as_ref()))?),
    };
    let host = ThisMachine { results: args.resume.clone().unwrap_or_else(|| args.results.clone()) };
    let options = Options {
        worker: Worker::this_program()?,
        host: &host,
        progress: &mut *progress,
        interrupt: Interrupt::install()?,
        byte_order_mark: args.excel,
    };
    let report = match (&args.resume, matrix) {
        (Some(folder), matrix) => orchestrator::resume(folder, matrix.as_ref(), args.retry_failed, options)?,
        (None, Some(matrix)) => {
            let matrix = match &args.cell {
                Some(pattern) => matrix.only(pattern)?,
                None => matrix,
            };
            if matrix.cells.is_empty() {
                return Err(Error::new("every cell of that name is excluded").hint("`ortbench plan` says why"));
            }
            orchestrator::start(&matrix, &args.results, options)?
        }
        (None, None) => return Err(Error::new("there is neither a matrix nor a run to continue")),
    };
    print(&report).context("cannot print the comparison")?;
    Ok(exit_code(&report, args.allow_unsupported))
}

/// How the process ends; `docs/exit-codes.md` lists all codes.
fn exit_code(report: &Report, allow_unsupported: bool) -> ExitCode {
    if report.interrupted {
        ExitCode::from(INTERRUPTED)
    } else if report.all_end_at_worst(if allow_unsupported { Status::Unsupported } else { Status::Measured }) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn print(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "\n{}", compare::render(&report.outcomes))?;
    let unfinished = report.cells - report.outcomes.len();
    if unfinished > 0 {
        let folder = report.folder.display();
        writeln!(out, "{unfinished} of {} cells are not finished: `ortbench run --resume {folder}`", report.cells)?;
    }
    writeln!(out, "{}", report.folder.join(folder::SUMMARY).display())?;
    out.flush()
}

/// What this machine has.
struct ThisMachine {
    /// Where results are written.
    results: PathBuf,
}

impl Host for ThisMachine {
    fn library(&self, runtime: &RuntimeRef) -> Result<PathBuf> {
        Ok(catalog::find(runtime)?.path)
    }

    fn refuse(&self, cell: &Cell) -> Option<Refusal> {
        let skip = config::preflight(cell, probe::usable_memory_bytes()).err()?;
        Some(Refusal { status: skip.status, reason: skip.reason, hint: skip.hint })
    }

    fn environment(&self) -> serde_json::Value {
        // A struct of plain fields: serialization cannot fail.
        serde_json::to_value(probe::environment(&self.results)).unwrap_or_default()
    }
}
