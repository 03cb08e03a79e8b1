//! What is where, and who wants it; `room.rs` decides what leaves, `reading.rs` what is read next.

mod reading;
mod room;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::arena::{Arena, Place};
use super::eviction::Policy;
use super::failure::Failure;
use super::plan::{Plan, Share, is_expert, slot};
use super::{RecordId, Statistics};
use crate::package::shards::{ShardIndex, What};

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
    guess: Guess,
    /// The number of its layer, for the policy.
    layer: usize,
    segment: usize,
    /// Its number among the dense records.
    order: usize,
}

/// Whether a record is in memory, or on its way there, on a guess alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guess {
    No,
    /// Its layer was not asked since.
    Open,
    /// Its layer was, and did not want it: it leaves before anything else.
    Wrong,
}

/// Guesses that may be open at once: of several sequences that go through a layer in turn. Older ones are taken for
/// wrong.
const OPEN: usize = 16;

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
    /// The layer whose experts were asked for last.
    asked_layer: Option<usize>,
    /// Whether any layer's were asked for twice in a row: by groups of sequences that take turns.
    layers_repeat: bool,
    /// The layer that the next group may ask for.
    pub(super) repeated_layer: Option<usize>,
    segments: usize,
    /// For each segment whether its records fit beside what is read ahead.
    fits: Vec<bool>,
    /// Records that somebody waits for, by ticket: dense ones and experts.
    wanted: [BTreeSet<(u64, RecordId)>; 2],
    /// Records to be read on a guess, and all that were named with them.
    guesses: VecDeque<RecordId>,
    likely: Vec<RecordId>,
    /// Records read on a guess whose layer was not asked since.
    open: VecDeque<RecordId>,
    /// Records with reads yet to be given out.
    reading: Vec<RecordId>,
    pub in_flight: usize,
    pub finishing: usize,
    chunk: usize,
    depth: usize,
    /// Whether dense records are read before they are wanted.
    pub ahead: bool,
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
                guess: Guess::No,
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
            asked_layer: None,
            layers_repeat: false,
            repeated_layer: None,
            segments: segments.iter().max().map_or(0, |last| last + 1),
            fits: Vec::new(),
            wanted: [BTreeSet::new(), BTreeSet::new()],
            guesses: VecDeque::new(),
            likely: Vec::new(),
            open: VecDeque::new(),
            reading: Vec::new(),
            in_flight: 0,
            finishing: 0,
            chunk,
            depth,
            ahead: true,
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
        let guess = std::mem::replace(&mut self.entries[id].guess, Guess::No);
        self.statistics.guessed_right += u64::from(guess == Guess::Open);
        let layer = self.entries[id].layer;
        self.unrank(id);
        self.policy.used(id, layer);
        self.rank(id);
    }

    /// The layers of some experts are asked: the policy hears of it, and what was guessed of them is right or wrong now.
    pub fn requested(&mut self, ids: &[RecordId]) {
        let experts = ids.iter().filter(|id| **id < self.entries.len() && self.is_expert(**id));
        let layers: BTreeSet<usize> = experts.map(|id| self.entries[*id].layer).collect();
        if layers.is_empty() {
            return;
        }
        layers.iter().for_each(|layer| self.policy.requested(*layer));
        let layer = layers.first().copied();
        self.layers_repeat |= layer == self.asked_layer;
        self.asked_layer = layer;
        self.repeated_layer = layer.filter(|_| self.layers_repeat);
        let entries = &self.entries;
        let asked = |id: &RecordId| layers.contains(&entries[*id].layer);
        self.guesses.retain(|id| !asked(id));
        self.likely.retain(|id| !asked(id));
        let (known, open): (Vec<_>, Vec<_>) = self.open.iter().copied().partition(asked);
        self.open = open.into();
        known.into_iter().filter(|id| !ids.contains(id)).for_each(|id| self.was_wrong(id));
    }

    fn was_wrong(&mut self, id: RecordId) {
        if self.entries[id].guess == Guess::Open {
            self.entries[id].guess = Guess::Wrong;
            self.rank(id);
        }
    }

    /// Replaces what may be read on a guess.
    pub fn guess(&mut self, ids: &[RecordId]) {
        self.likely = ids.iter().copied().filter(|id| *id < self.entries.len() && self.is_expert(*id)).collect();
        self.guesses = self.likely.iter().copied().collect();
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
