//! References: cells whose answers others are compared with, and the files in which those answers wait.
//!
//! A reference's own accuracy job writes `reference.json` and, for the comparison of distributions, the large
//! `logits.bin` into a folder of the run. Other cells' jobs read them there, so it runs first ([`super::schedule`]).

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::cell::{Category, Cell, CellId, Status};
use crate::error::Result;
use crate::results::folder::{RunFolder, write_error};
use crate::results::record::Record;
use crate::results::{JobEnd, JobKey};

/// The answers.
const ANSWERS: &str = "reference.json";
/// The distributions: too large to keep when no one needs them any more.
const DISTRIBUTIONS: &str = "logits.bin";
/// The baseline's answers, for the optimized arm of the same cell.
const BASELINE: &str = "baseline.bin";
/// The same of a graph's outputs.
const OUTPUTS: &str = "outputs.bin";

/// What a job finds of its reference.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// Everything, or the job needs nothing.
    Everything,
    /// The reference was measured, but its files are gone: its job must be run again.
    NoFiles(JobKey),
    /// The reference was not measured: the cell is scored alone, and its row says this sentence.
    NotMeasured(String),
    /// The reference was measured, its answers are gone and cannot be had again, and why. A later try may have them.
    NoAnswers(String),
}

/// The reference that a job of the cell reads or, where it is the cell itself, writes.
pub fn of(cell: &Cell, category: Category) -> Option<&CellId> {
    cell.accuracy.as_ref().filter(|_| category == Category::Accuracy)?.reference.as_ref()
}

/// The job that makes a reference's files.
pub fn job(reference: &CellId) -> JobKey {
    JobKey { cell: reference.clone(), category: Category::Accuracy, process: 0 }
}

/// Looks for what a job of the cell reads.
pub fn look(record: &Record, folder: &RunFolder, cell: &Cell, category: Category) -> Found {
    let Some(reference) = of(cell, category).filter(|reference| **reference != cell.id) else {
        return Found::Everything;
    };
    let job = job(reference);
    let (why, hint) = match (record.refused().get(reference), record.end(&job)) {
        (Some(refusal), _) => (format!("was not started: {}: {}", refusal.status, refusal.reason), &refusal.hint),
        (None, Some(end)) if end.status != Status::Measured => {
            let reason = end.reason.as_deref().unwrap_or("no reason was given");
            (format!("ended: {}: {reason}", end.status), &end.hint)
        }
        (None, Some(_)) if has_files(folder, cell, reference) => return Found::Everything,
        (None, Some(_)) => return Found::NoFiles(job),
        (None, None) => ("was not measured".to_owned(), &None),
    };
    let hint = hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
    Found::NotMeasured(format!("accuracy was not compared: the reference `{reference}` {why}{hint}"))
}

/// True when the folder of the reference has what the cell's plan needs.
pub fn has_files(folder: &RunFolder, cell: &Cell, reference: &CellId) -> bool {
    let path = folder.reference(reference);
    let distributions = cell.accuracy.as_ref().is_some_and(|plan| plan.fidelity.is_some());
    let large = if cell.graph.is_some() { Some(OUTPUTS) } else { distributions.then_some(DISTRIBUTIONS) };
    path.join(ANSWERS).is_file() && large.is_none_or(|name| path.join(name).is_file())
}

/// Makes the place of the reference that a job reads or writes, and returns it. Where the cell is the reference itself,
/// earlier answers are removed first: a process that is killed must not leave them beside half of new distributions.
///
/// # Errors
/// What the file system says.
pub fn prepare(folder: &RunFolder, cell: &Cell, category: Category) -> Result<Option<PathBuf>> {
    if category == Category::OptimizationImpact {
        // The baseline's answers, for its own optimized arm.
        folder.make_references()?;
        let path = folder.reference(&cell.id);
        fs::create_dir_all(&path).map_err(|error| write_error(&path, "cannot make", error))?;
        return Ok(Some(path));
    }
    let Some(reference) = of(cell, category) else { return Ok(None) };
    folder.make_references()?;
    let path = folder.reference(reference);
    if *reference == cell.id {
        let answers = path.join(ANSWERS);
        match fs::remove_file(&answers) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(write_error(&answers, "cannot remove", error));
            }
            _ => {}
        }
    }
    Ok(Some(path))
}

/// True when two runs of a reference's job read the same package and tasks and came to the same scores.
pub fn same(first: &JobEnd, second: &JobEnd) -> bool {
    let asked = |end: &JobEnd| {
        let tasks = end.tasks.iter().map(|task| (task.task.clone(), task.hash.clone(), task.figures.clone()));
        let read = ["package_hash", "inputs_hash"].map(|name| end.facts.get(name).cloned());
        (read, tasks.collect::<Vec<_>>())
    };
    asked(first) == asked(second)
}

/// Removes a reference's answers, so that nothing is compared with them. What cannot be removed is found again, and
/// refused again.
pub fn forget(folder: &RunFolder, reference: &CellId) {
    let _ = fs::remove_file(folder.reference(reference).join(ANSWERS));
}

/// Removes what is large once no cell is due. What cannot be removed does no harm.
pub fn remove_distributions(record: &Record, folder: &RunFolder) {
    for reference in record.cells.iter().filter_map(|cell| of(cell, Category::Accuracy)) {
        for name in [DISTRIBUTIONS, OUTPUTS] {
            let _ = fs::remove_file(folder.reference(reference).join(name));
        }
    }
    for cell in record.cells.iter().filter(|cell| cell.optimizations.is_some()) {
        let _ = fs::remove_file(folder.reference(&cell.id).join(BASELINE));
    }
}
