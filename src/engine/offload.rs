//! Caches that wait on disk: those of a part of the model are in memory while it runs, and on their way in before.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::loader::spill::{Coding, Spill, SpillCodec, Stripe, Ticket};
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
    /// Where what is on disk is encoded.
    encoded: Option<Encoded>,
    /// Columns that are on disk as they should be.
    saved: usize,
    /// Its way in, once that has begun.
    coming: Option<Ticket>,
    /// Its way out.
    going: Option<Ticket>,
    here: bool,
}

/// How a tensor is encoded: in stripes of columns, of all of its rows.
#[derive(Debug, Clone, Copy)]
struct Encoded {
    coding: Coding,
    columns: usize,
    /// Bytes on disk for one of them.
    room: u64,
}

/// Bytes of a stripe, about: a step encodes the last one anew, and all others are read one by one.
const STRIPE: usize = 512 << 10;

/// What room a cache tensor takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// See [`Extent::rows`].
    pub rows: usize,
    /// See [`Extent::column`].
    pub column: usize,
    /// Columns that a row may get.
    pub capacity: usize,
    /// How it is stored.
    pub coding: Coding,
}

impl Size {
    fn encoded(&self) -> Option<Encoded> {
        if self.coding.codec == SpillCodec::None {
            return None;
        }
        let column = (self.rows * self.column).max(1);
        let columns = (STRIPE / column).clamp(1, self.capacity.max(1));
        Some(Encoded { coding: self.coding, columns, room: ((columns * column) as u64).next_multiple_of(ALIGNMENT) })
    }

    /// Bytes on disk at most.
    pub fn room(&self) -> u64 {
        match self.encoded() {
            None => (self.rows * self.column * self.capacity) as u64,
            Some(encoded) => encoded.room * self.capacity.div_ceil(encoded.columns) as u64,
        }
    }
}

impl Encoded {
    /// The stripes of these columns, the first of which begins a stripe.
    fn stripes(&self, offset: u64, extent: Extent, columns: std::ops::Range<usize>) -> Vec<Stripe> {
        let numbers = columns.start / self.columns..columns.end.div_ceil(self.columns);
        let stripe = |number: usize| {
            let (from, to) = (number * self.columns, ((number + 1) * self.columns).min(columns.end));
            let range = |row: usize| {
                let start = row * extent.stride;
                (start + from) * extent.column..(start + to) * extent.column
            };
            Stripe { at: offset + number as u64 * self.room, ranges: (0..extent.rows).map(range).collect() }
        };
        if columns.is_empty() { Vec::new() } else { numbers.map(stripe).collect() }
    }
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
    ///
    /// # Errors
    /// More than the file has room for.
    pub fn new(spill: &Arc<Mutex<Spill>>, sizes: impl Iterator<Item = Size>) -> Result<Self> {
        let mut file = spill.lock().unwrap_or_else(PoisonError::into_inner);
        let tensors = sizes.map(|size| {
            let (offset, encoded) = (file.place(size.room())?, size.encoded());
            Ok(Waiting { offset, encoded, saved: 0, coming: None, going: None, here: true })
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
        tensor.coming = Some(match tensor.encoded {
            None => spill.read(region, tensor.offset, extent.ranges(0..columns)),
            Some(encoded) => {
                spill.read_stripes(region, encoded.stripes(tensor.offset, extent, 0..columns), encoded.coding)
            }
        });
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
        tensor.going = Some(match tensor.encoded {
            None => spill.write(region, tensor.offset, extent.ranges(from..written.end), true),
            Some(encoded) => {
                // A stripe that grows is encoded anew from its first column on.
                let from = from / encoded.columns * encoded.columns;
                let stripes = encoded.stripes(tensor.offset, extent, from..written.end);
                spill.write_stripes(region, stripes, encoded.coding, true)
            }
        });
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
