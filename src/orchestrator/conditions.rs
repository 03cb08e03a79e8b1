//! Under which conditions a worker runs: how long, with how much memory, and with what in the page cache.

use std::path::Path;
use std::time::Duration;

use crate::cell::{Cell, ModelKind};
use crate::error::{Context, Result};
use crate::loader::page_cache;
use crate::orchestrator::memory_group::MemoryGroup;
use crate::package::onnx::Signature;
use crate::probe::limits::MemoryLimits;

/// The conditions of one process.
#[derive(Debug, Default)]
pub struct Conditions {
    /// The longest time.
    pub timeout: Duration,
    /// The group that limits its memory; removed with this value.
    pub group: Option<MemoryGroup>,
    /// Whether its memory is looked at while it runs.
    pub sampled: bool,
    /// Bytes of the package that stayed in the page cache, where it was to be emptied of them.
    pub cached_bytes: Option<u64>,
    /// What the row's reader should know.
    pub warnings: Vec<String>,
}

impl Conditions {
    /// Nothing but a timeout.
    pub fn within(timeout: Duration) -> Self {
        Self { timeout, ..Self::default() }
    }

    /// Prepares those of a cell that runs this package: its group, in which the kernel may swap or not, and the page cache.
    /// The kernel charges a page to the group that brings it into the cache, so pages of the package that are there
    /// already would be held without being counted.
    ///
    /// # Errors
    /// A limit that cannot be set here, which makes the cell `unsupported`; a timeout that cannot be kept.
    pub fn of(cell: &Cell, package: &Path, swap: bool) -> Result<Self> {
        let timeout = Duration::try_from_secs_f64(cell.measurement.timeout_seconds)
            .with_context(|| format!("the timeout of cell `{}` cannot be kept", cell.id))?;
        let mut conditions = Self { sampled: !cell.memory.is_empty() || cell.is_optimized(), ..Self::within(timeout) };
        let Some(limit) = cell.memory.limit_bytes else { return Ok(conditions) };
        let group = if swap { MemoryGroup::create_swapping(limit)? } else { MemoryGroup::create(limit)? };
        if !swap && !group.swap_is_off() && MemoryLimits::now().swap_bytes != Some(0) {
            conditions.warnings.push(
                "swap cannot be switched off for the control group, so what exceeds the limit may go there".to_owned(),
            );
        }
        conditions.group = Some(group);
        match evict(cell, package) {
            Ok(bytes) => conditions.cached_bytes = Some(bytes),
            // The worker finds out what is wrong with its package, if something is.
            Err(error) => conditions.warnings.push(format!("the start may not be cold: {}", error.chain())),
        }
        Ok(conditions)
    }
}

/// Puts what the cell loads out of the page cache: a package's folder, or a graph's file and those beside it.
fn evict(cell: &Cell, path: &Path) -> Result<u64> {
    if cell.kind() == ModelKind::Package {
        return page_cache::evict(path);
    }
    Signature::read(path)?.files(path).iter().map(|file| page_cache::evict_file(file)).sum()
}
