//! `benchmarks.yaml`: the file as written (`file`), checked with positions and hints (`check`), expanded to a matrix
//! of cells (`expand`).

mod accuracy;
mod axes;
mod check;
pub mod estimate;
mod expand;
mod file;
mod graph;
mod memory;
mod optimizations;
mod paths;
mod plans;
mod power;
mod preflight;
mod problem;
mod schema;

pub use preflight::{Ready, Skip, preflight};
pub use schema::schema;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cell::{Category, Cell, CellId};
use crate::error::{Context, Error, Result};
use crate::yaml;

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
    /// Cells from which the category accuracy was taken, because none of its tasks applies to them.
    pub without_tasks: Vec<CellId>,
}

impl Matrix {
    /// The cells whose id contains the pattern; `*` stands for anything. The references of their accuracy come along,
    /// for their own accuracy alone.
    ///
    /// # Errors
    /// A pattern that no cell matches.
    pub fn only(mut self, pattern: &str) -> Result<Self> {
        let all = self.cells.len();
        let chosen = |cell: &Cell| matches(&cell.id.0, pattern);
        let reference = |cell: &Cell| cell.accuracy.as_ref()?.reference.clone();
        let references: BTreeSet<_> = self.cells.iter().filter(|cell| chosen(cell)).filter_map(reference).collect();
        self.cells.retain_mut(|cell| {
            if !chosen(cell) {
                cell.categories = vec![Category::Accuracy];
            }
            chosen(cell) || references.contains(&cell.id)
        });
        self.excluded.retain(|cell| matches(&cell.id.0, pattern));
        self.without_tasks.retain(|cell| matches(&cell.0, pattern));
        if self.cells.is_empty() && self.excluded.is_empty() {
            return Err(Error::new(format!("none of the {all} cells has an id that contains `{pattern}`"))
                .hint("`ortbench plan` lists the ids"));
        }
        Ok(self)
    }
}

/// True when the parts between the stars occur in the text, in that order.
fn matches(text: &str, pattern: &str) -> bool {
    let mut rest = text;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// A cell that a rule dropped.
#[derive(Debug, Clone, PartialEq)]
pub struct Excluded {
    /// The cell it would have been.
    pub id: CellId,
    /// The rule's own reason, or the rule itself.
    pub reason: String,
}

/// Matrix files are written by hand; anything larger is another file.
const MAX_BYTES: u64 = 4 << 20;

/// Reads, checks and expands a matrix file. Nothing has run when this fails.
///
/// # Errors
/// Any unknown key, wrong value, empty axis or contradiction, with line, column and the nearest valid word.
pub fn load(path: &Path) -> Result<Matrix> {
    let failed = || format!("cannot read the matrix file `{}`", path.display());
    let hint = "name another file: `ortbench run FILE`; `ortbench schema` describes what it holds";
    let text = yaml::text_of(path, MAX_BYTES, failed, hint)?;
    let source = fs::canonicalize(path).with_context(failed)?;
    parse(&path.display().to_string(), &source, text)
}

/// Checks and expands a matrix file's text; `shown` is the file's name in messages.
fn parse(shown: &str, source: &Path, text: String) -> Result<Matrix> {
    let folder = source.parent().unwrap_or(Path::new("/"));
    let problems = |problems: Vec<problem::Problem>| problem::report(shown, &text, problems);
    let written = file::parse(&text).map_err(|problem| problems(vec![problem]))?;
    let checked = check::check(&written, folder).map_err(problems)?;
    let expand::Expanded { cells, excluded, without_tasks } = expand::expand(&checked).map_err(problems)?;
    Ok(Matrix { name: checked.name, source: source.to_owned(), cells, excluded, without_tasks, text })
}

#[cfg(test)]
mod tests;
