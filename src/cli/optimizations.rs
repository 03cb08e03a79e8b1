//! `ortbench optimizations`: what a matrix can switch on.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use crate::cell::{Switched, Technique};
use crate::error::{Context, Error, Result};
use crate::optimizations;
use crate::results::table::{Table, wrap};
use crate::yaml::suggest;

/// The options of `ortbench optimizations`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of an optimization.
    name: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let text = match &args.name {
        None => list(),
        Some(name) => {
            let technique = name.parse().map_err(|_| {
                Error::new(format!("there is no optimization `{name}`{}", suggest(name, Technique::NAMES)))
                    .hint("`ortbench optimizations` lists them")
            })?;
            describe(technique)
        }
    };
    write!(std::io::stdout().lock(), "{text}").context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

/// The figure by which a technique is judged, unless it is told otherwise.
fn objective(technique: Technique) -> &'static str {
    let plain = Switched { technique, options: Default::default() };
    optimizations::objective(&plain).map_or("", |metric| metric.name())
}

fn list() -> String {
    let mut table = Table::new(["name", "judged by", "options"].map(str::to_owned).to_vec());
    for technique in Technique::ALL {
        let options: Vec<_> = optimizations::of(*technique).options().iter().map(|option| option.name).collect();
        table.row(vec![technique.to_string(), objective(*technique).to_owned(), options.join(" ")]);
    }
    format!(
        "{table}\nSwitched on in a matrix by `optimizations: [none, NAME, {{NAME: {{OPTION: VALUE}}}}, all]`, compared by the\n\
         category `optimization_impact`. `ortbench optimizations NAME` says more.\n"
    )
}

fn describe(technique: Technique) -> String {
    let optimization = optimizations::of(technique);
    let mut text = format!("{technique}\n{}\n", wrap(optimization.summary(), 110));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "Judged by {}.\n", objective(technique));
    let options = optimization.options();
    if options.is_empty() {
        text.push_str("It has no options.\n");
        return text;
    }
    let mut table = Table::new(["option", "default", "values"].map(str::to_owned).to_vec());
    for option in options {
        table.row(vec![option.name.to_owned(), option.default.to_owned(), option.kind.describe()]);
    }
    let _ = writeln!(text, "{table}");
    for option in options {
        let _ = writeln!(text, "{}", wrap(&format!("{}: {}", option.name, option.description), 110));
    }
    text
}
