//! What is where: the records' entries, the room for them, and what is read next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::arena::{Arena, End, Place};
use super::eviction::Policy;
use super::failure::Failure;
use super::plan::{Plan, Share, is_expert, slot, staging};
use super::{RecordId, Statistics};
use crate::loader::io::Chunk;
use crate::package::shards::{ALIGNMENT, ShardIndex, What};

/// How far a record has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Absent,
    Reading,
    /// Here, not yet checked and decoded.
    Finishing,
    Ready,
}

/// A record in memory, or not.
#[derive(Debug)]
pub(super) struct Entry {
    pub phase: Phase,
    pub place: Option<Place>,
    /// What the place is charged to.
    share: Share,
    /// Stored bytes on their way to be decoded, and what they are charged to.
    pub staging: Option<(Place, Share)>,
    pub leases: usize,
    /// Who waits for it.
    pub wanted: Vec<u64>,
    /// Reads that failed, and why the last one did, until one succeeds.
    pub failures: u64,
    pub failure: Option<Failure>,
    /// Stored bytes asked for, and reads not yet landed.
    sent: u64,
    outstanding: usize,
    /// Read on a guess and not used since.
    guessed: bool,
    /// The number of its layer, for the policy.
    layer: usize,
    segment: usize,
    /// Its number among the dense records.
    order: usize,
}

/// Why a record is read, which decides what may leave for it.
#[derive(Debug, Clone, Copy)]
enum Urgency {
    /// Somebody waits, with this ticket.
    Wanted(u64),
    /// It is used so many dense records from now.
    Ahead(usize),
    Guess,
}

/// Everything that changes.
pub(super) struct State {
    index: Arc<ShardIndex>,
    pub arena: Arena,
    pub plan: Plan,
    pub entries: Vec<Entry>,
    pub policy: Box<dyn Policy>,
    used: [u64; 3],
    dense: Vec<RecordId>,
    /// Dense records that hold a place and may leave, by their number among the dense ones.
    streamed: BTreeSet<usize>,
    /// Experts that may leave, by the policy's rank.
    evictable: BTreeSet<(u64, RecordId)>,
    /// The rank under which an expert stands there.
    ranks: Vec<Option<u64>>,
    /// The dense record used last, by its number among them.
    at: usize,
    /// Whether segments are gone through several times, in this pass and the one before.
    repeats: [bool; 2],
    segments: usize,
    /// For each segment whether its records fit beside what is read ahead.
    fits: Vec<bool>,
    /// Records that somebody waits for, by ticket: dense ones and experts.
    wanted: [BTreeSet<(u64, RecordId)>; 2],
    guesses: VecDeque<RecordId>,
    /// Records with reads yet to be given out.
    reading: Vec<RecordId>,
    pub in_flight: usize,
    pub finishing: usize,
    chunk: usize,
    depth: usize,
    ticket: u64,
    /// How many records each ticket waits for.
    waiting: BTreeMap<u64, usize>,
    pub statistics: Statistics,
    since: Option<Instant>,
    /// Counts whatever may let somebody go on.
    pub moves: u64,
    pub closing: bool,
    /// Whether readers sleep that only the waker reaches.
    pub parked: bool,
}

impl State {
    pub fn new(
        index: &Arc<ShardIndex>,
        plan: Plan,
        arena: Arena,
        policy: Box<dyn Policy>,
        (chunk, depth): (usize, usize),
    ) -> Self {
        let mut layers = Vec::new();
        let mut dense = Vec::new();
        let segments = segments(index);
        let mut entries = Vec::with_capacity(index.records.len());
        for (id, record) in index.records.iter().enumerate() {
            let layer = match &record.what {
                What::Expert { mixture, .. } => layers.iter().position(|name| *name == mixture).unwrap_or_else(|| {
                    layers.push(mixture);
                    layers.len() - 1
                }),
                _ => 0,
            };
            entries.push(Entry {
                phase: Phase::Absent,
                place: None,
                share: Share::Pinned,
                staging: None,
                leases: 0,
                wanted: Vec::new(),
                failures: 0,
                failure: None,
                sent: 0,
                outstanding: 0,
                guessed: false,
                layer,
                segment: segments[id],
                order: dense.len(),
            });
            if !is_expert(record) {
                dense.push(id);
            }
        }
        let at = dense.len().saturating_sub(1);
        let mut state = Self {
            index: Arc::clone(index),
            arena,
            plan,
            ranks: vec![None; entries.len()],
            entries,
            policy,
            used: [0; 3],
            dense,
            streamed: BTreeSet::new(),
            evictable: BTreeSet::new(),
            at,
            repeats: [false; 2],
            segments: segments.iter().max().map_or(0, |last| last + 1),
            fits: Vec::new(),
            wanted: [BTreeSet::new(), BTreeSet::new()],
            guesses: VecDeque::new(),
            reading: Vec::new(),
            in_flight: 0,
            finishing: 0,
            chunk,
            depth,
            ticket: 0,
            waiting: BTreeMap::new(),
            statistics: Statistics::default(),
            since: None,
            moves: 0,
            closing: false,
            parked: false,
        };
        state.measure_segments();
        state
    }

    /// Mixtures' layers, for the policy.
    pub fn layers(index: &ShardIndex) -> usize {
        let names = index.records.iter().filter_map(|record| match &record.what {
            What::Expert { mixture, .. } => Some(mixture),
            _ => None,
        });
        names.collect::<BTreeSet<_>>().len().max(1)
    }

    pub fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    fn is_expert(&self, id: RecordId) -> bool {
        is_expert(&self.index.records[id])
    }

    fn share(&self, id: RecordId) -> Share {
        if self.plan.pinned[id] {
            Share::Pinned
        } else if self.is_expert(id) {
            Share::Experts
        } else {
            Share::Dense
        }
    }

    /// Which segments fit into the streams' memory beside what is in flight.
    fn measure_segments(&mut self) {
        let mut bytes = vec![0; self.segments];
        let mut largest = 0;
        for &id in &self.dense {
            if !self.plan.pinned[id] {
                let slot = slot(&self.index.records[id]);
                bytes[self.entries[id].segment] += slot;
                largest = largest.max(slot);
            }
        }
        let ahead = largest.max((self.chunk * self.depth) as u64);
        self.fits = bytes.iter().map(|bytes| bytes + ahead <= self.plan.dense).collect();
    }

    // ---- what is wanted -------------------------------------------------------------------------------------------

    /// The computation has come to a dense record. True when something new may be read.
    pub fn arrive(&mut self, id: RecordId) -> bool {
        if self.is_expert(id) {
            return false;
        }
        let (order, last) = (self.entries[id].order, self.at);
        let segment = self.entries[id].segment;
        let same = segment == self.entries[self.dense[last]].segment;
        if same && order < last && self.segments > 1 {
            self.repeats[0] = true;
        } else if order < last {
            self.repeats = [false, self.repeats[0]];
        }
        self.at = order;
        !same
    }

    /// Somebody waits for a record from now on.
    pub fn want(&mut self, id: RecordId, ticket: u64) {
        self.entries[id].wanted.push(ticket);
        *self.waiting.entry(ticket).or_default() += 1;
        if self.entries[id].phase == Phase::Absent {
            self.wanted[usize::from(self.is_expert(id))].insert((ticket, id));
        }
        self.rank(id);
    }

    /// Nobody waits for it with this ticket any more.
    pub fn unwant(&mut self, id: RecordId, ticket: u64) {
        let wanted = &mut self.entries[id].wanted;
        if let Some(place) = wanted.iter().position(|other| *other == ticket) {
            wanted.swap_remove(place);
            if let Some(count) = self.waiting.get_mut(&ticket) {
                *count -= 1;
                if *count == 0 {
                    self.waiting.remove(&ticket);
                }
            }
        }
        let wanted = &self.entries[id].wanted;
        if !wanted.contains(&ticket) {
            self.wanted[usize::from(self.is_expert(id))].remove(&(ticket, id));
        }
        self.rank(id);
        self.moves += 1;
    }

    /// Counts a use of an expert: whether it was there, and whether a guess was right.
    pub fn count(&mut self, id: RecordId) {
        if !self.is_expert(id) {
            return;
        }
        self.statistics.experts_wanted += 1;
        self.statistics.experts_hit += u64::from(self.entries[id].phase == Phase::Ready);
        if std::mem::take(&mut self.entries[id].guessed) {
            self.statistics.guessed_right += 1;
        }
        let layer = self.entries[id].layer;
        self.unrank(id);
        self.policy.used(id, layer);
        self.rank(id);
    }

    /// Tells the policy that the layers of some experts are asked.
    pub fn requested(&mut self, ids: &[RecordId]) {
        let experts = ids.iter().filter(|id| **id < self.entries.len() && self.is_expert(**id));
        let layers: BTreeSet<usize> = experts.map(|id| self.entries[*id].layer).collect();
        layers.into_iter().for_each(|layer| self.policy.requested(layer));
    }

    /// Replaces what may be read on a guess.
    pub fn guess(&mut self, ids: &[RecordId]) {
        self.guesses = ids.iter().copied().filter(|id| *id < self.entries.len()).collect();
    }

    /// Hands a ready record out.
    pub fn lease(&mut self, id: RecordId) -> Option<Place> {
        let place = self.entries[id].place.filter(|_| self.entries[id].phase == Phase::Ready)?;
        self.entries[id].leases += 1;
        self.rank(id);
        Some(place)
    }

    /// Takes it back. True when room may have come of it.
    pub fn release(&mut self, id: RecordId) -> bool {
        self.entries[id].leases -= 1;
        self.rank(id);
        let free = self.entries[id].leases == 0 && !self.plan.pinned[id];
        if free {
            self.settle();
            self.moves += 1;
        }
        free
    }

    // ---- room -----------------------------------------------------------------------------------------------------

    fn unrank(&mut self, id: RecordId) {
        if let Some(rank) = self.ranks[id].take() {
            self.evictable.remove(&(rank, id));
        }
    }

    /// Puts an expert among those that may leave, or takes it away from them.
    fn rank(&mut self, id: RecordId) {
        if self.is_expert(id) {
            self.unrank(id);
            if self.may_leave(id) {
                let rank = self.policy.rank(id);
                self.ranks[id] = Some(rank);
                self.evictable.insert((rank, id));
            }
        }
    }

    fn may_leave(&self, id: RecordId) -> bool {
        let entry = &self.entries[id];
        entry.phase == Phase::Ready && entry.leases == 0 && entry.wanted.is_empty() && !self.plan.pinned[id]
    }

    /// The number of dense records until one is used, the one used last being the farthest.
    fn distance(&self, order: usize) -> usize {
        let count = self.dense.len();
        (order + count - self.at - 1) % count + 1
    }

    /// Whether a record of the segment that is being computed stays for the next sequence.
    fn stays(&self, id: RecordId) -> bool {
        let segment = self.entries[id].segment;
        let current = self.dense.get(self.at).is_some_and(|at| self.entries[*at].segment == segment);
        current && (self.repeats.contains(&true) || self.fits.get(segment).is_some_and(|fits| *fits))
    }

    /// The dense record whose next use is farthest, if it may leave for this urgency.
    fn dense_victim(&self, urgency: Urgency) -> Option<RecordId> {
        let farthest =
            || self.streamed.range(..=self.at).rev().chain(self.streamed.range(self.at + 1..).rev()).copied();
        let free = |order: &usize| self.may_leave(self.dense[*order]);
        let passing = |order: &usize| free(order) && !self.stays(self.dense[*order]);
        let victim = match urgency {
            Urgency::Wanted(_) => farthest().find(passing).or_else(|| farthest().find(free)),
            Urgency::Ahead(distance) => farthest().find(passing).filter(|order| self.distance(*order) > distance),
            Urgency::Guess => None,
        };
        victim.map(|order| self.dense[order])
    }

    fn victim(&self, share: Share, urgency: Urgency, bytes: u64) -> Option<RecordId> {
        let free = match share {
            Share::Pinned => None,
            Share::Dense => self.dense_victim(urgency),
            Share::Experts => {
                // One of the same size leaves a place that fits; the first few ranks are as good as the first one.
                let same = |(_, id): &&(u64, RecordId)| slot(&self.index.records[*id]) == bytes;
                let near = self.evictable.iter().take(8).find(same);
                near.or_else(|| self.evictable.first()).map(|(_, id)| *id)
            }
        };
        // Whoever asked first goes first: what later ones wait for, and have not taken, may have to be read again.
        let Urgency::Wanted(ticket) = urgency else { return free };
        if free.is_some() || self.waiting.last_key_value().is_none_or(|(last, _)| *last <= ticket) {
            return free;
        }
        (0..self.entries.len()).find(|id| {
            let entry = &self.entries[*id];
            let later = entry.wanted.iter().all(|other| *other > ticket);
            entry.phase == Phase::Ready && entry.leases == 0 && entry.share == share && later
        })
    }

    fn evict(&mut self, id: RecordId) {
        self.statistics.evictions += 1;
        self.drop_place(id);
        let tickets = self.entries[id].wanted.clone();
        let queue = usize::from(self.is_expert(id));
        self.wanted[queue].extend(tickets.into_iter().map(|ticket| (ticket, id)));
    }

    /// Frees what a record holds.
    fn drop_place(&mut self, id: RecordId) {
        self.unrank(id);
        self.drop_staging(id);
        let entry = &mut self.entries[id];
        debug_assert_eq!(entry.leases, 0, "a leased record was dropped");
        entry.phase = Phase::Absent;
        entry.guessed = false;
        let order = entry.order;
        if let Some(place) = entry.place.take() {
            self.used[entry.share as usize] -= place.bytes as u64;
            self.arena.give(place);
            if !self.is_expert(id) {
                self.streamed.remove(&order);
            }
        }
    }

    fn drop_staging(&mut self, id: RecordId) {
        if let Some((place, share)) = self.entries[id].staging.take() {
            self.used[share as usize] -= place.bytes as u64;
            self.arena.give(place);
        }
    }

    /// Lets records leave until a share has room.
    fn make_room(&mut self, share: Share, bytes: u64, slot: u64, urgency: Urgency) -> bool {
        while self.used[share as usize] + bytes > self.plan.limit(share) {
            let Some(victim) = self.victim(share, urgency, slot) else { return false };
            self.evict(victim);
        }
        true
    }

    /// Lets records leave whose share has become smaller.
    fn settle(&mut self) {
        for share in [Share::Dense, Share::Experts] {
            self.make_room(share, 0, 0, Urgency::Wanted(u64::MAX));
        }
    }

    /// Shares the capacity anew.
    pub fn set_plan(&mut self, plan: Plan) {
        self.plan = plan;
        for id in 0..self.entries.len() {
            let share = self.share(id);
            let entry = &mut self.entries[id];
            if let Some(place) = entry.place
                && entry.share != share
            {
                self.used[entry.share as usize] -= place.bytes as u64;
                self.used[share as usize] += place.bytes as u64;
                entry.share = share;
            }
            self.note_streamed(id);
            self.rank(id);
        }
        self.measure_segments();
        self.settle();
        self.arena.set_limit(self.plan.total() as usize);
        self.moves += 1;
    }

    fn note_streamed(&mut self, id: RecordId) {
        if !self.is_expert(id) {
            let order = self.entries[id].order;
            if self.entries[id].place.is_some() && !self.plan.pinned[id] {
                self.streamed.insert(order);
            } else {
                self.streamed.remove(&order);
            }
        }
    }

    // ---- reads ----------------------------------------------------------------------------------------------------

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
        let place = self.reading.iter().position(|id| !wanted || !self.entries[*id].wanted.is_empty())?;
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
            while let Some(&(ticket, id)) = self.wanted[queue].first() {
                if self.entries[id].phase != Phase::Absent {
                    self.wanted[queue].pop_first();
                } else if self.start(id, Urgency::Wanted(ticket)) {
                    return true;
                } else {
                    break;
                }
            }
        }
        false
    }

    fn start_ahead(&mut self) -> bool {
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
        while let Some(id) = self.guesses.pop_front() {
            let entry = &self.entries[id];
            if entry.phase == Phase::Absent && entry.failure.is_none() && self.start(id, Urgency::Guess) {
                self.entries[id].guessed = true;
                self.statistics.guessed += 1;
                return true;
            }
        }
        false
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
        self.statistics.reads += 1;
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
        self.drop_staging(id);
        self.entries[id].phase = Phase::Ready;
        self.rank(id);
        self.settle();
    }

    fn fail(&mut self, id: RecordId) {
        self.entries[id].failures += 1;
        self.drop_place(id);
    }

    /// Nanoseconds during which reads were under way, up to now.
    pub fn read_nanos(&self) -> u64 {
        self.statistics.read_nanos + self.since.map_or(0, |since| since.elapsed().as_nanos() as u64)
    }
}

/// For each record the number of its segment, or where the index names none, of the run of its layer's records.
fn segments(index: &ShardIndex) -> Vec<usize> {
    let mut of = vec![0; index.records.len()];
    if index.segments.is_empty() {
        for id in 1..of.len() {
            of[id] = of[id - 1] + usize::from(index.records[id].layer != index.records[id - 1].layer);
        }
        return of;
    }
    let rest = index.segments.len();
    of.fill(rest);
    for (number, segment) in index.segments.iter().enumerate() {
        let last = (segment.first_record + segment.records).min(of.len());
        of[segment.first_record.min(last)..last].fill(number);
    }
    of
}
