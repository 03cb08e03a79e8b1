//! What is measured: one file a category, one trait, one row in [`of`].

mod accuracy;
mod ceilings;
mod common;
mod disk;
mod feeding;
mod gpu;
mod graph;
mod impact;
mod memory;
mod power;
mod resident;
mod speed;
mod streaming;
mod throughput;

pub use accuracy::Answers;
pub use ceilings::ceilings;

use std::path::Path;

use crate::cell::{Category, Cell, ModelKind};
use crate::engine::Plan;
use crate::error::{Error, Result};
use crate::optimizations::{Evidence, Setup};
use crate::protocol::Reporter;
use crate::runtime::Runtime;

/// What a category measures with.
pub struct Context<'a> {
    /// The loaded library.
    pub runtime: &'a Runtime,
    /// The configuration.
    pub cell: &'a Cell,
    /// How it is run: the arm of this process, where the cell has optimizations.
    pub setup: &'a Setup,
    /// The package of that arm; that of the cell unless one was derived.
    pub package: &'a Path,
    /// What the derivations of the package said.
    pub evidence: &'a Evidence,
    /// Which of the cell's repeated processes this is.
    pub process: u32,
    /// The folder of the reference's answers, which the reference itself writes.
    pub reference: Option<&'a Path>,
    /// The folder for caches that wait on disk, where the cell's do.
    pub offload: Option<&'a Path>,
    /// Where figures go.
    pub report: &'a Reporter,
}

impl Context<'_> {
    /// How the cell's model is loaded and run.
    pub fn plan(&self) -> Plan {
        let mut plan = self.setup.plan.clone();
        if self.cell.memory.offload || plan.offload.is_some() {
            plan.offload = self.offload.map(Path::to_owned);
        }
        plan
    }
}

/// A category that only models of another kind have; the matrix file is refused before it comes to this.
struct NotOfThisKind(&'static str);

impl Measure for NotOfThisKind {
    fn measure(&self, _context: &Context) -> Result<()> {
        Err(Error::unsupported(format!("this category is for {}", self.0)))
    }
}

/// A category of measurement, run in a process of its own.
pub trait Measure: Sync {
    /// Measures and reports every series and fact that `metrics` names for the category.
    ///
    /// # Errors
    /// Whatever ends the cell without a result.
    fn measure(&self, context: &Context) -> Result<()>;
}

/// The category behind a name, as it is measured of the cell's model.
pub fn of(cell: &Cell, category: Category) -> &'static dyn Measure {
    if cell.kind() == ModelKind::Graph {
        return graph::of(category);
    }
    match category {
        Category::Speed => &speed::Speed,
        Category::Throughput => &throughput::Throughput,
        Category::Memory => &memory::Memory,
        Category::Accuracy => &accuracy::Accuracy,
        Category::Power => &power::Power,
        Category::OptimizationImpact => &impact::Impact,
        Category::Operators => &NotOfThisKind("models of `kind: graph`"),
    }
}
