//! `ortbench worker` (hidden): the measuring side of a run.

use std::io::Write;
use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::engine::fake;
use crate::error::{Context, Error, Result};
use crate::protocol::Job;
use crate::worker;

/// The options of `ortbench worker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Load no library and behave as the script says. `ortbench run` never passes it, tests of the orchestrator do.
    #[arg(long, value_name = "SCRIPT")]
    fake: Option<String>,
}

/// Runs one job from standard input; messages go to standard output.
pub fn run(args: Args) -> Result<ExitCode> {
    // A runner that is killed outright must not leave a worker measuring for nobody.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie the worker to its parent")?;
    if let Some(script) = &args.fake {
        return pretend(script, &worker::read_job(std::io::stdin())?);
    }
    let report = worker::claim_stdout()?;
    let job = worker::read_job(std::io::stdin())?;
    let measured = worker::run(&job, &report)?;
    Ok(if measured { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The fake leaves standard output where it is, so that it can also misuse it.
fn pretend(script: &str, job: &Job) -> Result<ExitCode> {
    let behaviour = fake::behaviour(script, job).map_err(Error::new)?;
    fake::run(job, &behaviour, &mut |message| {
        let line = serde_json::to_string(&message).context("cannot encode a message");
        // A runner that died before this process asked to die with it is noticed here, at the first message.
        if line.and_then(|line| writeln!(std::io::stdout(), "{line}").context("cannot write a message")).is_err() {
            std::process::exit(1);
        }
    });
    Ok(ExitCode::SUCCESS)
}
