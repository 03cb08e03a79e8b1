//! Memory that leaves for a file and comes back ahead of use: caches and hidden states of sequences that wait.
//!
//! One thread does the transfers in the order in which they were asked for, so that what was written is read back
//! whole without further care. The file has no name: it is gone with the process, however that ends.

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

/// Bytes that went out and came back since the spill was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Written.
    pub written: u64,
    /// Read.
    pub read: u64,
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
    traffic: Arc<(AtomicU64, AtomicU64)>,
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
    offset: u64,
    ranges: Vec<Range<usize>>,
    ticket: Ticket,
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
        let traffic = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
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
        self.ask(true, release, region, offset, ranges)
    }

    /// Reads these ranges back.
    pub fn read(&self, region: Region, offset: u64, ranges: Vec<Range<usize>>) -> Ticket {
        self.ask(false, false, region, offset, ranges)
    }

    fn ask(&self, out: bool, release: bool, region: Region, offset: u64, ranges: Vec<Range<usize>>) -> Ticket {
        let ticket = Ticket(Arc::new((Mutex::new(None), Condvar::new())));
        let job = Job { out, release, region, offset, ranges, ticket: ticket.clone() };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            finish(&ticket, Err(Error::new("the thread that moves memory to disk has ended")));
        }
        ticket
    }

    /// What went over the disk so far.
    pub fn traffic(&self) -> Traffic {
        let (written, read) = &*self.traffic;
        Traffic { written: written.load(Ordering::Relaxed), read: read.load(Ordering::Relaxed) }
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

fn work(file: &File, direct: bool, queue: &Receiver<Job>, traffic: &(AtomicU64, AtomicU64)) {
    while let Ok(job) = queue.recv() {
        let outcome = transfer(file, direct, &job, traffic);
        finish(&job.ticket, outcome);
    }
}

fn finish(ticket: &Ticket, outcome: Result<()>) {
    let (slot, done) = &*ticket.0;
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    done.notify_all();
}

fn transfer(file: &File, direct: bool, job: &Job, traffic: &(AtomicU64, AtomicU64)) -> Result<()> {
    for range in &job.ranges {
        let range = aligned(range, job.region.bytes(), direct);
        let at = job.offset + range.start as u64;
        // SAFETY: whoever asks for a transfer leaves the region alone until its ticket is done, and keeps it alive:
        // that is the contract of `Region`.
        let bytes = unsafe { job.region.bytes_mut(range.clone()) };
        if job.out {
            file.write_all_at(bytes, at).context("cannot write what waits to its file")?;
            traffic.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        } else {
            file.read_exact_at(bytes, at).context("cannot read back what waited in its file")?;
            traffic.1.fetch_add(bytes.len() as u64, Ordering::Relaxed);
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
    fn a_disk_without_room_is_named_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let error = Spill::new(folder.path(), 1 << 60).unwrap_err();
        assert!(error.chain().contains("are free"), "{}", error.chain());
        let mut spill = Spill::new(folder.path(), 8192).unwrap();
        assert!(spill.place(4096).is_ok() && spill.place(4097).is_err());
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "the file has no name");
    }
}
