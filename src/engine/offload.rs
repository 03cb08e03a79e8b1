//! Caches that wait on disk: those of a part of the model are in memory while it runs, and on their way in before.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::loader::spill::{Spill, Ticket};
use crate::package::shards::ALIGNMENT;
use crate::runtime::{Bindings, BufferId};

/// The disk's share of a group's caches.
#[derive(Debug)]
pub(super) struct Offload {
    spill: Arc<Mutex<Spill>>,
    /// Of each cache tensor.
    tensors: Vec<Waiting>,
}

/// A cache tensor on disk.
#[derive(Debug)]
struct Waiting {
    offset: u64,
    /// Columns that are on disk as they should be.
    saved: usize,
    /// Its way in, once that has begun.
    coming: Option<Ticket>,
    /// Its way out.
    going: Option<Ticket>,
    here: bool,
}

/// How a cache tensor lies in its buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// The buffer that holds it.
    pub buffer: BufferId,
    /// Rows of the tensor that grow by columns: sequences times heads.
    pub rows: usize,
    /// Bytes of a column of a row.
    pub column: usize,
    /// Columns that a row has room for where it stands: the capacity, or the columns that are filled where the
    /// tensor is compact.
    pub stride: usize,
}

impl Extent {
    /// The bytes of these columns, of every row.
    fn ranges(&self, columns: std::ops::Range<usize>) -> Vec<std::ops::Range<usize>> {
        if columns.is_empty() {
            return Vec::new();
        }
        // Rows that are full follow each other without a gap: one range.
        let whole = columns == (0..self.stride);
        let (rows, row) = if whole { (1, 0) } else { (self.rows, self.stride * self.column) };
        let (from, to) = (columns.start * self.column, columns.end * self.column * if whole { self.rows } else { 1 });
        (0..rows).map(|number| number * row + from..number * row + to).collect()
    }
}

/// The least capacity from `capacity` on at which rows of such columns begin at multiples of what transfers past the
/// page cache ask for.
pub(super) fn aligned_capacity(capacity: usize, column: usize) -> usize {
    let alignment = ALIGNMENT as usize;
    let step = alignment / (1 << column.trailing_zeros()).min(alignment);
    capacity.next_multiple_of(step)
}

impl Offload {
    /// Room on disk for tensors of these sizes.
    pub fn new(spill: &Arc<Mutex<Spill>>, bytes: impl Iterator<Item = usize>) -> Result<Self> {
        let mut file = spill.lock().unwrap_or_else(PoisonError::into_inner);
        let tensors = bytes.map(|bytes| {
            let offset = file.place(bytes as u64)?;
            Ok(Waiting { offset, saved: 0, coming: None, going: None, here: true })
        });
        let tensors = tensors.collect::<Result<_>>()?;
        Ok(Self { spill: Arc::clone(spill), tensors })
    }

    /// Forgets what lies beyond these columns.
    pub fn cut(&mut self, columns: usize) {
        self.tensors.iter_mut().for_each(|tensor| tensor.saved = tensor.saved.min(columns));
    }

    /// Begins to read a tensor's first columns, unless it is in memory or on its way.
    pub fn prefetch(&mut self, place: usize, extent: Extent, columns: usize, bindings: &Bindings) {
        let tensor = &mut self.tensors[place];
        if tensor.here || tensor.coming.is_some() {
            return;
        }
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        let region = bindings.region(extent.buffer);
        tensor.coming = Some(spill.read(region, tensor.offset, extent.ranges(0..columns)));
    }

    /// Waits until a tensor's first columns are in memory.
    ///
    /// # Errors
    /// A disk that fails, now or when the tensor was written.
    pub fn bring_in(&mut self, place: usize, extent: Extent, columns: usize, bindings: &Bindings) -> Result<()> {
        self.prefetch(place, extent, columns, bindings);
        let tensor = &mut self.tensors[place];
        tensor.here = true;
        for ticket in [tensor.going.take(), tensor.coming.take()].into_iter().flatten() {
            ticket.wait()?;
        }
        Ok(())
    }

    /// Sends a tensor out whose columns from `written.start` on were written, up to its last; those before are on disk
    /// already.
    pub fn send_out(&mut self, place: usize, extent: Extent, written: std::ops::Range<usize>, bindings: &Bindings) {
        let tensor = &mut self.tensors[place];
        let from = written.start.min(tensor.saved);
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        let region = bindings.region(extent.buffer);
        tensor.going = Some(spill.write(region, tensor.offset, extent.ranges(from..written.end), true));
        tensor.saved = written.end;
        tensor.here = false;
    }
}

impl Drop for Offload {
    /// Transfers under way use the buffers' memory, which goes with the group.
    fn drop(&mut self) {
        for tensor in &mut self.tensors {
            for ticket in [tensor.going.take(), tensor.coming.take()].into_iter().flatten() {
                // Nobody is left to hear of a failure.
                let _ = ticket.wait();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_begin_at_whole_pages() {
        assert_eq!(aligned_capacity(161, 512), 168);
        assert_eq!(aligned_capacity(160, 512), 160);
        assert_eq!(aligned_capacity(5, 4096), 5);
        assert_eq!(aligned_capacity(5, 8192), 5);
        assert_eq!(aligned_capacity(5, 384), 32);
        for (capacity, column) in [(1, 96), (77, 80), (300, 256)] {
            assert_eq!(aligned_capacity(capacity, column) * column % 4096, 0);
        }
    }

    fn one(ranges: Vec<std::ops::Range<usize>>) -> (usize, usize) {
        assert_eq!(ranges[0].start, 0);
        (ranges.len(), ranges[0].end)
    }

    #[test]
    fn ranges_cover_the_columns_of_every_row() {
        let mut extent = Extent { buffer: crate::runtime::BufferId::default(), rows: 2, column: 8, stride: 10 };
        assert_eq!(one(extent.ranges(0..10)), (1, 160));
        assert_eq!(extent.ranges(2..4), [16..32, 96..112]);
        assert!(extent.ranges(3..3).is_empty());
        extent.stride = 4;
        assert_eq!(one(extent.ranges(0..4)), (1, 64));
    }
}
