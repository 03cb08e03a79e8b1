//! The command line: one file a command. Parsing never does anything.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Result;

mod columns;
mod compare;
mod doctor;
mod doctor_gpu;
mod generate;
mod optimizations;
mod pack;
mod plan;
mod run;
mod runtime;
mod sandbox;
mod schema;
mod stage;
mod surgery;
mod tasks;
mod worker;

/// Compares ONNX Runtime's execution providers on language models: speed, throughput, memory and accuracy, measured.
#[derive(Debug, Parser)]
#[command(name = "ortbench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a matrix and write its results as CSV.
    Run(run::Args),
    /// Print the expanded matrix: cells, what would be skipped and why, and the memory each needs.
    Plan(plan::Args),
    /// Print a finished run as a comparison table.
    Compare(compare::Args),
    /// Let a model answer a prompt.
    Generate(generate::Args),
    /// Turn a package into a pack, whose weights are read when they are needed: for models larger than memory.
    Pack(pack::Args),
    /// Cut layers, experts or tokens off a model, by what is measured of them, into a package of its own.
    Surgery(surgery::Args),
    /// Say which runtimes, providers, meters and limits this machine has, and what adds the missing ones.
    Doctor(doctor::Args),
    /// Install or list builds of ONNX Runtime.
    Runtime(runtime::Args),
    /// Document the columns of the results.
    Columns(columns::Args),
    /// Print the JSON Schema of the matrix file.
    Schema(schema::Args),
    /// List the optimizations that a matrix can switch on, or say what one does and what it can be told.
    Optimizations(optimizations::Args),
    /// List the task sets that the program describes, print a description, or show how it renders a file of items.
    Tasks(tasks::Args),
    /// Run one job from standard input (used by `run`).
    #[command(hide = true)]
    Worker(worker::Args),
    /// Run some of a model's segments for another process (used by `run`).
    #[command(hide = true)]
    Stage(stage::Args),
    /// Run a generated program, confined (used by `run`).
    #[command(hide = true)]
    Sandbox(sandbox::Args),
}

/// Runs the command and says how the process ends.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => run::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Pack(args) => pack::run(args),
        Command::Surgery(args) => surgery::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Runtime(args) => runtime::run(args),
        Command::Columns(args) => columns::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Optimizations(args) => optimizations::run(args),
        Command::Tasks(args) => tasks::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Stage(args) => stage::run(&args),
        Command::Sandbox(args) => sandbox::run(args),
    }
}
