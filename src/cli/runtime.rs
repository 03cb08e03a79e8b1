//! `ortbench runtime`: installs and lists builds of ONNX Runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::runtime::catalog::{self, PINS};
use crate::runtime::install::{self, Outcome};

/// The options of `ortbench runtime`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch pinned wheels from PyPI with pip, check their hashes, and place their libraries in the cache folder.
    Install {
        /// cpu, openvino, cuda.
        #[arg(required = true)]
        names: Vec<String>,
        /// A wheel at hand, for machines without network; its hash must be the pinned one.
        #[arg(long)]
        wheel: Option<PathBuf>,
    },
    /// List the known runtimes and where the installed ones lie.
    List {
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.action {
        Action::Install { names, wheel } => install(&names, wheel)?,
        Action::List { json } => list(json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn install(names: &[String], wheel: Option<PathBuf>) -> Result<()> {
    if wheel.is_some() && names.len() > 1 {
        return Err(Error::new("`--wheel` is one runtime's wheel").hint("install the runtimes one by one"));
    }
    // All names are checked before the first download.
    let pins = names.iter().map(|name| catalog::pin(name)).collect::<Result<Vec<_>>>()?;
    let root = catalog::folder()?;
    for pin in pins {
        match install::install(&root, pin, wheel.as_deref(), &|step| eprintln!("{step}"))? {
            Outcome::AlreadyThere(place) => println!("{} {} is there: {}", pin.name, pin.version, place.display()),
            Outcome::Placed(place) => println!("{} {} placed in {}", pin.name, pin.version, place.display()),
        }
    }
    Ok(())
}

fn list(as_json: bool) -> Result<()> {
    let root = catalog::folder()?;
    let pins: Vec<_> = PINS.iter().filter(|pin| pin.arch == std::env::consts::ARCH).collect();
    let place = |pin| {
        let folder = catalog::place(&root, pin);
        catalog::installed(&folder).map(|installed| folder.join(installed.library))
    };
    if as_json {
        let rows: Vec<_> = pins
            .iter()
            .map(|pin| json!({"name": pin.name, "project": pin.project, "version": pin.version, "about": pin.about, "library": place(pin)}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows).context("cannot print the list")?);
        return Ok(());
    }
    for pin in pins {
        println!("{:9} {:7} {}", pin.name, pin.version, pin.about);
        match place(pin) {
            Some(path) => println!("  {}", path.display()),
            None => println!("  not installed: `ortbench runtime install {}`", pin.name),
        }
    }
    Ok(())
}
