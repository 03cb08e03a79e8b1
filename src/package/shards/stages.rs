//! A pack that several processes run, each of them some of its segments.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{ShardIndex, What};

impl ShardIndex {
    /// The pack as if it had these segments only, with their records.
    ///
    /// # Panics
    /// Segments that there are not.
    #[must_use]
    pub fn stage(&self, segments: Range<usize>) -> Self {
        let mut own = self.segments[segments].to_vec();
        let first = own.first().map_or(0, |segment| segment.first_record);
        let count: usize = own.iter().map(|segment| segment.records).sum();
        own.iter_mut().for_each(|segment| segment.first_record -= first);
        let records = self.records[first..first + count].to_vec();
        let mixtures: BTreeSet<&str> = (records.iter())
            .filter_map(|record| match &record.what {
                What::Expert { mixture, .. } => Some(mixture.as_str()),
                _ => None,
            })
            .collect();
        let routers = self.routers.iter().filter(|router| mixtures.contains(router.mixture.as_str()));
        Self {
            format: self.format,
            form: self.form,
            made: self.made.clone(),
            files: self.files.clone(),
            segments: own,
            routers: routers.cloned().collect(),
            records: records.clone(),
        }
    }

    /// Tensors that segments before a border make and segments after it take.
    pub fn crossing(&self, border: usize) -> Vec<String> {
        let (before, after) = self.segments.split_at(border.min(self.segments.len()));
        let made: BTreeSet<&String> = before.iter().flat_map(|segment| &segment.makes).collect();
        let taken: BTreeSet<&String> = after.iter().flat_map(|segment| &segment.takes).collect();
        made.intersection(&taken).map(|name| (*name).clone()).collect()
    }

    /// Bytes of each segment's weights that a decode step multiplies by, of a mixture the share of its routed experts:
    /// an estimate of what the segment costs. Tensors for stock operators, such as embeddings, of which a step reads
    /// next to nothing, do not count.
    pub fn step_bytes(&self, routed: u64) -> Vec<u64> {
        let bytes = |segment: &super::Segment| {
            let records = &self.records[segment.first_record..segment.first_record + segment.records];
            let matrices = records.iter().filter(|record| matches!(record.what, What::Matrix { .. }));
            let experts: Vec<u64> = (records.iter())
                .filter(|record| matches!(record.what, What::Expert { .. }))
                .map(|record| record.bytes)
                .collect();
            let mean = experts.iter().sum::<u64>() / (experts.len() as u64).max(1);
            matrices.map(|record| record.bytes).sum::<u64>() + mean * routed.min(experts.len() as u64)
        };
        self.segments.iter().map(bytes).collect()
    }
}
