//! Runs a matrix: one process a category of a cell, a journal, resume and progress.
//!
//! The parent never loads ONNX Runtime. It starts workers one after the other, believes only what they measured and
//! could be true, and has every finished job on disk before the next one starts.

mod ceilings;
pub mod child;
mod collect;
pub mod conditions;
mod ending;
pub mod interrupt;
pub mod memory_group;
mod memory_kills;
pub mod progress;
mod references;
mod runner;
pub mod schedule;

use std::path::PathBuf;

pub use runner::{Options, Report, resume, start};

use crate::cell::{Cell, RuntimeRef};
use crate::error::Result;
use crate::results::Refusal;

/// What the orchestrator asks the rest of the program, so that tests can answer.
pub trait Host {
    /// Where the library of a runtime lies.
    ///
    /// # Errors
    /// A runtime that is not there, with the command that adds it.
    fn library(&self, runtime: &RuntimeRef) -> Result<PathBuf>;

    /// Why a cell cannot be started on this machine, if it cannot.
    fn refuse(&self, cell: &Cell) -> Option<Refusal>;

    /// Facts of the machine and of this program.
    fn environment(&self) -> serde_json::Value;
}
