//! Which expert leaves memory first.

use super::RecordId;
use crate::cell::named_enum;

named_enum! {
    /// The order in which experts leave memory.
    Eviction {
        /// The one unused for longest.
        Lru => "lru",
        /// The one used least often, where a use counts half as much after every 64 requests to its layer. What every
        /// token passes through in turn does not push out what is used often, as it does with `lru`.
        Lfu => "lfu",
    }
}

/// Requests to a layer after which a use of one of its experts counts half.
const HALF_LIFE: f64 = 64.0;

/// Orders experts. A policy sees uses only, and its order of two records changes only when one of them is used: so
/// whoever asks can keep them sorted by [`Policy::rank`].
pub(super) trait Policy: Send {
    /// A request to a layer (by number) begins.
    fn requested(&mut self, layer: usize);
    /// A record of a layer is used.
    fn used(&mut self, id: RecordId, layer: usize);
    /// The lowest leaves first.
    fn rank(&self, id: RecordId) -> u64;
}

pub(super) fn policy(eviction: Eviction, records: usize, layers: usize) -> Box<dyn Policy> {
    match eviction {
        Eviction::Lru => Box::new(Lru { clock: 0, last: vec![0; records] }),
        Eviction::Lfu => Box::new(Lfu { clocks: vec![0.0; layers], log: vec![f64::NEG_INFINITY; records] }),
    }
}

struct Lru {
    clock: u64,
    last: Vec<u64>,
}

impl Policy for Lru {
    fn requested(&mut self, _layer: usize) {}

    fn used(&mut self, id: RecordId, _layer: usize) {
        self.clock += 1;
        self.last[id] = self.clock;
    }

    fn rank(&self, id: RecordId) -> u64 {
        self.last[id]
    }
}

/// Frequency with ageing. Instead of letting old uses fade, new ones weigh more: a use at time `t` weighs
/// `2^(t / HALF_LIFE)`, so that sums compare as faded ones do and change at uses only. They are kept as logarithms.
/// Each layer has a clock of its own, so that layers asked oftener than others do not push theirs out.
struct Lfu {
    clocks: Vec<f64>,
    log: Vec<f64>,
}

impl Policy for Lfu {
    fn requested(&mut self, layer: usize) {
        self.clocks[layer] += 1.0;
    }

    fn used(&mut self, id: RecordId, layer: usize) {
        let now = self.clocks[layer] / HALF_LIFE;
        let before = self.log[id];
        // log2(2^a + 2^b), from the larger one.
        let (high, low) = if before > now { (before, now) } else { (now, before) };
        self.log[id] = high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2;
    }

    fn rank(&self, id: RecordId) -> u64 {
        // The order of the bits of floating-point numbers is theirs once the sign is turned.
        let bits = self.log[id].to_bits();
        if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lru_ranks_by_the_last_use() {
        let mut lru = policy(Eviction::Lru, 3, 1);
        for id in [0, 1, 2, 0] {
            lru.used(id, 0);
        }
        assert!(lru.rank(1) < lru.rank(2) && lru.rank(2) < lru.rank(0));
    }

    #[test]
    fn lfu_ranks_by_uses_that_fade() {
        let mut lfu = policy(Eviction::Lfu, 4, 1);
        for _ in 0..10 {
            lfu.requested(0);
            lfu.used(0, 0);
        }
        lfu.requested(0);
        lfu.used(1, 0);
        assert!(lfu.rank(3) < lfu.rank(1), "never used");
        assert!(lfu.rank(1) < lfu.rank(0), "ten uses outweigh one");
        for _ in 0..64 * 5 {
            lfu.requested(0);
        }
        lfu.used(2, 0);
        assert!(lfu.rank(0) < lfu.rank(2), "after five half-lives ten uses weigh less than one");
    }
}
