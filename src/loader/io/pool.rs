//! Reads by a pool of threads, one `pread` each.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::{ReadAt, Work, fill};

/// Starts the threads. The work limits the reads in flight, so more threads than that can check and decode meanwhile.
pub(super) fn start(work: &Arc<dyn Work>, disk: &Arc<dyn ReadAt>, threads: usize) -> io::Result<Vec<JoinHandle<()>>> {
    (0..threads.max(1))
        .map(|number| {
            let (work, disk) = (Arc::clone(work), Arc::clone(disk));
            Builder::new().name(format!("read-{number}")).spawn(move || read(&*work, &*disk))
        })
        .collect()
}

fn read(work: &dyn Work, disk: &dyn ReadAt) {
    while let Some(chunk) = work.take(true) {
        // SAFETY: the work lends `bytes` bytes at `into` to the holder of the chunk alone, until it has landed.
        let into = unsafe { std::slice::from_raw_parts_mut(chunk.into, chunk.bytes) };
        let result = fill(disk, chunk.file, chunk.offset, into);
        if let Some(token) = work.landed(&chunk, result) {
            work.finish(token);
        }
    }
}
