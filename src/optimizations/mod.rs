//! Optimizations: one file each, one trait, one row in [`of`].
//!
//! An optimization edits a [`Setup`]: which package is loaded (by derivations of the cell's), on which backend, and the
//! engine's [`Plan`]. The engine does not know which ones are on. They compose as long as no two of them give one knob
//! different values ([`setup::Arms::of`]).

mod derive;
mod options;
pub mod pack;
mod setup;
pub mod tensor_compression;

pub use derive::{Derivation, Derived, Evidence, Stage, Workshop, find, prepare};
pub use options::{OptionKind, OptionSpec, Options};
pub use setup::{Arms, Setup, Subject};

use crate::cell::{Cell, ImpactMetric, Technique};
use crate::error::{Error, Result};
use crate::package::Package;
use crate::protocol::Reporter;
use crate::runtime::Runtime;

/// An optimization technique.
pub trait Optimization: Sync {
    /// Its name.
    fn technique(&self) -> Technique;

    /// What it does, in one sentence.
    fn summary(&self) -> &'static str;

    /// What it can be told.
    fn options(&self) -> &'static [OptionSpec] {
        &[]
    }

    /// The figure by which it is judged; all others are given beside it.
    fn objective(&self, options: &Options) -> ImpactMetric;

    /// Whether it can be applied; nothing runs for the answer.
    ///
    /// # Errors
    /// Why not (of the kind `unsupported`): what the model or the provider lacks, named.
    fn check(&self, subject: &Subject, options: &Options) -> Result<()>;

    /// What it is compared with, where that is not simply the cell without it.
    ///
    /// # Errors
    /// A baseline that the cell cannot have.
    fn baseline(&self, _setup: &mut Setup, _subject: &Subject, _options: &Options) -> Result<()> {
        Ok(())
    }

    /// Switches it on.
    ///
    /// # Errors
    /// Options that the model cannot follow.
    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()>;

    /// What is measured of it besides, once, in the first optimized process after everything else: evidence that it
    /// acted, or a figure to hold it against.
    ///
    /// # Errors
    /// Whatever ends the cell without a result.
    fn examine(&self, _exam: &Examination, _options: &Options) -> Result<Evidence> {
        Ok(Evidence::new())
    }
}

/// What [`Optimization::examine`] examines with.
pub struct Examination<'a> {
    /// The loaded library.
    pub runtime: &'a Runtime,
    /// The cell.
    pub cell: &'a Cell,
    /// The optimized arm …
    pub setup: &'a Setup,
    /// … and its package.
    pub package: &'a Package,
    /// Progress and warnings.
    pub report: &'a Reporter,
}

/// The optimization behind a name.
pub fn of(technique: Technique) -> &'static dyn Optimization {
    match technique {
        Technique::RuntimeMemory => &Missing(Technique::RuntimeMemory),
        Technique::SmartPaging => &Missing(Technique::SmartPaging),
        Technique::AdaptiveMicrobatching => &Missing(Technique::AdaptiveMicrobatching),
        Technique::KernelFusion => &Missing(Technique::KernelFusion),
        Technique::DistributedSimulation => &Missing(Technique::DistributedSimulation),
        Technique::TensorCompression => &tensor_compression::TensorCompression,
        Technique::ShardingStreaming => &Missing(Technique::ShardingStreaming),
        Technique::DiskOffload => &Missing(Technique::DiskOffload),
        Technique::ModelSurgery => &Missing(Technique::ModelSurgery),
        Technique::DiskPipeline => &Missing(Technique::DiskPipeline),
        Technique::ActivationOffload => &Missing(Technique::ActivationOffload),
    }
}

/// A technique that is not built yet.
struct Missing(Technique);

impl Optimization for Missing {
    fn technique(&self) -> Technique {
        self.0
    }

    fn summary(&self) -> &'static str {
        "Not built yet."
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::Decode
    }

    fn check(&self, _subject: &Subject, _options: &Options) -> Result<()> {
        Err(Error::unsupported(format!("this version has no `{}`", self.0)))
    }

    fn apply(&self, _setup: &mut Setup, _subject: &Subject, _options: &Options) -> Result<()> {
        Ok(())
    }
}
