//! The bandwidth of the disk below some files, read as the pager reads them: the ceiling that bytes per token are held
//! against.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{Chunk, Direct, Disk, Method, ReadAt, Reads, Waker, Work};
use crate::error::{Error, Result};
use crate::package::shards::ALIGNMENT;

/// How a disk was read, and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// Bytes read, divided by the time from the first read's start to the last one's end.
    pub bytes_per_second: f64,
    /// Bytes that were read; beyond the files' size they were read again.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Whether reads went past the page cache. Where they did not, the figure may be the cache's.
    pub direct: bool,
    /// [`Method::Pool`] or [`Method::Uring`]: what read.
    pub method: Method,
    /// Reads in flight.
    pub depth: usize,
    /// Bytes of one read.
    pub read_bytes: usize,
}

/// Reads files from their beginnings to their ends, one after the other and over again, for some time.
///
/// # Errors
/// Files that cannot be opened or read, that are all shorter than a page, or options that the machine cannot satisfy.
pub fn bandwidth(files: &[PathBuf], reads: &Reads, read_bytes: usize, seconds: f64) -> Result<Bandwidth> {
    let disk = Disk::open(files, reads.direct)?;
    let page = ALIGNMENT as usize;
    let (depth, read_bytes) = (reads.depth.max(1), read_bytes.max(page).next_multiple_of(page));
    // A file's last part of a page is left out: past the page cache it cannot be read alone.
    let lengths: Vec<u64> = disk.identities().iter().map(|file| file.bytes / ALIGNMENT * ALIGNMENT).collect();
    if lengths.iter().all(|bytes| *bytes == 0) {
        return Err(Error::new("cannot measure the disk's bandwidth on files without a page of data")
            .hint("name the shards of a pack, or any large file on the same disk"));
    }
    let direct = disk.direct();
    if !direct && reads.direct != Direct::Never {
        // As near to the disk as it goes: what the cache holds now is dropped.
        for file in disk.files() {
            let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
    let buffer = Buffer::new(depth * read_bytes)?;
    let state = State {
        file: 0,
        offset: 0,
        free: (0..depth).collect(),
        bytes: 0,
        error: None,
        in_flight: 0,
        start: None,
        end: None,
        closing: false,
    };
    let pass = Arc::new(Pass {
        lengths,
        buffer,
        read_bytes,
        time: Duration::from_secs_f64(seconds.max(0.0)),
        state: Mutex::new(state),
        changed: Condvar::new(),
        waker: OnceLock::new(),
    });
    let work: Arc<dyn Work> = Arc::clone(&pass) as Arc<dyn Work>;
    let disk: Arc<dyn ReadAt> = Arc::new(disk);
    let mut readers = super::Readers::start(&work, &disk, files.len(), reads, 1)?;
    let method = readers.method;
    let mut state = pass.lock();
    while !(state.closing && state.in_flight == 0) {
        state = pass.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    drop(state);
    pass.changed.notify_all();
    if let Some(waker) = pass.waker.get() {
        waker.wake();
    }
    readers.join();
    let mut state = pass.lock();
    if let Some((file, error)) = state.error.take() {
        return Err(Error::environment(format!("cannot read `{}`", files[file].display()))
            .because(error)
            .hint("the disk or its connection failed: see the system's log (`dmesg`)"));
    }
    let seconds = match (state.start, state.end) {
        (Some(start), Some(end)) => (end - start).as_secs_f64(),
        _ => 0.0,
    };
    let bytes_per_second = if seconds > 0.0 { state.bytes as f64 / seconds } else { 0.0 };
    Ok(Bandwidth { bytes_per_second, bytes: state.bytes, seconds, direct, method, depth, read_bytes })
}

/// Memory that reads fill, one part for each read in flight.
struct Buffer {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: each part is lent to one read at a time, under the state's lock, and nobody looks at what was read.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Result<Self> {
        let (protection, flags) =
            (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::PRIVATE);
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nobody's memory.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) };
        let start = start.map_err(|error| {
            Error::environment(format!("cannot allocate {bytes} bytes for reads")).because(io::Error::from(error))
        })?;
        // SAFETY: the mapping made above; a kernel without huge pages refuses, and plain pages do as well.
        let _ = unsafe { rustix::mm::madvise(start, bytes, rustix::mm::Advice::LinuxHugepage) };
        Ok(Self { start: start.cast(), bytes })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made by `new`; the readers have ended.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.bytes) };
    }
}

struct Pass {
    lengths: Vec<u64>,
    buffer: Buffer,
    read_bytes: usize,
    time: Duration,
    state: Mutex<State>,
    changed: Condvar,
    waker: OnceLock<Waker>,
}

struct State {
    file: usize,
    offset: u64,
    /// Parts of the buffer that no read fills.
    free: Vec<usize>,
    bytes: u64,
    error: Option<(usize, io::Error)>,
    in_flight: usize,
    start: Option<Instant>,
    end: Option<Instant>,
    closing: bool,
}

impl Pass {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work for Pass {
    fn take(&self, wait: bool) -> Option<Chunk> {
        let mut state = self.lock();
        loop {
            let start = *state.start.get_or_insert_with(Instant::now);
            // One read at least, whatever the time.
            state.closing |= state.error.is_some() || (start.elapsed() >= self.time && state.bytes > 0);
            if state.closing {
                self.changed.notify_all();
                return None;
            }
            if let Some(part) = state.free.pop() {
                while state.offset >= self.lengths[state.file] {
                    (state.file, state.offset) = ((state.file + 1) % self.lengths.len(), 0);
                }
                let bytes = (self.lengths[state.file] - state.offset).min(self.read_bytes as u64);
                // SAFETY: parts lie within the buffer.
                let into = unsafe { self.buffer.start.add(part * self.read_bytes) };
                let chunk = Chunk { token: part, file: state.file, offset: state.offset, into, bytes: bytes as usize };
                state.offset += bytes;
                state.in_flight += 1;
                return Some(chunk);
            }
            if !wait {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn landed(&self, chunk: &Chunk, result: io::Result<()>) -> Option<usize> {
        let mut state = self.lock();
        state.in_flight -= 1;
        state.free.push(chunk.token);
        state.end = Some(Instant::now());
        match result {
            Ok(()) => state.bytes += chunk.bytes as u64,
            Err(error) => {
                state.error = Some((chunk.file, error));
                state.closing = true;
            }
        }
        self.changed.notify_all();
        None
    }

    fn finish(&self, _token: usize) {}

    fn closing(&self) -> bool {
        self.lock().closing
    }

    fn set_waker(&self, waker: Waker) {
        // Only the first readers are ever started.
        let _ = self.waker.set(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(bytes: usize, method: Method, seconds: f64) -> Result<Bandwidth> {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = ["a", "b"].iter().map(|name| folder.path().join(name)).collect();
        for path in &paths {
            std::fs::write(path, vec![1; bytes]).unwrap();
        }
        bandwidth(&paths, &Reads { method, depth: 3, direct: Direct::Auto }, 10_000, seconds)
    }

    #[test]
    fn files_are_read_with_every_method() {
        for method in [Method::Pool, Method::Auto] {
            for seconds in [0.0, 0.02] {
                let found = measure(100_000, method, seconds).unwrap();
                assert!(found.bytes >= 4096 && found.bytes_per_second > 0.0, "{found:?}");
                assert_eq!((found.depth, found.read_bytes), (3, 12288));
            }
        }
    }

    #[test]
    fn files_without_data_are_refused() {
        assert!(measure(100, Method::Pool, 0.1).unwrap_err().chain().contains("without a page"));
        let missing = [PathBuf::from("/nonexistent")];
        assert!(bandwidth(&missing, &Reads::default(), 4096, 0.1).is_err());
    }
}
