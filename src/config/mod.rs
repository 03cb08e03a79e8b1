//! `benchmarks.yaml`: the file as written (`file`), checked with positions and hints, expanded to a matrix of cells
//! (`matrix`).

use std::path::{Path, PathBuf};

use crate::cell::{Cell, CellId};
use crate::error::Result;

/// An expanded, valid matrix file.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// The run's name, part of the results folder's name.
    pub name: String,
    /// The file that declared it, absolute.
    pub source: PathBuf,
    /// The file's text, copied into the results.
    pub text: String,
    /// What runs, in this order.
    pub cells: Vec<Cell>,
    /// What the rules dropped.
    pub excluded: Vec<Excluded>,
}

/// A cell that an `exclude` rule dropped.
#[derive(Debug, Clone, PartialEq)]
pub struct Excluded {
    /// The cell it would have been.
    pub id: CellId,
    /// The rule's own reason, or the rule itself.
    pub reason: String,
}

/// Reads, checks and expands a matrix file. Nothing has run when this fails.
///
/// # Errors
/// Any unknown key, wrong value, empty axis or contradiction, with line, column and the nearest valid word.
pub fn load(_path: &Path) -> Result<Matrix> {
    todo!("config::load")
}
