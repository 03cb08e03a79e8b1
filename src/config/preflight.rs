//! What can be known of a cell without running it: used by `plan`, and by `run` before it starts a process.

use crate::cell::{Cell, Status};
use crate::config::estimate::{self, MemoryEstimate};
use crate::config::memory;
use crate::error::{Error, Result};
use crate::optimizations::Arms;
use crate::package::Package;
use crate::package::onnx::Signature;
use crate::runtime::catalog::{self, Library};
use crate::units;

/// Why a cell is not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// How its row ends.
    pub status: Status,
    /// In one line.
    pub reason: String,
    /// What can be done.
    pub hint: Option<String>,
}

/// What a cell that can be run needs.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The libonnxruntime to load.
    pub library: Library,
    /// Memory, estimated.
    pub memory: MemoryEstimate,
}

/// Finds package and runtime, and checks that they fit the cell and the cell fits the memory (`memory_limit`, bytes,
/// where one is known).
///
/// # Errors
/// The reason for which the cell cannot run, as its row will say it.
pub fn preflight(cell: &Cell, memory_limit: Option<u64>) -> Result<Ready, Skip> {
    let failed = |error: Error| Skip::of(Status::Failed, &error);
    let unsupported = |error: Error| Skip::of(Status::Unsupported, &error);
    let (library, memory) = match &cell.graph {
        Some(graph) => {
            let file = &cell.model.package;
            let bytes = Signature::read(file).map_err(failed)?.bytes(file);
            (catalog::find(&cell.backend.runtime).map_err(unsupported)?, estimate::graph(graph, bytes))
        }
        None => {
            let package = Package::open(&cell.model.package).map_err(failed)?;
            fits(cell, &package).map_err(unsupported)?;
            Arms::of(cell, &package.manifest).map_err(unsupported)?;
            let library = catalog::find(&cell.backend.runtime).map_err(unsupported)?;
            let pack_weights = match cell.memory.residency {
                Some(_) => package.weights_bytes().map_err(failed)?,
                None => 0,
            };
            (library, estimate::memory(cell, &package.manifest, pack_weights))
        }
    };
    // A cell under a limit of its own takes no more than that: whether it manages with it is what is measured.
    let needed = cell.memory.limit_bytes.map_or(memory.total(), |limit| memory.total().min(limit));
    if let Some(limit) = memory_limit.filter(|&limit| needed > limit) {
        return Err(Skip {
            status: Status::OutOfMemory,
            reason: format!(
                "the cell needs about {} ({}), and a process may use {} now",
                units::bytes(needed),
                memory.parts(),
                units::bytes(limit)
            ),
            hint: Some(match &cell.graph {
                Some(_) => "give its inputs smaller shapes".to_owned(),
                None => "use a lower precision, another flavour, a smaller batch, prompt or image".to_owned(),
            }),
        });
    }
    Ok(Ready { library, memory })
}

impl Skip {
    fn of(status: Status, error: &Error) -> Self {
        Self { status, reason: error.chain(), hint: error.find_hint().map(ToOwned::to_owned) }
    }
}

fn fits(cell: &Cell, package: &Package) -> Result<()> {
    package.expect(cell.precision, cell.flavour)?;
    // The matrix file is checked before the packages are there, and they may change until the cell runs.
    let pack = memory::is_pack(&cell.model.package);
    if pack != cell.memory.residency.is_some() {
        let (found, asked) = if pack { ("a pack", "one that is none") } else { ("no pack", "one") };
        let message = format!("the package `{}` is {found}, the cell asks for {asked}", package.root.display());
        return Err(Error::unsupported(message).hint("make packs first (`ortbench pack`), then start a new run"));
    }
    let manifest = &package.manifest;
    package.text_tokens(&cell.workload)?;
    let tokens = u64::from(cell.workload.prompt_tokens) + u64::from(cell.workload.generate_tokens);
    if tokens > manifest.shape.context_length {
        return Err(Error::unsupported(format!(
            "{tokens} tokens (prompt and generated) exceed the model's context of {}",
            manifest.shape.context_length
        ))
        .hint("lower `prompt_tokens` or `generate_tokens`"));
    }
    Ok(())
}
