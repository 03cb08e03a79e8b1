//! Reads of files, several at once, by threads or by io_uring, past the page cache where that is possible.
//!
//! Whoever wants reads implements [`Work`]: the readers ask it for the next [`Chunk`] whenever one of them is free, so
//! what is read next is decided as late as possible.

pub mod bandwidth;
mod disk;
mod pool;
mod sigbus;
mod uring;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::cell::named_enum;
use crate::error::{Context, Error, Result};

pub use disk::{Disk, Identity};
pub(crate) use sigbus::Guard;

named_enum! {
    /// How reads are kept in flight.
    Method {
        /// One thread for each read in flight.
        Pool => "pool",
        /// One thread that submits to the kernel's io_uring.
        Uring => "uring",
        /// io_uring where the kernel allows it, threads elsewhere.
        Auto => "auto",
    }
}

named_enum! {
    /// Whether reads go past the page cache (`O_DIRECT`).
    Direct {
        /// Where the filesystem accepts and honours it, which a transfer tells.
        Auto => "auto",
        /// Only so: an error where it does not hold.
        Always => "always",
        /// Through the page cache.
        Never => "never",
    }
}

/// How to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reads {
    /// By what.
    pub method: Method,
    /// Reads in flight, at least one. Two to four of some megabytes keep a solid-state disk busy.
    pub depth: usize,
    /// Past the page cache or through it.
    pub direct: Direct,
}

impl Default for Reads {
    fn default() -> Self {
        Self { method: Method::Pool, depth: 4, direct: Direct::Auto }
    }
}

/// Files that can be read at any place. Beside the real [`Disk`] stand those of the tests: slow, failing, short.
pub trait ReadAt: Send + Sync {
    /// Reads at most `into.len()` bytes of a file, as `pread` does: fewer are no error, none mean the file's end.
    ///
    /// # Errors
    /// What the operating system says.
    fn read_at(&self, file: usize, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// The descriptor that io_uring may read, if there is one.
    fn descriptor(&self, _file: usize) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What offsets, lengths and addresses of reads must be multiples of.
    fn alignment(&self) -> usize {
        1
    }
}

/// One read to be done.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Whose it is; only [`Work`] knows what it means.
    pub token: usize,
    pub file: usize,
    pub offset: u64,
    /// Where the bytes go. [`Work`] keeps the memory alive, and away from everybody else, until the chunk has landed.
    pub into: *mut u8,
    pub bytes: usize,
}

// SAFETY: the pointer is used by the one reader that holds the chunk, and `Work` promises that the memory is its alone.
unsafe impl Send for Chunk {}

/// What gives readers something to do.
pub(crate) trait Work: Send + Sync {
    /// The next read, or `None`: with `wait` only when the readers shall end, without it also when there is nothing to
    /// read now (the waker is then called once there is).
    fn take(&self, wait: bool) -> Option<Chunk>;
    /// A read ended. `Some(token)` asks the reader to call [`Work::finish`] with it, which may take long.
    fn landed(&self, chunk: &Chunk, result: io::Result<()>) -> Option<usize>;
    /// What is left to do once all chunks of something are here: checking and decoding.
    fn finish(&self, token: usize);
    /// True once the readers shall end.
    fn closing(&self) -> bool;
    /// Gives the waker of readers that do not wait inside [`Work::take`].
    fn set_waker(&self, waker: Waker);
}

/// Wakes a thread that sleeps in the kernel on a descriptor.
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    fn new() -> io::Result<Self> {
        // SAFETY: `eventfd` takes no pointer, and the descriptor that it returns belongs to nobody else.
        unsafe {
            let descriptor = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(descriptor)))
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(crate) fn wake(&self) {
        // A full counter is readable too, so a refused write loses nothing.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }

    fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Threads that read, until [`Work::take`] ends them.
#[derive(Debug)]
pub(crate) struct Readers {
    threads: Vec<JoinHandle<()>>,
    /// [`Method::Pool`] or [`Method::Uring`]: what really reads.
    pub method: Method,
}

impl Readers {
    /// Starts reading. `files` is the number of the disk's files, `finishers` how many threads check and decode beside
    /// those that read.
    pub fn start(
        work: &Arc<dyn Work>,
        disk: &Arc<dyn ReadAt>,
        files: usize,
        reads: &Reads,
        finishers: usize,
    ) -> Result<Self> {
        if reads.method != Method::Pool {
            match uring::start(work, disk, files, reads.depth, finishers) {
                Ok(threads) => return Ok(Self { threads, method: Method::Uring }),
                Err(_) if reads.method == Method::Auto => {}
                Err(error) => {
                    return Err(Error::environment("cannot read through io_uring")
                        .because(error)
                        .hint("containers often forbid it: choose `auto` or `pool`, which is as fast on most disks"));
                }
            }
        }
        let threads = pool::start(work, disk, reads.depth + finishers).context("cannot start threads that read")?;
        Ok(Self { threads, method: Method::Pool })
    }

    /// Waits for the threads; the work must be closing.
    pub fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A reader that panicked has said so on standard error; its chunk never lands.
            let _ = thread.join();
        }
    }
}

/// Fills a chunk from a disk: goes on after short reads and interruptions.
///
/// Past the page cache a read may go on only from an aligned place, so what lies between the last one and the place
/// reached is read once more.
fn fill(disk: &dyn ReadAt, file: usize, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let alignment = disk.alignment();
    let (mut done, mut stuck) = (0, 0);
    while done < into.len() {
        match disk.read_at(file, offset + done as u64, &mut into[done..]) {
            Ok(0) => return Err(ended(offset + done as u64)),
            Ok(bytes) => {
                let reached = done + bytes;
                let next = if reached >= into.len() { into.len() } else { reached - reached % alignment };
                stuck = if next == done { stuck + 1 } else { 0 };
                if stuck > STUCK {
                    return Err(ended(offset + reached as u64));
                }
                done = next;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads in a row that may end before the next aligned place: a file that was cut between two of them.
const STUCK: usize = 4;

fn ended(at: u64) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends at byte {at}, within the record"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Gives scripted numbers of bytes; 0 stands for an interruption.
    struct Script(Mutex<Vec<usize>>, usize);

    impl ReadAt for Script {
        fn read_at(&self, _: usize, offset: u64, into: &mut [u8]) -> io::Result<usize> {
            let next = self.0.lock().unwrap().pop().unwrap_or(usize::MAX);
            if next == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            assert_eq!(offset as usize % self.1, 0, "an unaligned read");
            let bytes = next.min(into.len()).min(20_000_usize.saturating_sub(offset as usize));
            for (at, byte) in into[..bytes].iter_mut().enumerate() {
                *byte = (offset as usize + at) as u8;
            }
            Ok(bytes)
        }

        fn alignment(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn short_and_interrupted_reads_go_on() {
        for alignment in [1, 4096] {
            let disk = Script(Mutex::new(vec![5000, 0, 0, 9000, 1]), alignment);
            let mut bytes = vec![0; 16384];
            fill(&disk, 0, 0, &mut bytes).unwrap();
            assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == at as u8));
        }
    }

    #[test]
    fn a_file_that_ends_early_is_named_by_its_place() {
        for alignment in [1, 4096] {
            let disk = Script(Mutex::new(Vec::new()), alignment);
            let error = fill(&disk, 0, 4096, &mut vec![0; 32768]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(error.to_string().contains("byte 20000"), "{error}");
        }
    }
}
