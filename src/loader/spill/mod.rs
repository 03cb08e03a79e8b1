//! Memory that leaves for a file and comes back ahead of use: caches and hidden states of sequences that wait.
//!
//! One thread does the transfers in the order in which they were asked for, so that what was written is read back
//! whole without further care. The file has no name: it is gone with the process, however that ends.
//!
//! `coding.rs` makes fewer bytes of what waits, `stripes.rs` stores what is so encoded.

mod coding;
mod stripes;

pub use coding::{Coding, SpillCodec};
pub use stripes::Stripe;

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Context, Error, Result};
use crate::package::shards::ALIGNMENT;
use crate::runtime::Region;
use stripes::Stripes;

/// Bytes that went out and came back since the spill was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Written.
    pub written: u64,
    /// Read.
    pub read: u64,
    /// What was written, as it was in memory.
    pub written_plain: u64,
    /// What was read, as it is in memory.
    pub read_plain: u64,
}

/// The same while it grows.
#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    read: AtomicU64,
    written_plain: AtomicU64,
    read_plain: AtomicU64,
}

/// A file that memory leaves for.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    jobs: Option<Sender<Job>>,
    worker: Option<JoinHandle<()>>,
    end: u64,
    /// Where room that was asked for later begins: `place` ends before.
    room: u64,
    /// The end of that.
    more: u64,
    traffic: Arc<Counters>,
}

/// A transfer that was asked for.
#[derive(Debug, Clone)]
pub struct Ticket(Arc<(Mutex<Option<Result<()>>>, Condvar)>);

impl Ticket {
    /// Waits until the transfer is done.
    ///
    /// # Errors
    /// A disk that is full or fails.
    pub fn wait(self) -> Result<()> {
        let (outcome, done) = &*self.0;
        let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            outcome = done.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One transfer.
struct Job {
    out: bool,
    /// Whether the memory's pages are given back once they are written.
    release: bool,
    region: Region,
    what: What,
    ticket: Ticket,
}

/// What is moved.
enum What {
    /// Ranges, to the same places after an offset.
    Ranges(u64, Vec<Range<usize>>),
    /// Encoded stripes.
    Stripes(Vec<Stripe>, Coding),
}

impl Spill {
    /// A file in this folder with room for that many bytes.
    ///
    /// # Errors
    /// A folder that cannot be written, a disk without room.
    pub fn new(folder: &Path, room: u64) -> Result<Self> {
        let failed = || format!("cannot make a file of {} in `{}`", crate::units::bytes(room), folder.display());
        let free = rustix::fs::statvfs(folder).with_context(failed)?;
        let free = free.f_bavail * free.f_frsize;
        if free < room {
            return Err(Error::environment(failed())
                .because(std::io::Error::other(format!("only {} are free", crate::units::bytes(free))))
                .hint("fewer sequences or a shorter context need less; or give the pack a disk with more room"));
        }
        let (file, direct) = open(folder).with_context(failed)?;
        let traffic = Arc::<Counters>::default();
        let (jobs, queue) = channel();
        let counted = Arc::clone(&traffic);
        let worker = std::thread::Builder::new()
            .name("spill".to_owned())
            .spawn(move || work(&file, direct, &queue, &counted))
            .with_context(failed)?;
        Ok(Self {
            folder: folder.to_owned(),
            jobs: Some(jobs),
            worker: Some(worker),
            end: 0,
            room,
            more: room.next_multiple_of(ALIGNMENT),
            traffic,
        })
    }

    /// A place for that many bytes.
    ///
    /// # Errors
    /// More than the file has room for.
    pub fn place(&mut self, bytes: u64) -> Result<u64> {
        let offset = self.end;
        self.end += bytes.next_multiple_of(ALIGNMENT);
        if self.end > self.room {
            let message = format!("the file in `{}` has room for {} only", self.folder.display(), self.room);
            return Err(Error::new(message));
        }
        Ok(offset)
    }

    /// A place for that many bytes beyond those that the file was made for.
    ///
    /// # Errors
    /// A disk without room.
    pub fn place_more(&mut self, bytes: u64) -> Result<u64> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let failed = || {
            let folder = self.folder.display();
            format!("there is no room for {} more in `{folder}`", crate::units::bytes(bytes))
        };
        let free = rustix::fs::statvfs(&self.folder).with_context(failed)?;
        let free = free.f_bavail * free.f_frsize;
        if free < bytes {
            return Err(Error::environment(failed())
                .because(std::io::Error::other(format!("only {} are free", crate::units::bytes(free))))
                .hint("fewer sequences or a shorter context need less; or give the pack a disk with more room"));
        }
        // The rest of the room stays that of those for whom it was made.
        let offset = self.more;
        self.more += bytes;
        Ok(offset)
    }

    /// Writes these ranges of the region to the same places after `offset`, and with `release` gives the region's
    /// pages back afterwards: it reads as zeros then.
    pub fn write(&self, region: Region, offset: u64, ranges: Vec<Range<usize>>, release: bool) -> Ticket {
        self.ask(true, release, region, What::Ranges(offset, ranges))
    }

    /// Reads these ranges back.
    pub fn read(&self, region: Region, offset: u64, ranges: Vec<Range<usize>>) -> Ticket {
        self.ask(false, false, region, What::Ranges(offset, ranges))
    }

    /// Writes stripes of the region, encoded, and with `release` gives its pages back afterwards.
    pub fn write_stripes(&self, region: Region, stripes: Vec<Stripe>, coding: Coding, release: bool) -> Ticket {
        self.ask(true, release, region, What::Stripes(stripes, coding))
    }

    /// Reads stripes back, or the first bytes of each of their ranges.
    pub fn read_stripes(&self, region: Region, stripes: Vec<Stripe>, coding: Coding) -> Ticket {
        self.ask(false, false, region, What::Stripes(stripes, coding))
    }

    fn ask(&self, out: bool, release: bool, region: Region, what: What) -> Ticket {
        let ticket = Ticket(Arc::new((Mutex::new(None), Condvar::new())));
        let job = Job { out, release, region, what, ticket: ticket.clone() };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            finish(&ticket, Err(Error::new("the thread that moves memory to disk has ended")));
        }
        ticket
    }

    /// What went over the disk so far.
    pub fn traffic(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { written, read, written_plain, read_plain } = &*self.traffic;
        Traffic { written: of(written), read: of(read), written_plain: of(written_plain), read_plain: of(read_plain) }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// A file without a name, past the page cache where the filesystem allows that.
fn open(folder: &Path) -> std::io::Result<(File, bool)> {
    let with =
        |flags: i32| OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE | flags).open(folder);
    match with(libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(_) => match with(0) {
            Ok(file) => Ok((file, false)),
            // A filesystem without unnamed files.
            Err(_) => Ok((tempfile::tempfile_in(folder)?, false)),
        },
    }
}

fn work(file: &File, direct: bool, queue: &Receiver<Job>, counters: &Counters) {
    // Its memory is this thread's own.
    let mut stripes = Stripes::default();
    while let Ok(job) = queue.recv() {
        let outcome = transfer(file, direct, &job, &mut stripes, counters);
        finish(&job.ticket, outcome);
    }
}

fn finish(ticket: &Ticket, outcome: Result<()>) {
    let (slot, done) = &*ticket.0;
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    done.notify_all();
}

fn transfer(file: &File, direct: bool, job: &Job, stripes: &mut Stripes, counters: &Counters) -> Result<()> {
    let moved = |plain: u64, bytes: u64| {
        let (counter, in_memory) = match job.out {
            true => (&counters.written, &counters.written_plain),
            false => (&counters.read, &counters.read_plain),
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
        in_memory.fetch_add(plain, Ordering::Relaxed);
    };
    match &job.what {
        What::Ranges(offset, ranges) => {
            for range in ranges {
                let range = aligned(range, job.region.bytes(), direct);
                let at = offset + range.start as u64;
                // SAFETY: whoever asks for a transfer leaves the region alone until its ticket is done, and keeps it
                // alive: that is the contract of `Region`.
                let bytes = unsafe { job.region.bytes_mut(range.clone()) };
                if job.out {
                    file.write_all_at(bytes, at).context("cannot write what waits to its file")?;
                } else {
                    file.read_exact_at(bytes, at).context("cannot read back what waited in its file")?;
                }
                moved(bytes.len() as u64, bytes.len() as u64);
            }
        }
        What::Stripes(all, coding) => {
            for stripe in all {
                // SAFETY: as above.
                let (plain, bytes) = unsafe {
                    if job.out {
                        stripes.write(file, job.region, stripe, *coding)?
                    } else {
                        stripes.read(file, job.region, stripe, *coding)?
                    }
                };
                moved(plain, bytes);
            }
        }
    }
    if job.release {
        // SAFETY: as above; what was in the pages has just been written.
        unsafe { job.region.release() };
    }
    Ok(())
}

/// The range widened to what transfers past the page cache ask for, within the region's own pages.
fn aligned(range: &Range<usize>, bytes: usize, direct: bool) -> Range<usize> {
    if !direct {
        return range.clone();
    }
    let step = ALIGNMENT as usize;
    range.start / step * step..range.end.next_multiple_of(step).min(bytes.next_multiple_of(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Memory;

    fn whole(range: Range<usize>) -> Vec<Range<usize>> {
        std::iter::once(range).collect()
    }

    #[test]
    fn what_leaves_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::new(folder.path(), 1 << 20).unwrap();
        let mut first = Memory::new(10_000).unwrap();
        let mut second = Memory::new(5_000).unwrap();
        first.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
        second.bytes_mut().fill(7);
        let (a, b) = (spill.place(10_000).unwrap(), spill.place(5_000).unwrap());
        assert!(b >= a + 10_000);
        spill.write(first.region(), a, whole(0..10_000), true).wait().unwrap();
        spill.write(second.region(), b, whole(0..5_000), true).wait().unwrap();
        assert!(
            first.bytes_mut().iter().chain(second.bytes_mut().iter()).all(|byte| *byte == 0),
            "pages were given back"
        );
        // Not waited for one by one: transfers keep their order.
        let tickets = [
            spill.read(first.region(), a, vec![0..4_096, 8_192..10_000]),
            spill.read(second.region(), b, whole(0..5_000)),
        ];
        tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
        let first = first.bytes_mut();
        assert!(first[..4_096].iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
        assert!(first[8_192..].iter().enumerate().all(|(i, byte)| *byte == ((i + 8_192) % 251) as u8));
        assert!(second.bytes_mut().iter().all(|byte| *byte == 7));
        assert!(spill.traffic().written >= 15_000 && spill.traffic().read >= 10_904);
    }

    #[test]
    fn stripes_come_back_whole_or_in_part() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::new(folder.path(), 1 << 20).unwrap();
        let mut memory = Memory::new(80_000).unwrap();
        let values =
            |count: usize| (0..count).flat_map(|i| ((i % 300) as f32 / 7.0).to_le_bytes()).collect::<Vec<u8>>();
        let expected = values(20_000);
        let at = spill.place(40_000).unwrap();
        for codec in SpillCodec::ALL {
            let coding = Coding { codec: *codec, size: 4, group: None };
            memory.bytes_mut().copy_from_slice(&expected);
            let stripe = |length: usize| vec![Stripe { at, ranges: vec![100..100 + length, 50_000..50_000 + length] }];
            spill.write_stripes(memory.region(), stripe(16_000), coding, true).wait().unwrap();
            spill.read_stripes(memory.region(), stripe(16_000), coding).wait().unwrap();
            assert_eq!(memory.bytes()[100..16_100], expected[100..16_100], "{codec}");
            assert_eq!(memory.bytes()[50_000..66_000], expected[50_000..66_000], "{codec}");
            assert_eq!((memory.bytes()[99], memory.bytes()[66_001]), (0, 0));
            memory.bytes_mut().fill(1);
            spill.read_stripes(memory.region(), stripe(400), coding).wait().unwrap();
            assert_eq!(memory.bytes()[50_000..50_400], expected[50_000..50_400], "{codec}");
            assert!(memory.bytes()[50_400..66_000].iter().all(|byte| *byte == 1), "{codec}");
        }
        let traffic = spill.traffic();
        assert_eq!(traffic.written_plain, 32_000 * SpillCodec::ALL.len() as u64);
        assert!(traffic.written < traffic.written_plain && traffic.read < traffic.read_plain, "{traffic:?}");
        let never = vec![Stripe { at: at + 4096, ranges: std::iter::once(0..10).collect() }];
        let coding = Coding { codec: SpillCodec::Zstd, size: 4, group: None };
        assert!(spill.read_stripes(memory.region(), never, coding).wait().is_err());
    }

    #[test]
    fn a_disk_without_room_is_named_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let error = Spill::new(folder.path(), 1 << 60).unwrap_err();
        assert!(error.chain().contains("are free"), "{}", error.chain());
        let mut spill = Spill::new(folder.path(), 8192).unwrap();
        assert!(spill.place(4096).is_ok() && spill.place(4097).is_err());
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "the file has no name");
    }
}
