//! What is read next, and what becomes of it.

use std::time::Instant;

use super::{Guess, OPEN, Phase, State, Urgency};
use crate::loader::io::Chunk;
use crate::loader::pager::RecordId;
use crate::loader::pager::arena::End;
use crate::loader::pager::failure::Failure;
use crate::loader::pager::plan::{Share, slot, staging};
use crate::package::shards::ALIGNMENT;

impl State {
    /// The next read, as room and depth allow: what somebody waits for, then what is used soon, then guesses.
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        if self.in_flight >= self.depth || self.closing {
            return None;
        }
        let chunk = self.next_of(true).or_else(|| {
            if self.start_wanted() {
                return self.next_of(true);
            }
            self.next_of(false).or_else(|| (self.start_ahead() || self.start_guess()).then(|| self.next_of(false))?)
        })?;
        if self.in_flight == 0 {
            self.since = Some(Instant::now());
        }
        self.in_flight += 1;
        Some(chunk)
    }

    /// The next part of a record that is being read; with `wanted` of one that somebody waits for.
    fn next_of(&mut self, wanted: bool) -> Option<Chunk> {
        let may = |id: &RecordId| {
            let entry = &self.entries[*id];
            !entry.wanted.is_empty() || (!wanted && (entry.guess == Guess::No || self.may_guess()))
        };
        let place = self.reading.iter().position(may)?;
        let id = self.reading[place];
        let (record, entry) = (&self.index.records[id], &mut self.entries[id]);
        let total = record.stored.max(1).next_multiple_of(ALIGNMENT);
        let bytes = (total - entry.sent).min(self.chunk as u64);
        let into = entry.staging.map(|(place, _)| place).or(entry.place)?;
        let chunk = Chunk {
            token: id,
            file: record.file,
            offset: record.offset + entry.sent,
            // SAFETY: `sent` is below the place's length.
            into: unsafe { self.arena.pointer(into).add(entry.sent as usize) },
            bytes: bytes as usize,
        };
        entry.sent += bytes;
        entry.outstanding += 1;
        if entry.sent == total {
            self.reading.remove(place);
        }
        Some(chunk)
    }

    fn start_wanted(&mut self) -> bool {
        let mut queues = [0, 1];
        queues.sort_by_key(|queue| self.wanted[*queue].first().map_or(u64::MAX, |(ticket, _)| *ticket));
        for queue in queues {
            let mut from = (0, 0);
            while let Some(&(ticket, id)) = self.wanted[queue].range(from..).next() {
                if self.entries[id].phase != Phase::Absent {
                    self.wanted[queue].remove(&(ticket, id));
                } else if self.start(id, Urgency::Wanted(ticket)) {
                    return true;
                } else if self.in_flight > 0 || self.finishing > 0 {
                    break;
                } else {
                    // The first one waits for leases. Whoever holds them may wait for something smaller, further back
                    // in the queue: it goes ahead, for else both would wait for ever.
                    from = (ticket + 1, 0);
                }
            }
        }
        false
    }

    fn start_ahead(&mut self) -> bool {
        // Where a dense record that is wanted found no room, what is read ahead would leave for it at once, again and
        // again.
        if !self.ahead || !self.wanted[0].is_empty() {
            return false;
        }
        let count = self.dense.len();
        for distance in 1..=count {
            let id = self.dense[(self.at + distance) % count];
            let entry = &self.entries[id];
            // What failed is tried again when it is wanted.
            if entry.phase == Phase::Absent && entry.failure.is_none() {
                return self.start(id, Urgency::Ahead(distance));
            }
        }
        false
    }

    fn start_guess(&mut self) -> bool {
        // Only while nobody waits and nothing else is read.
        let reading: usize = self.open.iter().map(|id| self.entries[*id].outstanding).sum();
        if !self.may_guess() || !self.waiting.is_empty() || self.in_flight > reading {
            return false;
        }
        while let Some(&id) = self.guesses.front() {
            let entry = &self.entries[id];
            if entry.phase == Phase::Absent && entry.failure.is_none() {
                // Without room it waits for some, until its layer is asked.
                if !self.start(id, Urgency::Guess) {
                    return false;
                }
                self.entries[id].guess = Guess::Open;
                self.statistics.guessed += 1;
                self.guesses.pop_front();
                self.open.retain(|other| *other != id);
                self.open.push_back(id);
                if self.open.len() > OPEN
                    && let Some(oldest) = self.open.pop_front()
                {
                    self.was_wrong(oldest);
                }
                return true;
            }
            self.guesses.pop_front();
        }
        false
    }

    /// Guesses leave half of the reads that may be under way to what is wanted next.
    fn may_guess(&self) -> bool {
        self.in_flight < self.depth.div_ceil(2)
    }

    /// Gives a record its place, if there is room.
    fn start(&mut self, id: RecordId, urgency: Urgency) -> bool {
        let record = &self.index.records[id];
        let (slot, staged) = (slot(record), staging(record));
        let share = self.share(id);
        let staging_share = if share == Share::Pinned { Share::Dense } else { share };
        let room = if share == Share::Pinned {
            self.make_room(Share::Dense, staged, 0, urgency)
        } else {
            self.make_room(share, slot + staged, slot, urgency)
        };
        if !room {
            return false;
        }
        let Some(place) = self.arena.take(slot as usize, End::Low) else { return false };
        let staging = match (staged > 0).then(|| self.arena.take(staged as usize, End::High)) {
            Some(None) => {
                self.arena.give(place);
                return false;
            }
            Some(Some(place)) => Some((place, staging_share)),
            None => None,
        };
        self.used[share as usize] += slot;
        self.used[staging_share as usize] += staged;
        debug_assert!(self.arena.held() as u64 <= self.plan.total(), "more held than the capacity allows");
        let entry = &mut self.entries[id];
        (entry.phase, entry.place, entry.share, entry.staging) = (Phase::Reading, Some(place), share, staging);
        (entry.sent, entry.outstanding, entry.failure) = (0, 0, None);
        self.note_streamed(id);
        self.reading.push(id);
        true
    }

    /// A read ended. True once all of its record did, well.
    pub fn landed(&mut self, chunk: &Chunk, failure: Option<Failure>) -> bool {
        let id = chunk.token;
        self.in_flight -= 1;
        self.moves += 1;
        if self.in_flight == 0
            && let Some(since) = self.since.take()
        {
            self.statistics.read_nanos += since.elapsed().as_nanos() as u64;
        }
        let entry = &mut self.entries[id];
        entry.outstanding -= 1;
        if failure.is_none() {
            self.statistics.bytes_read += chunk.bytes as u64;
        } else {
            self.reading.retain(|other| *other != id);
            entry.failure = failure;
        }
        if entry.outstanding > 0 || self.reading.contains(&id) {
            return false;
        }
        if entry.failure.is_some() {
            self.fail(id);
            return false;
        }
        entry.phase = Phase::Finishing;
        self.finishing += 1;
        true
    }

    /// A record is checked and decoded, or it is not what it should be.
    pub fn finished(&mut self, id: RecordId, failure: Option<Failure>) {
        self.finishing -= 1;
        self.moves += 1;
        if let Some(failure) = failure {
            self.entries[id].failure = Some(failure);
            self.fail(id);
            return;
        }
        // Not before, so that a record that counts as read is ready.
        self.statistics.reads += 1;
        self.drop_staging(id);
        self.entries[id].phase = Phase::Ready;
        self.rank(id);
        self.settle();
    }

    fn fail(&mut self, id: RecordId) {
        self.statistics.reads += 1;
        self.entries[id].failures += 1;
        self.drop_place(id);
    }

    /// Nanoseconds during which reads were under way, up to now.
    pub fn read_nanos(&self) -> u64 {
        self.statistics.read_nanos + self.since.map_or(0, |since| since.elapsed().as_nanos() as u64)
    }
}
