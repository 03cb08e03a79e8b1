//! The axes of memory: what may stand on them, and what they mean for a cell's package.

use std::path::{Path, PathBuf};

use serde_yaml::Spanned;

use super::axes::{Axis, Point, Values};
use super::check::Checker;
use super::file::AxisEntry;
use crate::cell::{MemoryAmount, MemoryPlan, ModelRef, Residency};
use crate::package::Package;
use crate::package::shards;
use crate::runtime::catalog;

impl Checker<'_> {
    /// An axis of amounts of memory, packed.
    pub(super) fn amounts(&mut self, axis: &Spanned<AxisEntry>, of: Axis) -> Vec<u32> {
        self.distinct(axis, of.name(), |text| match (text.parse()?, of.values()) {
            (MemoryAmount::Budget, Values::Budgets) => {
                Err("`budget` is a value of `memory_limit`; a budget is a size as `4GiB` or a share as `50%`"
                    .to_owned())
            }
            (MemoryAmount::Hundredths(_), Values::Limits) => {
                Err(format!("`memory_limit` is `{text}`; it is a size as `4GiB`, `budget` or `none`"))
            }
            (amount, _) => Ok(amount.pack()),
        })
    }

    /// An axis of counts from 1 up, or a word that stands for 0.
    pub(super) fn counts_or(&mut self, axis: &Spanned<AxisEntry>, name: &str, word: &str, max: u32) -> Vec<u32> {
        self.distinct(axis, name, |text| match text.parse() {
            _ if text == word => Ok(0),
            Ok(count) if (1..=max).contains(&count) => Ok(count),
            _ => Err(format!("`{name}` is `{text}`; it is `{word}` or a whole number from 1 to {max}")),
        })
    }

    /// The folder for packages that optimizations derive: by default with what else this program can make again.
    pub(super) fn derived_dir(&mut self, entry: Option<&Spanned<String>>) -> PathBuf {
        match entry {
            Some(entry) => self.path(&entry.value),
            // Without any folder of the user's, beside the file.
            None => catalog::cache_folder().map_or_else(|_| self.path("derived"), |folder| folder.join("derived")),
        }
    }

    /// The folder for caches that wait on disk.
    pub(super) fn offload_dir(&mut self, entry: Option<&Spanned<String>>) -> Option<PathBuf> {
        let entry = entry?;
        let path = self.path(&entry.value);
        if !path.is_dir() {
            self.problem(entry.referenced, format!("the `offload_dir` `{}` is no folder", path.display()));
        }
        Some(path)
    }
}

/// A point's memory; `derives_pack` where its optimizations make a pack of the package. A package that is not there is no
/// mistake of the file: its cells say so when they are to run.
///
/// # Errors
/// The axis at fault, and why.
pub fn plan(point: &Point, model: &ModelRef, derives_pack: bool) -> Result<MemoryPlan, (Axis, String)> {
    let (micro_batch, offload) = (point.on(Axis::MicroBatch), point.on(Axis::Offload) != 0);
    let (guess, batch) = (point.on(Axis::Guess), point.on(Axis::Batch));
    let (budget, limit) = (point.memory(Axis::MemoryBudget), point.memory(Axis::MemoryLimit));
    let pack = is_pack(&model.package);
    let no_pack = |axis: Axis, what: &str| {
        let message = format!(
            "{what} is for a pack, and the package `{}` of `{}` is none; make one of it: `ortbench pack {}`",
            model.written, model.name, model.written
        );
        (axis, message)
    };
    if !pack && !derives_pack && model.package.is_dir() {
        if let Some(residency) = point.residency() {
            return Err(no_pack(Axis::Residency, &format!("the residency `{residency}`")));
        }
        if budget != MemoryAmount::None {
            return Err(no_pack(Axis::MemoryBudget, "a `memory_budget`"));
        }
        if micro_batch > 0 {
            return Err(no_pack(Axis::MicroBatch, &format!("the `micro_batch` {micro_batch}")));
        }
        if offload {
            return Err(no_pack(Axis::Offload, "`offload: disk`"));
        }
    }
    if micro_batch > batch {
        let message = format!(
            "the `micro_batch` {micro_batch} is larger than the `batch` {batch}, of which it is a part; leave such \
             cells out by `exclude`"
        );
        return Err((Axis::MicroBatch, message));
    }
    if guess > 0 && point.residency() != Some(Residency::Experts) {
        let residency = point.residency().map_or("none", Residency::name);
        let message = format!(
            "the `guess` {guess} is for the residency `experts`, and a cell has `{residency}`: nothing else reads \
             experts on demand; leave such cells out by `exclude`"
        );
        return Err((Axis::Guess, message));
    }
    let weights = match budget {
        MemoryAmount::Hundredths(_) => Package::open(&model.package).and_then(|package| package.weights_bytes()),
        _ => Ok(0),
    };
    let weights = weights.map_err(|error| {
        let message = format!("`{budget}` is a share of the weights of `{}`: {}", model.written, error.chain());
        (Axis::MemoryBudget, message)
    })?;
    let budget_bytes = budget.bytes(weights, None);
    Ok(MemoryPlan {
        residency: point.residency().or(pack.then_some(Residency::Resident)),
        budget_bytes,
        limit_bytes: limit.bytes(weights, budget_bytes),
        micro_batch: (micro_batch > 0).then_some(micro_batch),
        offload,
        guess,
    })
}

/// Whether a package's folder is a pack's.
pub fn is_pack(folder: &Path) -> bool {
    folder.join(shards::FILE).is_file()
}
