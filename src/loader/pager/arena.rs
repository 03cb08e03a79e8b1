//! One range of addresses for all records, and an account of how much memory stands behind it.
//!
//! Addresses are plenty: more are reserved than records can ever need, so that fragments never stand in the way.
//! Memory is what counts. A gap is `dirty` while pages stand behind it, left by a record that was dropped; what is read
//! next goes there first, since pages that are there need not be cleared again. Only when no dirty gap fits are some
//! given back to the system, and clean addresses taken. Live and dirty bytes together never exceed the limit.

use std::collections::BTreeMap;
use std::ops::Range;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::{Error, Result};
use crate::package::shards::ALIGNMENT;

/// Bytes of a huge page: what a touch of one page may really fill.
pub(super) const HUGE: usize = 2 << 20;

/// A place's first byte, counted from the arena's start, and its length: both multiples of [`ALIGNMENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub start: usize,
    pub bytes: usize,
}

/// Where to take clean addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Records: so that huge pages are whole.
    Low,
    /// What is dropped at once.
    High,
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    bytes: usize,
    dirty: bool,
}

/// Anonymous memory in places.
#[derive(Debug)]
pub(super) struct Arena {
    base: *mut u8,
    reserved: usize,
    gaps: BTreeMap<usize, Gap>,
    live: usize,
    dirty: usize,
    limit: usize,
    peak: usize,
    /// Where the last place ended: the next one is looked for from here on, so that what is used in turn lies in turn.
    cursor: usize,
}

// SAFETY: the mapping belongs to the arena; its methods that change it take `&mut self`.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves addresses for `bytes` bytes and lets `limit` of them hold memory.
    pub fn new(bytes: usize, limit: usize, huge: bool) -> Result<Self> {
        let reserved = (bytes + HUGE).next_multiple_of(HUGE);
        let failed = |error: rustix::io::Errno| {
            Error::environment(format!("cannot reserve {reserved} bytes of addresses for records"))
                .because(std::io::Error::from(error))
                .hint("raise the limit on addresses (`ulimit -v`), or allow overcommitting memory")
        };
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nobody's memory.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, protection, flags) };
        let base = base.map_err(failed)?;
        let advice = if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // A kernel without huge pages refuses, and plain pages do as well.
        // SAFETY: the range is the mapping made above; the advice changes no contents.
        let _ = unsafe { rustix::mm::madvise(base, reserved, advice) };
        let gaps = BTreeMap::from([(0, Gap { bytes: reserved, dirty: false })]);
        Ok(Self { base: base.cast(), reserved, gaps, live: 0, dirty: 0, limit, peak: 0, cursor: 0 })
    }

    /// The first byte of a place.
    pub fn pointer(&self, place: Place) -> *mut u8 {
        assert!(place.start + place.bytes <= self.reserved, "a place outside of the arena");
        // SAFETY: within the mapping, as asserted.
        unsafe { self.base.add(place.start) }
    }

    /// Bytes that memory stands behind.
    pub fn held(&self) -> usize {
        self.live + self.dirty
    }

    /// The most that they were.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Changes what memory may stand behind. What places hold beyond it is given back as they are freed.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.shed(0);
    }

    /// A place of at least `bytes` bytes, or `None` where there is no room.
    pub fn take(&mut self, bytes: usize, end: End) -> Option<Place> {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT as usize);
        if self.live + bytes > self.limit {
            return None;
        }
        let start = match self.find_dirty(bytes) {
            Some(start) => start,
            None => {
                self.shed(bytes);
                self.find_clean(bytes, end)?
            }
        };
        let gap = self.gaps.remove(&start)?;
        let place = match end {
            End::High if !gap.dirty => Place { start: start + gap.bytes - bytes, bytes },
            _ => Place { start, bytes },
        };
        if gap.dirty {
            self.dirty -= bytes;
        }
        if place.start > start {
            self.gaps.insert(start, Gap { bytes: place.start - start, dirty: gap.dirty });
        }
        let rest = start + gap.bytes - (place.start + bytes);
        if rest > 0 {
            self.gaps.insert(place.start + bytes, Gap { bytes: rest, dirty: gap.dirty });
        }
        if end == End::Low {
            self.cursor = place.start + bytes;
        }
        self.live += bytes;
        self.peak = self.peak.max(self.held());
        Some(place)
    }

    /// Gives a place back; its pages stay for the next one, as far as the limit goes.
    pub fn give(&mut self, place: Place) {
        self.live -= place.bytes;
        self.dirty += place.bytes;
        self.insert(place.start, Gap { bytes: place.bytes, dirty: true });
        self.shed(0);
    }

    /// Bytes that the system counts as resident.
    #[cfg(test)]
    pub fn resident(&self) -> usize {
        let mut pages = vec![0_u8; self.reserved / ALIGNMENT as usize];
        // SAFETY: the range is the arena's mapping, and the vector holds a byte for each of its pages.
        let result = unsafe { libc::mincore(self.base.cast(), self.reserved, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 == 1).count() * ALIGNMENT as usize
    }

    fn insert(&mut self, mut start: usize, mut gap: Gap) {
        if let Some((&before, &left)) = self.gaps.range(..start).next_back()
            && before + left.bytes == start
            && left.dirty == gap.dirty
        {
            self.gaps.remove(&before);
            start = before;
            gap.bytes += left.bytes;
        }
        if let Some(&right) = self.gaps.get(&(start + gap.bytes))
            && right.dirty == gap.dirty
        {
            self.gaps.remove(&(start + gap.bytes));
            gap.bytes += right.bytes;
        }
        self.gaps.insert(start, gap);
    }

    /// The first dirty gap that fits exactly, else the next one after the cursor that is long enough.
    fn find_dirty(&self, bytes: usize) -> Option<usize> {
        if self.dirty < bytes {
            return None;
        }
        let mut next = None;
        for range in [Range { start: self.cursor, end: self.reserved }, 0..self.cursor] {
            for (&start, gap) in self.gaps.range(range) {
                if gap.dirty && gap.bytes == bytes {
                    return Some(start);
                }
                if gap.dirty && gap.bytes > bytes && next.is_none() {
                    next = Some(start);
                }
            }
        }
        next
    }

    fn find_clean(&self, bytes: usize, end: End) -> Option<usize> {
        let fits = |(start, gap): (&usize, &Gap)| (!gap.dirty && gap.bytes >= bytes).then_some(*start);
        match end {
            End::Low => self.gaps.iter().find_map(fits),
            End::High => self.gaps.iter().rev().find_map(fits),
        }
    }

    /// Gives memory back behind dirty gaps until `bytes` more may be held.
    fn shed(&mut self, bytes: usize) {
        while self.dirty > 0 && self.held() + bytes > self.limit {
            let excess = (self.held() + bytes - self.limit).next_multiple_of(ALIGNMENT as usize);
            let largest = self.gaps.iter().filter(|(_, gap)| gap.dirty).max_by_key(|(_, gap)| gap.bytes);
            let Some((&start, &gap)) = largest else { return };
            let drop = excess.min(gap.bytes);
            self.gaps.remove(&start);
            if drop < gap.bytes {
                self.gaps.insert(start, Gap { bytes: gap.bytes - drop, dirty: true });
            }
            let from = start + gap.bytes - drop;
            // SAFETY: the range is a gap, so nobody reads or writes it; a failure only keeps the memory.
            let _ = unsafe { rustix::mm::madvise(self.base.add(from).cast(), drop, Advice::LinuxDontNeed) };
            self.dirty -= drop;
            self.insert(from, Gap { bytes: drop, dirty: false });
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and whoever uses places holds the arena's owner.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.reserved) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_never_overlap_and_the_account_holds(
            steps in prop::collection::vec((any::<bool>(), 1_usize..60_000, any::<bool>()), 1..200),
            limit in 1_usize..400_000,
        ) {
            let mut arena = Arena::new(1 << 22, limit, false).unwrap();
            let mut live: Vec<(Place, u8)> = Vec::new();
            for (number, (take, bytes, high)) in steps.into_iter().enumerate() {
                if take {
                    let end = if high { End::High } else { End::Low };
                    let held: usize = live.iter().map(|(place, _)| place.bytes).sum();
                    let place = arena.take(bytes, end);
                    prop_assert_eq!(place.is_some(), held + bytes.next_multiple_of(4096) <= limit);
                    if let Some(place) = place {
                        let mark = number as u8;
                        // SAFETY: the place is live and this test's alone.
                        unsafe { arena.pointer(place).write_bytes(mark, place.bytes) };
                        live.push((place, mark));
                    }
                } else if !live.is_empty() {
                    let (place, mark) = live.swap_remove(bytes % live.len());
                    // SAFETY: as above.
                    let found = unsafe { std::slice::from_raw_parts(arena.pointer(place), place.bytes) };
                    prop_assert!(found.iter().all(|byte| *byte == mark));
                    arena.give(place);
                }
                prop_assert!(arena.held() <= limit && arena.peak() <= limit);
                let gaps: usize = arena.gaps.values().map(|gap| gap.bytes).sum();
                prop_assert_eq!(gaps + arena.live, arena.reserved);
            }
        }
    }
}
