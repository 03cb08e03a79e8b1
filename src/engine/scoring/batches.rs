//! Which sequences run together: alike in length, within bounds of memory.

use crate::cell::Scoring;

/// Bounds of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Key/value cache of a batch, in bytes.
    pub cache_bytes: u64,
    /// Logits of one run, in bytes.
    pub logits_bytes: u64,
    /// Tokens of one run, padding included: activations grow with them.
    pub tokens: usize,
    /// Sequences.
    pub rows: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { cache_bytes: 1 << 30, logits_bytes: 256 << 20, tokens: 4096, rows: 64 }
    }
}

impl Budget {
    /// The usual bounds, or smaller ones where a process may use little more memory: a quarter of it for the cache, a
    /// sixteenth for logits, an eighth for activations, of which a token takes about sixteen times the hidden size.
    pub fn within(usable_bytes: u64, hidden_size: u64) -> Self {
        let most = Self::default();
        let tokens = usable_bytes / 8 / (16 * size_of::<f32>() as u64 * hidden_size.max(1));
        Self {
            cache_bytes: most.cache_bytes.min(usable_bytes / 4),
            logits_bytes: most.logits_bytes.min(usable_bytes / 16),
            tokens: most.tokens.min(tokens as usize),
            rows: most.rows,
        }
    }

    /// The bounds of this way of running items.
    pub fn of_way(self, scoring: Scoring) -> Self {
        match scoring {
            Scoring::Batched => self,
            Scoring::OneByOne => Self { rows: 1, ..self },
        }
    }
}

/// What one sequence takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Tokens of its first run.
    pub tokens: usize,
    /// Tokens that its cache must hold beyond these.
    pub more: usize,
    /// Positions of a run whose logits are wanted.
    pub tail: usize,
}

impl Size {
    /// What rows of both sizes take in one batch.
    fn max(self, other: Self) -> Self {
        Self { tokens: self.tokens.max(other.tokens), more: self.more.max(other.more), tail: self.tail.max(other.tail) }
    }

    /// Tokens that the cache of a batch must hold whose largest rows are these. The longest prompt and the longest
    /// continuation may be of two rows, and each row's cache has room for both.
    pub fn capacity(&self) -> usize {
        self.tokens + self.more
    }
}

/// What a token costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of cache.
    pub cache_bytes: u64,
    /// Bytes of a position's logits.
    pub logits_bytes: u64,
    /// The longest sequence that the model takes, in tokens.
    pub context: usize,
}

/// Batches of indices into `sizes`: the longest first, so that what does not fit into memory shows at once, and
/// neighbours in length together, so that little is padding. Every batch holds at least one sequence.
pub fn batches(sizes: &[Size], cost: Cost, budget: Budget) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse((sizes[index].tokens, sizes[index].tail)));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut largest = Size { tokens: 0, more: 0, tail: 0 };
    for index in order {
        let size = sizes[index];
        let with = largest.max(size);
        match batches.last_mut() {
            Some(batch) if fits(batch.len() + 1, with, cost, budget) => {
                batch.push(index);
                largest = with;
            }
            _ => {
                batches.push(vec![index]);
                largest = size;
            }
        }
    }
    batches
}

fn fits(rows: usize, largest: Size, cost: Cost, budget: Budget) -> bool {
    let times = |tokens: usize, bytes: u64| rows as u64 * tokens as u64 * bytes;
    rows <= budget.rows
        && rows * largest.tokens <= budget.tokens
        && largest.capacity() <= cost.context
        && times(largest.capacity(), cost.cache_bytes) <= budget.cache_bytes
        && times(largest.tail, cost.logits_bytes) <= budget.logits_bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COST: Cost = Cost { cache_bytes: 1000, logits_bytes: 4000, context: 520 };

    proptest! {
        #[test]
        fn every_sequence_runs_once_and_within_the_bounds(
            sizes in prop::collection::vec((1_usize..500, 0_usize..50, 1_usize..20), 0..200),
            rows in 1_usize..40,
            tokens in 1_usize..5000,
        ) {
            let sizes: Vec<Size> = sizes
                .into_iter()
                .map(|(tokens, more, tail)| Size { tokens, more, tail: tail.min(tokens) })
                .collect();
            let budget = Budget { cache_bytes: 400_000, logits_bytes: 300_000, tokens, rows };
            let batches = batches(&sizes, COST, budget);
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..sizes.len()).collect::<Vec<_>>());
            for batch in &batches {
                let most = |get: fn(&Size) -> usize| batch.iter().map(|&index| get(&sizes[index])).max().unwrap_or(0);
                if batch.len() > 1 {
                    prop_assert!(batch.len() <= rows);
                    prop_assert!(batch.len() * most(|size| size.tokens) <= tokens);
                    let capacity = most(|size| size.tokens) + most(|size| size.more);
                    prop_assert!(capacity <= COST.context && batch.len() * capacity * 1000 <= 400_000);
                    prop_assert!(batch.len() * most(|size| size.tail) * 4000 <= 300_000);
                }
            }
        }
    }

    #[test]
    fn bounds_shrink_with_the_memory() {
        assert_eq!(Budget::within(64 << 30, 2560), Budget::default());
        let little = Budget::within(1 << 30, 2560);
        assert_eq!((little.cache_bytes, little.logits_bytes), (256 << 20, 64 << 20));
        assert_eq!(little.tokens, 819);
        // A batch holds one sequence whatever the bounds.
        let size = Size { tokens: 10, more: 0, tail: 1 };
        assert_eq!(batches(&[size; 2], COST, Budget::within(0, 0)), [vec![0], vec![1]]);
    }

    #[test]
    fn the_longest_come_first_and_like_runs_with_like() {
        let size = |tokens| Size { tokens, more: 0, tail: 1 };
        let sizes = [size(10), size(200), size(12), size(190)];
        let budget = Budget { tokens: 400, ..Budget::default() };
        assert_eq!(batches(&sizes, COST, budget), [vec![1, 3], vec![2, 0]]);
    }
}
