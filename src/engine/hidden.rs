//! Hidden states that wait on disk: what the parts of a model make for later ones, while other groups have their turn.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cell::Dtype;
use crate::error::Result;
use crate::loader::spill::{Coding, Spill, SpillCodec, Stripe, Ticket};
use crate::package::shards::ALIGNMENT;
use crate::runtime::{Bindings, BufferId};

/// A group's tensors leave when they are at least so many bytes together: below, a transfer costs more than it saves.
const LEAST_GROUP: usize = 1 << 20;

/// Smaller ones stay in memory all the same.
const LEAST_TENSOR: usize = 16 << 10;

/// Channels of hidden states that share a scale, where they lose some of their digits on disk: few, since a few channels
/// are far larger than the others.
const GROUP: usize = 32;

/// A group's hidden states.
#[derive(Debug)]
pub(super) struct Hidden {
    spill: Arc<Mutex<Spill>>,
    codec: SpillCodec,
    /// Channels of the states themselves. What else is handed over (masks, positions' sines) comes back as it was.
    width: usize,
    waiting: HashMap<String, Waiting>,
    /// Room that no tensor has.
    free: Vec<Slot>,
}

/// A buffer, and a place of the same size on disk.
#[derive(Debug, Clone, Copy)]
struct Slot {
    buffer: BufferId,
    offset: u64,
    bytes: usize,
}

/// A tensor in a slot.
#[derive(Debug)]
struct Waiting {
    slot: Slot,
    coding: Coding,
    bytes: usize,
    /// Whether it is on disk as it is.
    saved: bool,
    here: bool,
    going: Option<Ticket>,
    coming: Option<Ticket>,
}

impl Waiting {
    fn settle(&mut self) -> Result<()> {
        let tickets = [self.going.take(), self.coming.take()];
        tickets.into_iter().flatten().map(Ticket::wait).fold(Ok(()), Result::and)
    }
}

impl Hidden {
    /// Nothing yet.
    pub fn new(spill: &Arc<Mutex<Spill>>, codec: SpillCodec, width: usize) -> Self {
        Self { spill: Arc::clone(spill), codec, width, waiting: HashMap::new(), free: Vec::new() }
    }

    /// Begins to read back those of these tensors that are on disk.
    pub fn prefetch(&mut self, names: &[String], bindings: &Bindings) {
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            let Some(waiting) = self.waiting.get_mut(name).filter(|waiting| !waiting.here) else { continue };
            let region = bindings.region(waiting.slot.buffer);
            waiting.coming = Some(match waiting.coding.codec {
                SpillCodec::None => spill.read(region, waiting.slot.offset, whole(waiting.bytes)),
                _ => spill.read_stripes(region, stripes(waiting), waiting.coding),
            });
            waiting.here = true;
        }
    }

    /// Waits until these tensors are in memory.
    ///
    /// # Errors
    /// A disk that fails, now or when a tensor was written.
    pub fn bring_in(&mut self, names: &[String], bindings: &Bindings) -> Result<()> {
        self.prefetch(names, bindings);
        names.iter().filter_map(|name| self.waiting.get_mut(name).map(Waiting::settle)).collect()
    }

    /// Sends all that a group hands over to disk, where it is much.
    ///
    /// # Errors
    /// A disk without room.
    pub fn send_out(&mut self, bindings: &mut Bindings) -> Result<()> {
        let made: Vec<(String, usize)> = bindings.handed().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        let all = made.iter().map(|(_, bytes)| bytes).sum::<usize>()
            + self.waiting.values().map(|waiting| waiting.bytes).sum::<usize>();
        if all < LEAST_GROUP {
            return Ok(());
        }
        for (name, bytes) in made.into_iter().filter(|(_, bytes)| *bytes >= LEAST_TENSOR) {
            let slot = self.slot(bytes, bindings)?;
            let coding = self.coding(&name, bindings)?;
            bindings.move_handed(&name, slot.buffer)?;
            let waiting = Waiting { slot, coding, bytes, saved: false, here: true, going: None, coming: None };
            self.waiting.insert(name, waiting);
        }
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        for waiting in self.waiting.values_mut().filter(|waiting| waiting.here) {
            // What came back is there still: its memory is given back only.
            let region = bindings.region(waiting.slot.buffer);
            waiting.going = Some(match waiting.coding.codec {
                _ if waiting.saved => spill.write(region, waiting.slot.offset, Vec::new(), true),
                SpillCodec::None => spill.write(region, waiting.slot.offset, whole(waiting.bytes), true),
                _ => spill.write_stripes(region, stripes(waiting), waiting.coding, true),
            });
            (waiting.saved, waiting.here) = (true, false);
        }
        Ok(())
    }

    /// Waits until what was sent out has left.
    ///
    /// # Errors
    /// A disk that is full or fails.
    pub fn settle(&mut self) -> Result<()> {
        let going = |waiting: &mut Waiting| waiting.going.take().map_or(Ok(()), Ticket::wait);
        self.waiting.values_mut().map(going).fold(Ok(()), Result::and)
    }

    /// A tensor that no later part takes is no longer needed.
    ///
    /// # Errors
    /// As [`Hidden::settle`].
    pub fn forget(&mut self, name: &str, bindings: &mut Bindings) -> Result<()> {
        let Some(mut waiting) = self.waiting.remove(name) else { return Ok(()) };
        let settled = waiting.settle();
        bindings.release(waiting.slot.buffer);
        self.free.push(waiting.slot);
        settled
    }

    /// Forgets all of a run that broke off.
    pub fn clear(&mut self, bindings: &mut Bindings) {
        let names: Vec<String> = self.waiting.keys().cloned().collect();
        for name in names {
            // Whoever ran has heard of what failed.
            let _ = self.forget(&name, bindings);
        }
    }

    /// Bytes in memory, or on their way.
    pub fn bytes(&self) -> usize {
        let here = |waiting: &&Waiting| waiting.here || waiting.going.is_some();
        self.waiting.values().filter(here).map(|waiting| waiting.bytes).sum()
    }

    fn coding(&self, name: &str, bindings: &Bindings) -> Result<Coding> {
        let (dtype, width) = bindings.handed_elements(name)?;
        let states = matches!(dtype, Some(Dtype::Float32 | Dtype::Float16)) && width == self.width;
        Ok(Coding { codec: self.codec, size: dtype.map_or(1, Dtype::size), group: states.then_some(GROUP) })
    }

    /// The smallest free room that is large enough, or a new one.
    fn slot(&mut self, bytes: usize, bindings: &mut Bindings) -> Result<Slot> {
        let fits = self.free.iter().enumerate().filter(|(_, slot)| slot.bytes >= bytes);
        if let Some((place, _)) = fits.min_by_key(|(_, slot)| slot.bytes) {
            return Ok(self.free.swap_remove(place));
        }
        let bytes = bytes.next_multiple_of(ALIGNMENT as usize);
        let offset = self.spill.lock().unwrap_or_else(PoisonError::into_inner).place_more(bytes as u64)?;
        Ok(Slot { buffer: bindings.allocate(bytes)?, offset, bytes })
    }
}

fn stripes(waiting: &Waiting) -> Vec<Stripe> {
    vec![Stripe { at: waiting.slot.offset, ranges: whole(waiting.bytes) }]
}

fn whole(bytes: usize) -> Vec<Range<usize>> {
    std::iter::once(0..bytes).collect()
}

impl Drop for Hidden {
    /// Transfers under way use the buffers' memory, which goes with the group.
    fn drop(&mut self) {
        // Nobody is left to hear of a failure.
        self.waiting.values_mut().for_each(|waiting| drop(waiting.settle()));
    }
}
