//! `ortbench worker` (hidden): the measuring side of a run.

use std::io::{Read, Write};
use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::engine::fake;
use crate::error::{Context, Error, Result};
use crate::protocol::{Job, Message};

/// The options of `ortbench worker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Loads no library and behaves as the script says; `run` never passes it, tests do.
    #[arg(long, value_name = "SCRIPT")]
    fake: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    // A runner that is killed takes its worker with it.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot ask to end with the runner")?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the job from standard input")?;
    let job: Job = serde_json::from_str(&text).context("cannot understand the job on standard input")?;
    let mut emit = |message: Message| {
        // A reader that is gone has no use for the rest.
        let line = serde_json::to_string(&message).expect("a message is plain data");
        if writeln!(std::io::stdout().lock(), "{line}").is_err() {
            std::process::exit(1);
        }
    };
    match args.fake {
        Some(script) => {
            let behaviour = fake::behaviour(&script, &job).map_err(Error::new)?;
            fake::run(&job, &behaviour, &mut emit);
            Ok(ExitCode::SUCCESS)
        }
        None => Err(Error::new("`ortbench worker` is not part of this build")),
    }
}
