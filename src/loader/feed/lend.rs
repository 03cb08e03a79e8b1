//! Weights where the pager has them.

use std::sync::Arc;

use super::{Feeder, Weight};
use crate::error::Result;
use crate::loader::pager::{Lease, Pager};
use crate::runtime::{Lent, PartWeights};

/// Lends the pager's memory to ONNX Runtime: nothing is copied. A part's leases are given back when its weights are
/// let go.
#[derive(Debug)]
pub struct Lend {
    pager: Arc<Pager>,
    parts: Vec<Vec<Weight>>,
}

impl Lend {
    /// For parts with these weights.
    pub fn new(pager: &Arc<Pager>, parts: Vec<Vec<Weight>>) -> Self {
        Self { pager: Arc::clone(pager), parts }
    }
}

impl Feeder for Lend {
    fn part(&mut self, part: usize) -> Result<Arc<PartWeights>> {
        let mut weights = PartWeights::default();
        // One after the other in the order of the pass, which is what the pager reads ahead; its plan has room for all
        // of a part's.
        for weight in &self.parts[part] {
            weights.lend(&weight.input, Box::new(self.pager.acquire(weight.record)?))?;
        }
        Ok(Arc::new(weights))
    }
}

// SAFETY: a lease keeps its record in memory: the record neither moves nor is written as long as one of its leases
// lives, and moving the lease moves a pointer only. Records begin at multiples of 4096 bytes.
unsafe impl Lent for Lease {
    fn bytes(&self) -> &[u8] {
        self
    }
}
