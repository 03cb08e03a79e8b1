//! Stripes: ranges of memory that are encoded and stored together, each at a place of its own that is as long as they
//! are when nothing can be saved.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::coding::{Coding, Stored};
use crate::error::{Context, Error, Result};
use crate::package::shards::ALIGNMENT;
use crate::runtime::{Memory, Region};

/// Ranges of a region of equal length, and where they are stored. Fewer bytes of each may be read back than were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripe {
    /// Their place in the file, a multiple of what transfers past the page cache ask for, with room for all of them,
    /// rounded up to that.
    pub at: u64,
    /// The ranges.
    pub ranges: Vec<Range<usize>>,
}

/// What is stored where, and memory to encode in.
#[derive(Debug, Default)]
pub(super) struct Stripes {
    kept: HashMap<u64, Kept>,
    /// What goes over the disk, which past the page cache wants aligned memory.
    stored: Option<Memory>,
    plain: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    stored: Stored,
    bytes: usize,
    /// As they are in memory.
    plain: usize,
}

/// Bytes of a stripe in memory and on the disk.
pub(super) type Moved = (u64, u64);

impl Stripes {
    /// Writes a stripe.
    ///
    /// # Safety
    /// Nothing else touches the ranges of the region, which still exists.
    pub unsafe fn write(&mut self, file: &File, region: Region, stripe: &Stripe, coding: Coding) -> Result<Moved> {
        self.plain.clear();
        for range in &stripe.ranges {
            // SAFETY: the caller's promise.
            self.plain.extend_from_slice(unsafe { region.bytes_mut(range.clone()) });
        }
        let (stored, encoded) = coding.encode(&self.plain)?;
        let kept: &[u8] = if stored == Stored::Plain { &self.plain } else { &encoded };
        let bytes = kept.len().next_multiple_of(ALIGNMENT as usize);
        let memory = with_room(&mut self.stored, bytes)?;
        memory[..kept.len()].copy_from_slice(kept);
        memory[kept.len()..bytes].fill(0);
        file.write_all_at(&memory[..bytes], stripe.at).context("cannot write what waits to its file")?;
        self.kept.insert(stripe.at, Kept { stored, bytes: kept.len(), plain: self.plain.len() });
        Ok((self.plain.len() as u64, bytes as u64))
    }

    /// Reads a stripe back.
    ///
    /// # Safety
    /// As [`Stripes::write`].
    pub unsafe fn read(&mut self, file: &File, region: Region, stripe: &Stripe, coding: Coding) -> Result<Moved> {
        let lacks = || Error::new("what is read back was never written; this is a bug");
        let kept = *self.kept.get(&stripe.at).ok_or_else(lacks)?;
        let row = kept.plain / stripe.ranges.len().max(1);
        if stripe.ranges.is_empty() || stripe.ranges.iter().any(|range| range.len() > row) {
            return Err(lacks());
        }
        let bytes = kept.bytes.next_multiple_of(ALIGNMENT as usize);
        let memory = &mut with_room(&mut self.stored, bytes)?[..bytes];
        file.read_exact_at(memory, stripe.at).context("cannot read back what waited in its file")?;
        self.plain.resize(kept.plain, 0);
        coding.decode(kept.stored, &memory[..kept.bytes], &mut self.plain)?;
        for (range, from) in stripe.ranges.iter().zip(self.plain.chunks_exact(row)) {
            // SAFETY: the caller's promise.
            unsafe { region.bytes_mut(range.clone()) }.copy_from_slice(&from[..range.len()]);
        }
        Ok((kept.plain as u64, bytes as u64))
    }
}

fn with_room(memory: &mut Option<Memory>, bytes: usize) -> Result<&mut [u8]> {
    if memory.as_ref().is_none_or(|memory| memory.bytes().len() < bytes) {
        *memory = Some(Memory::new(bytes.next_power_of_two())?);
    }
    Ok(memory.as_mut().map_or(&mut [], Memory::bytes_mut))
}
