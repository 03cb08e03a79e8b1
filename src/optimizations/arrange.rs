//! From a cell to what one of its processes runs.

use std::path::PathBuf;

use super::derive::{self, Evidence, Workshop};
use super::setup::{Arms, Setup};
use crate::cell::{Arm, Category, Cell};
use crate::error::Result;
use crate::package::Package;

/// What a process runs.
#[derive(Debug)]
pub struct Arranged {
    /// How.
    pub setup: Setup,
    /// The package: that of the cell, unless one was derived.
    pub package: PathBuf,
    /// What its derivations said.
    pub evidence: Evidence,
}

/// The arm that a process of the category runs: of `optimization_impact` one after the other, otherwise the optimized one.
pub fn arm(category: Category, process: u32) -> Arm {
    match category {
        Category::OptimizationImpact => Arm::of_process(process),
        _ => Arm::Optimized,
    }
}

/// What a process of the cell runs; everything derived must be there.
///
/// # Errors
/// A package that is not there, a technique that cannot be applied.
pub fn arrange(cell: &Cell, arm: Arm) -> Result<Arranged> {
    let Some(plan) = cell.optimizations.as_ref().filter(|_| cell.is_optimized()) else {
        let setup = Setup::plain(cell);
        return Ok(Arranged { package: setup.package.clone(), setup, evidence: Evidence::new() });
    };
    let setup = arms(cell)?.into_arm(arm);
    let derived = derive::find(&setup, &plan.derived)?;
    Ok(Arranged { setup, package: derived.package.root, evidence: derived.evidence })
}

/// Both arms of a cell.
///
/// # Errors
/// As [`Arms::of`], and a package that cannot be opened.
pub fn arms(cell: &Cell) -> Result<Arms> {
    Arms::of(cell, &Package::open(&cell.model.package)?.manifest)
}

/// Whether everything that the cell's arms run is there.
pub fn is_prepared(cell: &Cell) -> bool {
    [Arm::Baseline, Arm::Optimized].into_iter().all(|arm| arrange(cell, arm).is_ok())
}

/// Derives what the cell's arms run and is not there yet.
///
/// # Errors
/// As [`derive::prepare`].
pub fn prepare(cell: &Cell, workshop: &Workshop) -> Result<()> {
    let Some(plan) = cell.optimizations.as_ref().filter(|_| cell.is_optimized()) else { return Ok(()) };
    let arms = arms(cell)?;
    for setup in [&arms.baseline, &arms.optimized] {
        derive::prepare(setup, &plan.derived, workshop)?;
    }
    Ok(())
}
