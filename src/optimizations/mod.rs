//! Optimizations: one file each, one trait, one row in [`of`].
//!
//! An optimization edits a [`Setup`]: which package is loaded (by derivations of the cell's), on which backend, and the
//! engine's [`Plan`]. The engine does not know which ones are on. They compose as long as no two of them give one knob
//! different values ([`setup::Arms::of`]).

mod activation_offload;
pub mod adaptive_microbatching;
mod arrange;
mod budget;
mod derive;
mod disk_offload;
mod disk_pipeline;
pub mod distributed_simulation;
mod kernel_fusion;
pub mod model_surgery;
mod options;
pub mod pack;
mod runtime_memory;
mod setup;
mod sharding_streaming;
mod smart_paging;
pub mod tensor_compression;

pub use arrange::{Arranged, arm, arms, arrange, is_prepared, prepare};
pub use derive::{Derivation, Evidence, Stage, Workshop};
pub use kernel_fusion::KernelFusion;
pub use options::{OptionKind, OptionSpec, Options};
pub use runtime_memory::Compiled;
pub use setup::{Arms, Setup, Subject, known};

use crate::cell::{Cell, ImpactMetric, Switched, Technique};
use crate::error::{Kind, Result};
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
    fn check(&self, _subject: &Subject, _options: &Options) -> Result<()> {
        Ok(())
    }

    /// Whether it makes a pack of a package that is none, so that axes which only packs have may be set.
    fn derives_pack(&self, _options: &Options) -> bool {
        false
    }

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
        Technique::RuntimeMemory => &runtime_memory::RuntimeMemory,
        Technique::SmartPaging => &smart_paging::SmartPaging,
        Technique::AdaptiveMicrobatching => &adaptive_microbatching::AdaptiveMicrobatching,
        Technique::KernelFusion => &kernel_fusion::KernelFusion,
        Technique::DistributedSimulation => &distributed_simulation::DistributedSimulation,
        Technique::TensorCompression => &tensor_compression::TensorCompression,
        Technique::ShardingStreaming => &sharding_streaming::ShardingStreaming,
        Technique::DiskOffload => &disk_offload::DiskOffload,
        Technique::ModelSurgery => &model_surgery::ModelSurgery,
        Technique::DiskPipeline => &disk_pipeline::DiskPipeline,
        Technique::ActivationOffload => &activation_offload::ActivationOffload,
    }
}

/// Checks what a technique is told, and drops what is its default anyway.
///
/// # Errors
/// An option that it does not have, a value that is none of the option's.
pub fn check_options(switched: &mut Switched) -> std::result::Result<(), String> {
    let specs = of(switched.technique).options();
    Options::of(specs, switched)?;
    switched.options.retain(|name, value| specs.iter().any(|spec| spec.name == name && spec.default != value));
    Ok(())
}

/// The figure by which a technique is judged.
pub fn objective(switched: &Switched) -> Option<ImpactMetric> {
    let technique = of(switched.technique);
    Some(technique.objective(&Options::of(technique.options(), switched).ok()?))
}

/// Whether the cell's optimizations make a pack of its package.
pub fn derive_pack(cell: &Cell) -> bool {
    let switched = cell.optimizations.iter().flat_map(|plan| &plan.switched);
    switched.into_iter().any(|one| {
        let technique = of(one.technique);
        Options::of(technique.options(), one).is_ok_and(|options| technique.derives_pack(&options))
    })
}

/// Why the cell's optimizations cannot stand together, or not with its axes, where its package is there to tell.
pub fn contradiction(cell: &Cell) -> Option<String> {
    let package = cell.is_optimized().then(|| Package::open(&cell.model.package).ok())??;
    let error = Arms::of(cell, &package.manifest).err()?;
    (error.root_kind() == Kind::Input).then(|| error.chain())
}
