//! Records handed out: leases, and requests for several.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::RecordId;
use super::mapped::Mapped;
use super::shared::{Bytes, Shared};
use crate::error::Result;

/// The decoded bytes of a record, which stays in memory while leases of it live. They begin at a multiple of 4096
/// bytes.
pub struct Lease {
    id: RecordId,
    bytes: Bytes,
    owner: Owner,
}

enum Owner {
    Paged(Arc<Shared>),
    Mapped(#[expect(dead_code, reason = "keeps the mapping alive")] Arc<Mapped>),
}

// SAFETY: the bytes are only read, nobody writes them while the lease lives, and the owner, which can be used from any
// thread, keeps the memory.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

impl Lease {
    pub(super) fn paged(shared: &Arc<Shared>, id: RecordId, bytes: Bytes) -> Self {
        Self { id, bytes, owner: Owner::Paged(Arc::clone(shared)) }
    }

    pub(super) fn mapped(mapped: &Arc<Mapped>, id: RecordId, bytes: Bytes) -> Self {
        Self { id, bytes, owner: Owner::Mapped(Arc::clone(mapped)) }
    }

    /// The record.
    pub fn id(&self) -> RecordId {
        self.id
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the record is ready, so its bytes are written, and it stays as long as the lease lives.
        unsafe { std::slice::from_raw_parts(self.bytes.start, self.bytes.length) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Owner::Paged(shared) = &self.owner {
            shared.release(self.id);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("id", &self.id).field("bytes", &self.bytes.length).finish()
    }
}

/// Several records asked for at once: those in memory come first, the others as they arrive.
pub struct Request {
    from: From,
    ticket: u64,
    /// Places in the asked-for list, and what stands there: the record and its failures so far.
    places: VecDeque<usize>,
    records: Vec<(RecordId, u64)>,
    /// Numbers that are no record's.
    wrong: Vec<usize>,
}

enum From {
    Paged(Arc<Shared>),
    Mapped(Arc<Mapped>),
}

impl Request {
    pub(super) fn paged(shared: &Arc<Shared>, ids: &[RecordId]) -> Self {
        let mut state = shared.lock();
        let ticket = state.next_ticket();
        let (known, wrong): (Vec<_>, Vec<_>) = (0..ids.len()).partition(|place| ids[*place] < state.entries.len());
        let (mut places, missed): (Vec<_>, Vec<_>) =
            known.into_iter().partition(|place| state.entries[ids[*place]].phase == super::state::Phase::Ready);
        state.requested(ids);
        let any = !missed.is_empty();
        places.extend(missed);
        for &place in &places {
            state.count(ids[place]);
            state.want(ids[place], ticket);
        }
        let records = places.iter().map(|place| (ids[*place], state.entries[ids[*place]].failures)).collect();
        if any {
            shared.wake(&mut state);
        }
        drop(state);
        Self { from: From::Paged(Arc::clone(shared)), ticket, places: places.into(), records, wrong }
    }

    pub(super) fn mapped(mapped: &Arc<Mapped>, ids: &[RecordId]) -> Self {
        mapped.count(ids);
        Self {
            from: From::Mapped(Arc::clone(mapped)),
            ticket: 0,
            places: (0..ids.len()).collect(),
            records: ids.iter().map(|id| (*id, 0)).collect(),
            wrong: Vec::new(),
        }
    }

    /// The next record that is there, with its place in the list that was asked for; `None` once all were given.
    ///
    /// Waits where none is there. A record that cannot be read is given as its error, once; the others follow.
    #[expect(clippy::should_implement_trait, reason = "a wait that can fail is no iteration")]
    pub fn next(&mut self) -> Option<Result<(usize, Lease)>> {
        match &self.from {
            From::Mapped(mapped) => {
                let place = self.places.pop_front()?;
                let (id, _) = self.records[place];
                Some(mapped.acquire(id).map(|bytes| (place, Lease::mapped(mapped, id, bytes))))
            }
            From::Paged(shared) => {
                if let Some(id) = self.wrong.pop() {
                    return Some(Err(shared
                        .contents
                        .check_id(id)
                        .err()
                        .unwrap_or_else(|| crate::error::Error::new("a request names no record"))));
                }
                if self.records.is_empty() {
                    return None;
                }
                let (number, result) = shared.wait(self.ticket, &self.records);
                let (id, _) = self.records.remove(number);
                let place = self.places.remove(number)?;
                Some(result.map(|bytes| (place, Lease::paged(shared, id, bytes))))
            }
        }
    }
}

impl Request {
    /// Every record that is there now, after waiting for at least one: what is computed together shares its barriers.
    /// Empty once all were given.
    ///
    /// # Errors
    /// As [`Request::next`].
    pub fn arrived(&mut self) -> Result<Vec<(usize, Lease)>> {
        let Some(first) = self.next() else { return Ok(Vec::new()) };
        let mut leases = vec![first?];
        while self.another_is_there() {
            match self.next() {
                Some(next) => leases.push(next?),
                None => break,
            }
        }
        Ok(leases)
    }

    /// Whether every record was given.
    pub fn is_done(&self) -> bool {
        self.records.is_empty() && self.places.is_empty() && self.wrong.is_empty()
    }

    fn another_is_there(&self) -> bool {
        match &self.from {
            // Mapped records may be a page fault away; which, nobody knows.
            From::Mapped(_) => !self.places.is_empty(),
            From::Paged(shared) => {
                let state = shared.lock();
                self.records.iter().any(|(id, _)| state.entries[*id].phase == super::state::Phase::Ready)
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let From::Paged(shared) = &self.from else { return };
        if self.records.is_empty() {
            return;
        }
        let mut state = shared.lock();
        for (id, _) in self.records.drain(..) {
            state.unwant(id, self.ticket);
        }
        // What was kept for this request may leave now.
        shared.wake(&mut state);
        shared.announce();
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("left", &self.records.len()).finish()
    }
}
