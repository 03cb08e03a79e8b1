//! What the computing threads and the readers share: the state behind one lock, and who waits for whom.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::RecordId;
use super::contents::Contents;
use super::failure::Failure;
use super::state::{Phase, State};
use crate::error::{Error, Kind, Result};
use crate::loader::io::{Chunk, Waker, Work};
use crate::units;

/// What a lease needs to point at its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes {
    pub start: *const u8,
    pub length: usize,
}

pub(super) struct Shared {
    pub contents: Contents,
    /// How long to wait without anything moving before it is an error.
    patience: Duration,
    state: Mutex<State>,
    /// Records became ready, failed, or room came.
    changed: Condvar,
    /// There may be something to read.
    work: Condvar,
    waker: OnceLock<Waker>,
}

// SAFETY: the raw pointers inside belong to the arena, which lives as long as this; who may use which bytes is decided
// under the lock: a reader those of records that are being read, lease holders (reading only) those of ready ones.
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(contents: Contents, state: State, patience: Duration) -> Self {
        Self {
            contents,
            patience,
            state: Mutex::new(state),
            changed: Condvar::new(),
            work: Condvar::new(),
            waker: OnceLock::new(),
        }
    }

    /// The state. A thread that panicked under the lock has said so; the others go on with what is there.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the readers that there may be something to do.
    pub fn wake(&self, state: &mut State) {
        self.work.notify_one();
        if std::mem::take(&mut state.parked)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    /// Ends the readers, and whoever waits.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        state.parked = true;
        self.wake(&mut state);
        self.work.notify_all();
        self.changed.notify_all();
    }

    /// Tells those who wait that something changed.
    pub fn announce(&self) {
        self.changed.notify_all();
    }

    /// Leases a record that is ready.
    pub fn lease(&self, state: &mut State, id: RecordId) -> Option<Bytes> {
        let place = state.lease(id)?;
        Some(Bytes { start: state.arena.pointer(place), length: self.contents.index.records[id].bytes as usize })
    }

    /// Takes a lease back.
    pub fn release(&self, id: RecordId) {
        let mut state = self.lock();
        if state.release(id) {
            self.wake(&mut state);
            self.changed.notify_all();
        }
    }

    /// Waits until one of the records wanted with a ticket is ready or has failed; gives its number in `wanted` and the
    /// lease. Each of `wanted` is a record and the failures that it had when it was first wanted. The caller wants no
    /// longer what it is given.
    pub fn wait(&self, ticket: u64, wanted: &[(RecordId, u64)]) -> (usize, Result<Bytes>) {
        let mut state = self.lock();
        let mut waiting: Option<Instant> = None;
        let mut moved = (state.moves, Instant::now());
        let found = loop {
            let found = wanted.iter().enumerate().find_map(|(number, &(id, failures))| {
                if state.entries[id].phase == Phase::Ready {
                    return Some((number, self.lease(&mut state, id).ok_or_else(|| self.closed())));
                }
                let entry = &state.entries[id];
                let failure = entry.failure.as_ref().filter(|_| entry.failures > failures);
                failure.map(|failure| (number, Err(failure.error())))
            });
            if let Some(found) = found {
                break found;
            }
            if state.closing {
                break (0, Err(self.closed()));
            }
            if moved.0 != state.moves || state.in_flight > 0 || state.finishing > 0 {
                moved = (state.moves, Instant::now());
            } else if moved.1.elapsed() >= self.patience {
                break (0, Err(self.stuck(&state, wanted[0].0)));
            }
            waiting.get_or_insert_with(Instant::now);
            state = self.changed.wait_timeout(state, self.patience).unwrap_or_else(PoisonError::into_inner).0;
        };
        if let Some(start) = waiting {
            state.statistics.wait_nanos += start.elapsed().as_nanos() as u64;
        }
        state.unwant(wanted[found.0].0, ticket);
        if found.1.is_err() {
            self.wake(&mut state);
        }
        found
    }

    fn closed(&self) -> Error {
        Error::new(format!("the pack `{}` was closed while records of it were wanted", self.contents.folder.display()))
    }

    fn stuck(&self, state: &State, id: RecordId) -> Error {
        let leased = state.entries.iter().filter(|entry| entry.leases > 0).count();
        let record = &self.contents.index.records[id];
        Failure::new(
            Kind::Input,
            format!("there is no room for record `{}` ({})", record.name, units::bytes(record.bytes)),
            "give the records more memory, or use fewer sessions at once",
        )
        .because(&format!(
            "{leased} records are in use at once, and none was given back within {}",
            units::seconds(self.patience.as_secs_f64())
        ))
        .error()
    }
}

impl Work for Shared {
    fn take(&self, wait: bool) -> Option<Chunk> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            if let Some(chunk) = state.next_chunk() {
                // The next reader looks whether there is more, so that one wake-up starts as many reads as may be.
                if wait {
                    self.work.notify_one();
                }
                return Some(chunk);
            }
            if !wait {
                state.parked = true;
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn landed(&self, chunk: &Chunk, result: io::Result<()>) -> Option<usize> {
        let failure = result.err().map(|error| self.contents.unread(chunk.token, &error));
        let mut state = self.lock();
        let failed = failure.is_some();
        let whole = state.landed(chunk, failure);
        // This reader checks the record now; another one may read meanwhile.
        self.wake(&mut state);
        if failed {
            self.changed.notify_all();
        }
        whole.then_some(chunk.token)
    }

    fn finish(&self, id: usize) {
        let record = &self.contents.index.records[id];
        let (stored, slot) = {
            let state = self.lock();
            let entry = &state.entries[id];
            let Some(place) = entry.place else { return };
            let slot = state.arena.pointer(place);
            (entry.staging.map_or(slot, |(place, _)| state.arena.pointer(place)), slot)
        };
        // SAFETY: until `finished`, the record's places are this thread's alone; both are as long as asked for.
        let failure = unsafe {
            let bytes = std::slice::from_raw_parts(stored, record.stored as usize);
            let checked = self.contents.check(id, bytes);
            checked.and_then(|()| {
                if stored == slot {
                    return Ok(());
                }
                self.contents.decode(id, bytes, std::slice::from_raw_parts_mut(slot, record.bytes as usize))
            })
        };
        let mut state = self.lock();
        state.finished(id, failure.err());
        self.wake(&mut state);
        self.changed.notify_all();
    }

    fn closing(&self) -> bool {
        self.lock().closing
    }

    fn set_waker(&self, waker: Waker) {
        // Only the first readers of a pager are ever started.
        let _ = self.waker.set(waker);
    }
}
