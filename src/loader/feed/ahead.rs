//! Weights copied to a device ahead of use, by a thread of its own.
//!
//! The device holds [`SETS`] parts' weights: those of the part that computes, and those of the next one, which are
//! copied meanwhile. A set is filled anew once nobody holds the weights in it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Feeder, Weight};
use crate::error::{Context, Error, Result};
use crate::loader::pager::Pager;
use crate::runtime::PartWeights;
use crate::runtime::device::{Block, Device, Loan};

/// Parts whose weights are on the device at once, where not all are.
pub const SETS: usize = 2;

/// Weights begin at multiples of this many bytes: what kernels of GPUs read at once, and more than any element.
const ALIGNMENT: usize = 256;

/// Copies the weights of the next part to a device while a part computes.
pub struct Ahead {
    parts: Arc<Vec<Vec<Weight>>>,
    wishes: Option<Sender<usize>>,
    filled: Receiver<(usize, Result<Block>)>,
    /// The part that was asked for and not taken yet.
    asked: Option<usize>,
    /// Whether a part is asked for before it is wanted, as the pager reads.
    early: bool,
    sets: Arc<Sets>,
    copied: Arc<AtomicU64>,
    worker: Option<JoinHandle<()>>,
}

/// Blocks that wait to be filled.
#[derive(Debug)]
struct Sets {
    free: Mutex<(Vec<Block>, bool)>,
    changed: Condvar,
}

impl Sets {
    fn give(&self, block: Block) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).0.push(block);
        self.changed.notify_all();
    }

    /// The next free one; `None` once nobody wants more.
    fn take(&self) -> Option<Block> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if free.1 {
                return None;
            }
            if let Some(block) = free.0.pop() {
                return Some(block);
            }
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }
}

/// Where each weight of a part lies in its block, and the block's length.
fn layout(weights: &[Weight]) -> (Vec<Range<usize>>, usize) {
    let mut end = 0_usize;
    let ranges = weights.iter().map(|weight| {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start + weight.bytes;
        start..end
    });
    (ranges.collect(), end)
}

impl Ahead {
    /// What [`Ahead::new`] takes of the device's memory.
    pub fn bytes(parts: &[Vec<Weight>], sets: usize) -> u64 {
        let largest = parts.iter().map(|part| layout(part).1).max().unwrap_or(0);
        sets.max(SETS) as u64 * largest as u64
    }

    /// With room on the device for the weights of `sets` parts, at least two.
    ///
    /// # Errors
    /// Memory of the device, or a thread, that cannot be had.
    pub fn new(pager: &Arc<Pager>, parts: Vec<Vec<Weight>>, mut device: Box<dyn Device>, sets: usize) -> Result<Self> {
        let largest = parts.iter().map(|part| layout(part).1).max().unwrap_or(0);
        let blocks = (0..sets.max(SETS)).map(|_| device.allocate(largest)).collect::<Result<_>>()?;
        let sets = Arc::new(Sets { free: Mutex::new((blocks, false)), changed: Condvar::new() });
        let (parts, copied) = (Arc::new(parts), Arc::new(AtomicU64::new(0)));
        let early = pager.reads_ahead();
        let (wishes, queue) = channel::<usize>();
        let (done, filled) = channel();
        let worker = {
            let (pager, parts) = (Arc::clone(pager), Arc::clone(&parts));
            let (sets, copied) = (Arc::clone(&sets), Arc::clone(&copied));
            let work = move || {
                while let Ok(part) = queue.recv() {
                    let Some(block) = sets.take() else { return };
                    let result = fill(block, &parts[part], &pager, device.as_mut(), &copied, &sets);
                    if done.send((part, result)).is_err() {
                        return;
                    }
                }
            };
            let spawned = std::thread::Builder::new().name("weights".to_owned()).spawn(work);
            spawned.context("cannot start the thread that copies weights")?
        };
        Ok(Self { parts, wishes: Some(wishes), filled, asked: None, early, sets, copied, worker: Some(worker) })
    }

    /// Bytes that were copied to the device so far.
    pub fn copied_bytes(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    fn ask(&mut self, part: usize) -> Result<()> {
        let sent = self.wishes.as_ref().is_some_and(|wishes| wishes.send(part).is_ok());
        self.asked = Some(part);
        if sent { Ok(()) } else { Err(ended()) }
    }

    /// The block with a part's weights; the next part's are asked for.
    fn block(&mut self, part: usize) -> Result<Loan> {
        while self.asked != Some(part) {
            if self.asked.take().is_some() {
                // A pass that broke off: the set is wanted for another part.
                let (_, result) = self.filled.recv().map_err(|_| ended())?;
                result.into_iter().for_each(|block| self.sets.give(block));
            }
            self.ask(part)?;
        }
        let (_, result) = self.filled.recv().map_err(|_| ended())?;
        self.asked = None;
        let sets = Arc::clone(&self.sets);
        let loan = Loan::new(result?, move |block| sets.give(block));
        if self.early {
            // After the last part comes the next pass.
            self.ask((part + 1) % self.parts.len())?;
        }
        Ok(loan)
    }
}

fn ended() -> Error {
    Error::new("the thread that copies weights has ended; this is a bug")
}

/// Fills a block with a part's weights. Where that fails, the block goes back to the free ones.
fn fill(
    mut block: Block,
    weights: &[Weight],
    pager: &Pager,
    device: &mut dyn Device,
    copied: &AtomicU64,
    sets: &Sets,
) -> Result<Block> {
    let result = fill_block(&mut block, weights, pager, device, copied);
    match result {
        Ok(()) => Ok(block),
        Err(error) => {
            sets.give(block);
            Err(error)
        }
    }
}

fn fill_block(
    block: &mut Block,
    weights: &[Weight],
    pager: &Pager,
    device: &mut dyn Device,
    copied: &AtomicU64,
) -> Result<()> {
    for (weight, range) in weights.iter().zip(layout(weights).0) {
        // The record may leave the host's memory once it is copied.
        let lease = pager.acquire(weight.record)?;
        device.copy(&lease, block, range.start)?;
        copied.fetch_add(lease.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

impl Feeder for Ahead {
    fn part(&mut self, part: usize) -> Result<Arc<PartWeights>> {
        let loan = Arc::new(self.block(part)?);
        let mut weights = PartWeights::default();
        for (weight, range) in self.parts[part].iter().zip(layout(&self.parts[part]).0) {
            weights.place(&weight.input, &loan, range)?;
        }
        Ok(Arc::new(weights))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.wishes = None;
        self.sets.close();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("parts", &self.parts.len()).field("copied_bytes", &self.copied_bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Residency;
    use crate::loader::feed::weights_of_parts;
    use crate::loader::pager::Options;
    use crate::loader::pager::fixture::{Layer, Pack};
    use crate::package::shards::Form;

    /// The host's memory as a device, which is broken when it counts to the end.
    #[derive(Debug)]
    struct Host {
        allocated: Arc<AtomicU64>,
    }

    impl Device for Host {
        fn allocate(&mut self, bytes: usize) -> Result<Block> {
            self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
            Block::ours(bytes)
        }

        fn copy(&mut self, bytes: &[u8], block: &mut Block, offset: usize) -> Result<()> {
            if self.allocated.load(Ordering::Relaxed) == u64::MAX {
                return Err(Error::new("a broken device"));
            }
            block.host_mut().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    fn pack() -> Pack {
        let layers: Vec<Layer> = (1..=5).map(|n| Layer::new(&[1000 * n, 50_000, 3 * n], 0, 0)).collect();
        let mut pack = Pack::new(&layers);
        Arc::make_mut(&mut pack.index).form = Form::Inputs;
        pack
    }

    fn ahead(pack: &Pack, allocated: &Arc<AtomicU64>) -> Ahead {
        feeder(pack, allocated, true)
    }

    fn feeder(pack: &Pack, allocated: &Arc<AtomicU64>, early: bool) -> Ahead {
        let least = Pager::least_capacity(&pack.index, Residency::Stream, 1);
        let mut options = Options { capacity: Some(least), ahead: early, ..Options::new(Residency::Stream) };
        options.reads.depth = 1;
        let pager = Pager::open(pack.folder.path(), Arc::clone(&pack.index), &options).unwrap();
        let device = Box::new(Host { allocated: Arc::clone(allocated) });
        Ahead::new(&pager, weights_of_parts(&pack.index).unwrap(), device, SETS).unwrap()
    }

    fn check(pack: &Pack, ahead: &Ahead, part: usize, loan: &Loan) {
        let weights = ahead.parts[part].clone();
        let start = loan.block().as_host().unwrap();
        for (weight, range) in weights.iter().zip(layout(&weights).0) {
            assert!(start[range] == pack.bytes[weight.record][..], "part {part}, record {}", weight.record);
        }
    }

    #[test]
    fn the_next_part_is_copied_while_one_is_held() {
        let (pack, allocated) = (pack(), Arc::new(AtomicU64::new(0)));
        let mut ahead = ahead(&pack, &allocated);
        let largest = ahead.parts.iter().map(|part| layout(part).1).max().unwrap();
        assert_eq!(allocated.load(Ordering::Relaxed), 2 * largest as u64, "two sets whatever the parts");
        assert_eq!(Ahead::bytes(&ahead.parts, SETS), 2 * largest as u64);
        let bytes = |part: usize| ahead_bytes(&pack, part);
        let mut expected = 0;
        for pass in 0..3 {
            for part in 0..5 {
                let loan = ahead.block(part).unwrap();
                check(&pack, &ahead, part, &loan);
                if pass == 0 && part == 0 {
                    expected += bytes(0);
                }
                expected += bytes((part + 1) % 5);
                // The next one arrives while this one is held, and no third one.
                while ahead.copied_bytes() < expected {
                    std::thread::yield_now();
                }
                check(&pack, &ahead, part, &loan);
                assert_eq!(ahead.copied_bytes(), expected);
            }
        }
    }

    #[test]
    fn on_demand_a_part_is_copied_when_it_is_wanted() {
        let pack = pack();
        let mut ahead = feeder(&pack, &Arc::default(), false);
        let mut expected = 0;
        for part in [0, 1, 2, 3, 4, 0, 3] {
            let loan = ahead.block(part).unwrap();
            check(&pack, &ahead, part, &loan);
            expected += ahead_bytes(&pack, part);
            assert_eq!((ahead.asked, ahead.copied_bytes()), (None, expected));
        }
    }

    fn ahead_bytes(pack: &Pack, part: usize) -> u64 {
        let segment = &pack.index.segments[part];
        let records = segment.first_record..segment.first_record + segment.records;
        pack.index.records[records].iter().map(|record| record.bytes).sum()
    }

    #[test]
    fn a_pass_that_broke_off_begins_anew() {
        let pack = pack();
        let mut ahead = ahead(&pack, &Arc::default());
        for part in [0, 1, 2, 0, 1, 4, 4, 0] {
            let loan = ahead.block(part).unwrap();
            check(&pack, &ahead, part, &loan);
        }
        // Held while the feeder goes: its block stays.
        let loan = ahead.block(1).unwrap();
        let weights = ahead.parts[1].clone();
        drop(ahead);
        assert!(loan.block().as_host().unwrap()[layout(&weights).0[1].clone()] == pack.bytes[weights[1].record][..]);
    }

    #[test]
    fn a_failure_is_the_parts_and_no_set_is_lost() {
        let (pack, broken) = (pack(), Arc::new(AtomicU64::new(0)));
        let mut ahead = ahead(&pack, &broken);
        drop(ahead.block(1).unwrap());
        broken.store(u64::MAX, Ordering::Relaxed);
        for _ in 0..4 {
            assert!(ahead.block(4).unwrap_err().chain().contains("broken"));
        }
        broken.store(0, Ordering::Relaxed);
        for part in [4, 0, 1, 2] {
            let loan = ahead.block(part).unwrap();
            check(&pack, &ahead, part, &loan);
        }
    }
}
