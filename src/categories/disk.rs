//! What the loader of a pack really does on this machine, and what the pack's disk gives at most.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::cell::Residency;
use crate::engine::Model;
use crate::error::Result;
use crate::loader::io::bandwidth::bandwidth;
use crate::loader::pager::Reads;
use crate::package::Package;
use crate::package::shards::{ShardIndex, What};
use crate::protocol::Reporter;

/// The longest that a disk is read for its bandwidth.
const SECONDS: f64 = 3.0;

/// Bytes a second at which a small pack is read once: it is not read over and over, which would measure a cache.
const AT: f64 = 1e9;

/// Bytes of the loader's largest reads: records beyond it are read in several.
const LARGEST_READ: u64 = 4 << 20;

/// Reports how the loader keeps and reads a pack's records.
///
/// # Errors
/// A parent that no longer listens.
pub fn report_loader(model: &Model, report: &Reporter) -> Result<()> {
    let Some(facts) = model.pager_facts() else { return Ok(()) };
    let way = if facts.direct { "direct" } else { "page cache" };
    report.fact("loader_reads", format!("{}, {way}", facts.method).as_str())?;
    report.fact("pinned_bytes", facts.pinned_bytes)?;
    report.fact("streamed_bytes_per_pass", facts.streamed_bytes_per_pass)?;
    report.fact("expert_slots", facts.expert_slots)
}

/// Reads the pack's own shards as the loader does and reports how fast that was. The model has left memory by then.
///
/// # Errors
/// A disk that fails.
pub fn report_bandwidth(package: &Package, residency: Option<Residency>, report: &Reporter) -> Result<()> {
    let Some(residency) = residency.filter(|residency| *residency != Residency::Resident) else { return Ok(()) };
    let Some(index) = package.shards()? else { return Ok(()) };
    let bytes: u64 = index.files.iter().map(|file| file.bytes).sum();
    if bytes == 0 {
        return Ok(());
    }
    report.phase("disk")?;
    let mut files: Vec<PathBuf> = index.files.iter().map(|file| package.root.join(&file.file)).collect();
    // Another order each time: what one process read, the host of a virtual machine may keep for the next one.
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    files.shuffle(&mut ChaCha8Rng::seed_from_u64(moment));
    let seconds = (bytes as f64 / AT).min(SECONDS);
    let found = bandwidth(&files, &Reads::default(), read_bytes(&index, residency), seconds)?;
    report.fact("disk_bandwidth_bytes_per_second", found.bytes_per_second)
}

/// The mean read of the records that a residency reads again and again.
fn read_bytes(index: &ShardIndex, residency: Residency) -> usize {
    let is_expert = |what: &What| matches!(what, What::Expert { .. });
    let experts = residency == Residency::Experts && index.records.iter().any(|record| is_expert(&record.what));
    let read = index.records.iter().filter(|record| !experts || is_expert(&record.what));
    let (bytes, reads) = read
        .fold((0, 0), |(bytes, reads), record| (bytes + record.stored, reads + record.stored.div_ceil(LARGEST_READ)));
    bytes.checked_div(reads).unwrap_or(LARGEST_READ) as usize
}
