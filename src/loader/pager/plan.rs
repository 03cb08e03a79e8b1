//! What stays in memory, what streams, and how the capacity is shared between them.

use std::collections::BTreeMap;

use super::RecordId;
use super::arena::HUGE;
use crate::cell::Residency;
use crate::error::{Error, Result};
use crate::loader::io::Reads;
use crate::package::shards::{ALIGNMENT, Codec, Form, Record, ShardIndex, What};
use crate::units;

/// Experts of one layer that must fit at once: what the routers of today's mixtures pick for a token, or all of a
/// layer that has fewer.
pub const ROUTED: usize = 8;

/// Capacities from which on huge pages are worth the part of one that may be filled beyond the account. They matter to
/// the disk too: a read into scattered small pages is cut into many (1.2 GB/s instead of 1.9 in one measurement).
const HUGE_FROM: u64 = 16 << 20;

/// Bytes of one read: records beyond it are read in several at once.
pub(super) const CHUNK: usize = 4 << 20;

/// Which part of the capacity a record is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    Pinned,
    Dense,
    Experts,
}

/// Memory that a record takes once read.
pub(super) fn slot(record: &Record) -> u64 {
    let bytes = if record.codec == Codec::None { record.bytes.max(record.stored) } else { record.bytes };
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

/// Memory that its stored bytes take until they are decoded.
pub(super) fn staging(record: &Record) -> u64 {
    if record.codec == Codec::None { 0 } else { record.stored.max(1).next_multiple_of(ALIGNMENT) }
}

/// Whether a record is a dense one of at most `largest` bytes.
fn streams(largest: u64) -> impl Fn(&Record) -> bool {
    move |record| !is_expert(record) && slot(record) <= largest
}

pub(super) fn is_expert(record: &Record) -> bool {
    matches!(record.what, What::Expert { .. })
}

/// What to keep, and in how much memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// For each record whether it stays.
    pub pinned: Vec<bool>,
    pub pinned_bytes: u64,
    /// Memory for dense records that stream.
    pub dense: u64,
    /// Memory for experts.
    pub experts: u64,
    /// Whether huge pages are asked for.
    pub huge: bool,
}

/// Sizes that every plan of a pack starts from.
struct Sizes<'a> {
    index: &'a ShardIndex,
    /// Reads in flight at once, in bytes.
    flight: u64,
}

impl Sizes<'_> {
    fn dense(&self) -> impl Iterator<Item = (RecordId, &Record)> {
        self.index.records.iter().enumerate().filter(|(_, record)| !is_expert(record))
    }

    /// Memory for one layer's routed experts.
    fn routed(&self) -> u64 {
        let mut layers: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for record in &self.index.records {
            if let What::Expert { mixture, .. } = &record.what {
                layers.entry(mixture).or_default().push(slot(record) + staging(record));
            }
        }
        let most = |mut sizes: Vec<u64>| {
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            sizes.iter().take(ROUTED).sum::<u64>()
        };
        layers.into_values().map(most).max().unwrap_or(0)
    }

    fn experts(&self) -> u64 {
        self.index.records.iter().filter(|record| is_expert(record)).map(|record| slot(record) + staging(record)).sum()
    }

    fn most_staging(&self) -> u64 {
        self.index.records.iter().map(staging).max().unwrap_or(0)
    }

    /// What the computation holds at once of dense records of at most `largest` bytes.
    fn held(&self, largest: u64) -> u64 {
        match self.index.form {
            Form::Operators => largest,
            // A segment's inputs are bound together.
            Form::Inputs => self.segments(streams(largest)),
        }
    }

    /// Memory through which dense records of at most `largest` bytes can stream: what the computation holds at once,
    /// and as much as is in flight.
    fn stream(&self, largest: u64) -> u64 {
        let streams = streams(largest);
        let all: u64 = self.index.records.iter().filter(|record| streams(record)).map(slot).sum();
        let held = self.held(largest);
        let staged = self.index.records.iter().filter(|record| streams(record)).map(staging).max().unwrap_or(0);
        all.min(held + largest.max(self.flight)) + staged
    }

    /// The most that the chosen records of one segment take.
    fn segments(&self, chosen: impl Fn(&Record) -> bool) -> u64 {
        let bytes = |records: &[Record]| records.iter().filter(|record| chosen(record)).map(slot).sum::<u64>();
        let ranges = self.index.segments.iter().map(|segment| {
            let last = (segment.first_record + segment.records).min(self.index.records.len());
            bytes(self.index.records.get(segment.first_record..last).unwrap_or(&[]))
        });
        ranges.max().unwrap_or_else(|| bytes(&self.index.records))
    }

    fn least(&self, residency: Residency) -> u64 {
        let all: u64 = self.index.records.iter().map(slot).sum();
        match residency {
            Residency::Mapped => 0,
            Residency::Resident => all + self.most_staging(),
            Residency::Stream | Residency::Experts => {
                let largest = self.dense().map(|(_, record)| slot(record)).max().unwrap_or(0);
                self.stream(largest) + self.routed()
            }
        }
    }

    /// Dense records from the one that gains least by staying to the one that gains most: any first part of them is
    /// spread evenly over the pass, as multiples of the golden ratio are over the unit interval.
    fn streaming_order(&self) -> Vec<RecordId> {
        let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
        let mut order: Vec<(f64, RecordId)> =
            self.dense().enumerate().map(|(number, (id, _))| ((number as f64 * ratio).fract(), id)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Which dense records stay within `capacity` bytes, and how many of those the others stream through.
    fn dense_within(&self, capacity: u64, pinned: &mut [bool]) -> (u64, u64) {
        let all: u64 = self.dense().map(|(_, record)| slot(record)).sum();
        let staged = self.dense().map(|(_, record)| staging(record)).max().unwrap_or(0);
        if all + staged <= capacity {
            self.dense().for_each(|(id, _)| pinned[id] = true);
            return (all, staged);
        }
        // Records beyond a size always stay where that leaves more room to the others: the stream's own memory then
        // needs to hold small ones only.
        let mut sizes: Vec<u64> = self.dense().map(|(_, record)| slot(record)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let beyond = |size: u64| self.dense().filter(move |(_, record)| slot(record) > size);
        let bytes_beyond = |size: u64| beyond(size).map(|(_, record)| slot(record)).sum::<u64>();
        // What stays is read through the stream's memory too, where it has to be decoded: beside what the computation
        // holds, since a plan that comes while it runs may let records stay that are not there yet.
        let stream = |size: u64| self.stream(size).max(self.held(size) + staged);
        let largest = sizes.iter().copied().find(|size| bytes_beyond(*size) + stream(*size) <= capacity);
        let Some(largest) = largest.or(sizes.last().copied()) else { return (0, 0) };
        let mut kept: u64 = beyond(largest).map(|(id, record)| (pinned[id] = true, slot(record)).1).sum();
        // Two segments' worth lets several sequences share one load of a layer while the next one arrives.
        let two = 2 * self.segments(streams(largest));
        let least = stream(largest);
        let stream = if two <= capacity / 8 { least.max(two).min(capacity - kept) } else { least };
        for id in self.streaming_order().into_iter().rev() {
            let bytes = slot(&self.index.records[id]);
            if !pinned[id] && kept + bytes + stream <= capacity {
                pinned[id] = true;
                kept += bytes;
            }
        }
        (kept, capacity.saturating_sub(kept))
    }
}

/// The least capacity, in bytes, that a pack can run in.
pub(super) fn least(index: &ShardIndex, residency: Residency, depth: usize, chunk: usize) -> u64 {
    let sizes = Sizes { index, flight: (depth.max(1) * chunk) as u64 };
    sizes.least(residency)
}

impl Plan {
    /// Shares a capacity, which must be at least [`least`].
    pub fn new(
        index: &ShardIndex,
        residency: Residency,
        capacity: Option<u64>,
        reads: &Reads,
        chunk: usize,
    ) -> Result<Self> {
        let sizes = Sizes { index, flight: (reads.depth.max(1) * chunk) as u64 };
        let all: u64 = index.records.iter().map(slot).sum();
        let unlimited = all + sizes.most_staging() * reads.depth.max(1) as u64 + 2 * HUGE as u64;
        let capacity = capacity.unwrap_or(u64::MAX).min(unlimited);
        let least = sizes.least(residency);
        if capacity < least {
            return Err(Error::new(format!(
                "{} for records is too little for residency `{residency}`",
                units::bytes(capacity)
            ))
            .hint(format!("give at least {} ({least} bytes)", units::bytes(least))));
        }
        // Records grow from one end of the addresses, what is yet to be decoded from the other.
        let slack = if sizes.most_staging() > 0 { 2 * HUGE as u64 } else { HUGE as u64 };
        let huge = capacity >= HUGE_FROM && capacity - slack >= least;
        let room = if huge { capacity - slack } else { capacity };
        let mut plan = Self { pinned: vec![false; index.records.len()], pinned_bytes: 0, dense: 0, experts: 0, huge };
        match residency {
            Residency::Mapped => {}
            Residency::Resident => {
                plan.pinned.fill(true);
                plan.pinned_bytes = all;
                plan.dense = room.saturating_sub(all);
            }
            Residency::Stream | Residency::Experts => {
                let routed = sizes.routed();
                let (kept, stream) = sizes.dense_within(room - routed, &mut plan.pinned);
                plan.pinned_bytes = kept;
                plan.dense = stream;
                plan.experts = match residency {
                    Residency::Experts => (room - kept - stream).min(sizes.experts()),
                    _ => routed,
                };
            }
        }
        debug_assert!(plan.total() <= capacity, "a plan beyond its capacity");
        Ok(plan)
    }

    /// All shares together.
    pub fn total(&self) -> u64 {
        self.pinned_bytes + self.dense + self.experts
    }

    pub fn limit(&self, share: Share) -> u64 {
        match share {
            Share::Pinned => self.pinned_bytes,
            Share::Dense => self.dense,
            Share::Experts => self.experts,
        }
    }
}
