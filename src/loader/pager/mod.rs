//! Records in memory under a budget, and those read ahead of use.
//!
//! `plan.rs` decides what stays; `arena.rs` is the memory; `state.rs` knows what is where and what is read next;
//! `shared.rs` is the lock that computing threads and readers meet at; `contents.rs` checks bytes against the index;
//! `mapped.rs` is the residency that leaves everything to the operating system.

mod arena;
mod contents;
mod eviction;
mod failure;
#[cfg(test)]
pub(super) mod fixture;
mod lease;
mod mapped;
mod plan;
mod shared;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::cell::Residency;
use crate::error::Result;
use crate::loader::io::{Disk, ReadAt, Readers, Work};
use crate::package::shards::ShardIndex;

pub use crate::loader::io::{Direct, Method, Reads};
pub use eviction::Eviction;
pub use lease::{Lease, Request};
pub use plan::ROUTED;

use arena::Arena;
use contents::Contents;
use mapped::Mapped;
use plan::{Plan, is_expert, slot, staging};
use shared::Shared;
use state::State;

/// A record's place in [`ShardIndex::records`].
pub type RecordId = usize;

/// How a pack is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Where records live.
    pub residency: Residency,
    /// Bytes for records, those that are being read included; `None` for as many as they take. [`Residency::Mapped`]
    /// leaves it to the operating system and heeds no capacity.
    pub capacity: Option<u64>,
    /// How they are read.
    pub reads: Reads,
    /// Whether the hash of each record is checked whenever it is read (for mapped ones at the first lease).
    pub verify: bool,
    /// Which expert leaves first.
    pub eviction: Eviction,
    /// Whether dense records that stream are read before the computation asks for them.
    pub ahead: bool,
}

impl Options {
    /// The usual options of a residency, without a limit.
    pub fn new(residency: Residency) -> Self {
        Self { residency, capacity: None, reads: Reads::default(), verify: true, eviction: Eviction::Lfu, ahead: true }
    }
}

/// What a pager did since it was opened. Differences of two of them describe the time between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Bytes that came from the disk (or through the page cache), padding included.
    pub bytes_read: u64,
    /// Reads of records.
    pub reads: u64,
    /// Nanoseconds during which at least one read was under way.
    pub read_nanos: u64,
    /// Nanoseconds that the computation waited for records.
    pub wait_nanos: u64,
    /// Routed experts asked for …
    pub experts_wanted: u64,
    /// … and those of them that were in memory already.
    pub experts_hit: u64,
    /// Experts read on a guess, before a router spoke …
    pub guessed: u64,
    /// … and those of them that were asked for when their layer was next.
    pub guessed_right: u64,
    /// Records dropped to make room.
    pub evictions: u64,
    /// Bytes that records hold in memory now, those that are being read and pages kept for the next ones included.
    pub held_bytes: u64,
    /// The most that they were.
    pub peak_bytes: u64,
}

/// How a pager really works on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagerFacts {
    /// What reads: `pool`, `uring`, or `mmap`.
    pub method: &'static str,
    /// Whether reads go past the page cache, as a transfer showed.
    pub direct: bool,
    /// Bytes of records that stay in memory.
    pub pinned_bytes: u64,
    /// Stored bytes of dense records that each pass reads again.
    pub streamed_bytes_per_pass: u64,
    /// Bytes of memory through which those stream.
    pub stream_bytes: u64,
    /// Bytes of memory for experts.
    pub expert_bytes: u64,
    /// Experts of the most common size that fit there.
    pub expert_slots: u64,
}

/// What only tests change.
struct Tuning {
    /// Instead of the pack's files.
    disk: Option<Arc<dyn ReadAt>>,
    chunk: usize,
    patience: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { disk: None, chunk: plan::CHUNK, patience: Duration::from_secs(30) }
    }
}

/// The records of a pack.
///
/// Threads that read belong to it and end when it is dropped; leases that live on keep their bytes.
pub struct Pager {
    core: Core,
    options: Options,
    chunk: usize,
    direct: bool,
}

enum Core {
    Paged { shared: Arc<Shared>, readers: Mutex<Readers> },
    Mapped(Arc<Mapped>),
}

impl Pager {
    /// Opens a pack's shards; with records that stay, reads those.
    ///
    /// # Errors
    /// A shard that is missing, cut or of another pack, a record that cannot be read or is damaged, a capacity below
    /// [`Pager::least_capacity`] (named), options that this machine cannot satisfy.
    pub fn open(folder: &Path, index: Arc<ShardIndex>, options: &Options) -> Result<Arc<Self>> {
        Self::open_tuned(folder, &index, options, Tuning::default())
    }

    fn open_tuned(folder: &Path, index: &Arc<ShardIndex>, options: &Options, tuning: Tuning) -> Result<Arc<Self>> {
        let contents = Contents::new(folder, index, options.verify)?;
        let mapped = options.residency == Residency::Mapped;
        let disk = Disk::open(&contents.paths(), if mapped { Direct::Never } else { options.reads.direct })?;
        contents.check_files(&disk)?;
        let (options, direct, chunk) = (*options, disk.direct(), tuning.chunk);
        if mapped {
            let core = Core::Mapped(Arc::new(Mapped::open(contents, disk)?));
            return Ok(Arc::new(Self { core, options, chunk, direct }));
        }
        let plan = Plan::new(index, options.residency, options.capacity, &options.reads, chunk)?;
        // Twice what all records take, so that a place is found whatever lies where.
        let all: u64 = index.records.iter().map(|record| slot(record) + staging(record)).sum();
        let arena = Arena::new(2 * all as usize, plan.total() as usize, plan.huge)?;
        let policy = eviction::policy(options.eviction, index.records.len(), State::layers(index));
        let pinned: Vec<RecordId> = (0..index.records.len()).filter(|id| plan.pinned[*id]).collect();
        let depth = options.reads.depth.max(1);
        let mut state = State::new(index, plan, arena, policy, (chunk, depth));
        state.ahead = options.ahead;
        let shared = Arc::new(Shared::new(contents, state, tuning.patience));
        let work: Arc<dyn Work> = Arc::clone(&shared) as Arc<dyn Work>;
        let disk: Arc<dyn ReadAt> = tuning.disk.unwrap_or_else(|| Arc::new(disk));
        let coded = index.records.iter().any(|record| staging(record) > 0);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let finishers = if coded { cores } else { 1 };
        let readers = Readers::start(&work, &disk, index.files.len(), &options.reads, finishers)?;
        let core = Core::Paged { shared: Arc::clone(&shared), readers: Mutex::new(readers) };
        let pager = Arc::new(Self { core, options, chunk, direct });
        let mut request = Request::paged(&shared, &pinned);
        while let Some(next) = request.next() {
            next?;
        }
        shared.lock().statistics.experts_wanted = 0;
        shared.lock().statistics.experts_hit = 0;
        Ok(pager)
    }

    /// The index.
    pub fn index(&self) -> &ShardIndex {
        &self.contents().index
    }

    fn contents(&self) -> &Contents {
        match &self.core {
            Core::Paged { shared, .. } => &shared.contents,
            Core::Mapped(mapped) => &mapped.contents,
        }
    }

    /// A record by its name.
    pub fn find(&self, name: &str) -> Option<RecordId> {
        self.contents().find(name)
    }

    /// A record, waited for where it is not in memory; then what follows it in the pass is read ahead.
    ///
    /// # Errors
    /// A record that cannot be read or is damaged; a later call tries again. No room because of leases that nobody
    /// gives back.
    pub fn acquire(&self, id: RecordId) -> Result<Lease> {
        let shared = match &self.core {
            Core::Mapped(mapped) => {
                let bytes = mapped.acquire(id)?;
                mapped.count(&[id]);
                return Ok(Lease::mapped(mapped, id, bytes));
            }
            Core::Paged { shared, .. } => shared,
        };
        shared.contents.check_id(id)?;
        let mut state = shared.lock();
        if state.arrive(id) {
            shared.wake(&mut state);
        }
        state.requested(&[id]);
        state.count(id);
        if let Some(bytes) = shared.lease(&mut state, id) {
            return Ok(Lease::paged(shared, id, bytes));
        }
        let ticket = state.next_ticket();
        let failures = state.entries[id].failures;
        state.want(id, ticket);
        shared.wake(&mut state);
        drop(state);
        shared.wait(ticket, &[(id, failures)]).1.map(|bytes| Lease::paged(shared, id, bytes))
    }

    /// Asks for several records at once, as the routed experts of a layer: those that are not in memory are all read,
    /// as room allows. None of them leaves memory before it was given, unless an earlier request needs its room.
    ///
    /// Whoever holds leases while waiting for more needs room for all of them: with several sessions at once, room for
    /// the routed experts of each.
    pub fn request(self: &Arc<Self>, ids: &[RecordId]) -> Request {
        match &self.core {
            Core::Paged { shared, .. } => Request::paged(shared, ids),
            Core::Mapped(mapped) => Request::mapped(mapped, ids),
        }
    }

    /// Reads experts of a layer that may be asked for soon, the likelier ones first, while nobody waits and the disk has
    /// nothing better to do. Replaces earlier guesses that were not begun; when the layer is asked, what was guessed
    /// wrong leaves memory before anything else.
    pub fn guess(&self, ids: &[RecordId]) {
        if let Core::Paged { shared, .. } = &self.core {
            let mut state = shared.lock();
            state.guess(ids);
            shared.wake(&mut state);
        }
    }

    /// Changes the capacity while running. What is leased beyond a smaller one leaves as it is given back.
    ///
    /// # Errors
    /// Less than [`Pager::least_capacity`]; the capacity then stays as it was.
    pub fn set_capacity(&self, bytes: u64) -> Result<()> {
        let Core::Paged { shared, .. } = &self.core else { return Ok(()) };
        let reads = &self.options.reads;
        let plan = Plan::new(&shared.contents.index, self.options.residency, Some(bytes), reads, self.chunk)?;
        let mut state = shared.lock();
        state.set_plan(plan);
        shared.wake(&mut state);
        shared.announce();
        Ok(())
    }

    /// What it did so far.
    pub fn statistics(&self) -> Statistics {
        match &self.core {
            Core::Mapped(mapped) => mapped.statistics(),
            Core::Paged { shared, .. } => {
                let state = shared.lock();
                Statistics {
                    read_nanos: state.read_nanos(),
                    held_bytes: state.arena.held() as u64,
                    peak_bytes: state.arena.peak() as u64,
                    ..state.statistics
                }
            }
        }
    }

    /// How it works here.
    pub fn facts(&self) -> PagerFacts {
        let index = self.index();
        let Core::Paged { shared, readers } = &self.core else {
            return PagerFacts {
                method: "mmap",
                direct: false,
                pinned_bytes: 0,
                streamed_bytes_per_pass: 0,
                stream_bytes: 0,
                expert_bytes: 0,
                expert_slots: 0,
            };
        };
        let state = shared.lock();
        let streamed =
            index.records.iter().zip(&state.plan.pinned).filter(|(record, pinned)| !**pinned && !is_expert(record));
        let mut sizes = std::collections::BTreeMap::<u64, usize>::new();
        for record in index.records.iter().filter(|record| is_expert(record)) {
            *sizes.entry(slot(record)).or_default() += 1;
        }
        let common = sizes.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(size, _)| size);
        PagerFacts {
            method: readers.lock().unwrap_or_else(PoisonError::into_inner).method.name(),
            direct: self.direct,
            pinned_bytes: state.plan.pinned_bytes,
            streamed_bytes_per_pass: streamed.map(|(record, _)| record.stored).sum(),
            stream_bytes: state.plan.dense,
            expert_bytes: state.plan.experts,
            expert_slots: state.plan.experts.checked_div(common).unwrap_or(0),
        }
    }

    /// Whether it reads dense records before they are asked for.
    pub fn reads_ahead(&self) -> bool {
        self.options.ahead
    }

    /// Bytes of memory that all records of a pack take.
    pub fn whole_capacity(index: &ShardIndex) -> u64 {
        index.records.iter().map(slot).sum()
    }

    /// The least capacity, in bytes, that a pack can run in: what the computation holds at once (one dense record, or a
    /// segment's where they are inputs of the graph; eight experts of a layer), and `depth` reads on their way.
    pub fn least_capacity(index: &ShardIndex, residency: Residency, depth: usize) -> u64 {
        plan::least(index, residency, depth, plan::CHUNK)
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if let Core::Paged { shared, readers } = &self.core {
            shared.close();
            readers.lock().unwrap_or_else(PoisonError::into_inner).join();
        }
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("options", &self.options).field("facts", &self.facts()).finish()
    }
}
