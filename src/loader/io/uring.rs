//! Reads by one thread that submits to the kernel's io_uring.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use io_uring::{IoUring, opcode, types};

use super::{Chunk, ReadAt, STUCK, Waker, Work, ended};

/// The completion that says that the waker was called.
const WOKEN: u64 = u64::MAX;

/// Starts the thread that reads and those that check and decode.
pub(super) fn start(
    work: &Arc<dyn Work>,
    disk: &Arc<dyn ReadAt>,
    files: usize,
    depth: usize,
    finishers: usize,
) -> io::Result<Vec<JoinHandle<()>>> {
    if (0..files).any(|file| disk.descriptor(file).is_none()) {
        return Err(io::Error::other("the files have no descriptors"));
    }
    let entries = u32::try_from(depth + 1).map_err(io::Error::other)?.next_power_of_two();
    let ring = IoUring::new(entries)?;
    let waker = Waker::new()?;
    work.set_waker(waker.try_clone()?);
    let (send, receive) = channel();
    let receive = Arc::new(Mutex::new(receive));
    let mut threads = Vec::new();
    for number in 0..finishers.max(1) {
        let (work, receive) = (Arc::clone(work), Arc::clone(&receive));
        threads.push(Builder::new().name(format!("check-{number}")).spawn(move || finish(&*work, &receive))?);
    }
    let loops = Loop { ring, waker, flights: (0..depth).map(|_| None).collect(), finish: send };
    let (work, disk) = (Arc::clone(work), Arc::clone(disk));
    threads.push(Builder::new().name("read-uring".to_owned()).spawn(move || loops.run(&*work, &*disk))?);
    Ok(threads)
}

fn finish(work: &dyn Work, receive: &Mutex<Receiver<usize>>) {
    loop {
        let next = receive.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(token) = next else { return };
        work.finish(token);
    }
}

/// A chunk under way.
struct Flight {
    chunk: Chunk,
    done: usize,
    stuck: usize,
}

struct Loop {
    ring: IoUring,
    waker: Waker,
    flights: Vec<Option<Flight>>,
    finish: Sender<usize>,
}

impl Loop {
    fn run(mut self, work: &dyn Work, disk: &dyn ReadAt) {
        self.watch();
        loop {
            self.start_reads(work, disk);
            // What is in flight must land before the end: the kernel writes into its memory.
            if work.closing() && self.flights.iter().all(Option::is_none) {
                return;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(_) => std::thread::yield_now(),
            }
            let done: Vec<(u64, i32)> =
                self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
            for (place, result) in done {
                if place == WOKEN {
                    self.waker.clear();
                    self.watch();
                } else {
                    self.completed(place as usize, result, work, disk);
                }
            }
        }
    }

    /// Asks for one completion once the waker is called.
    fn watch(&mut self) {
        let entry = opcode::PollAdd::new(types::Fd(self.waker.raw()), libc::POLLIN as u32).build().user_data(WOKEN);
        self.push(&entry);
    }

    fn start_reads(&mut self, work: &dyn Work, disk: &dyn ReadAt) {
        while let Some(free) = self.flights.iter().position(Option::is_none) {
            let Some(chunk) = work.take(false) else { return };
            self.flights[free] = Some(Flight { chunk, done: 0, stuck: 0 });
            self.submit(free, disk);
        }
    }

    fn submit(&mut self, place: usize, disk: &dyn ReadAt) {
        let Some(flight) = &self.flights[place] else { return };
        let Some(descriptor) = disk.descriptor(flight.chunk.file) else { return };
        // SAFETY: `done` is below the chunk's length.
        let into = unsafe { flight.chunk.into.add(flight.done) };
        let bytes = u32::try_from(flight.chunk.bytes - flight.done).unwrap_or(1 << 30);
        let entry = opcode::Read::new(types::Fd(descriptor.as_raw_fd()), into, bytes)
            .offset(flight.chunk.offset + flight.done as u64)
            .build()
            .user_data(place as u64);
        self.push(&entry);
    }

    fn push(&mut self, entry: &io_uring::squeue::Entry) {
        // SAFETY: the memory that an entry names belongs to its chunk until that has landed, and the descriptors live
        // as long as the disk, which this thread holds.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // The queue holds one entry for each read and one for the waker, so it is never full for long.
            let _ = self.ring.submit();
        }
    }

    fn completed(&mut self, place: usize, result: i32, work: &dyn Work, disk: &dyn ReadAt) {
        let Some(flight) = self.flights.get_mut(place).and_then(Option::as_mut) else { return };
        let end = match result {
            0 => Some(Err(ended(flight.chunk.offset + flight.done as u64))),
            bytes if bytes > 0 => {
                let reached = flight.done + bytes as usize;
                let whole = reached >= flight.chunk.bytes;
                let next = if whole { reached } else { reached - reached % disk.alignment() };
                flight.stuck = if next == flight.done { flight.stuck + 1 } else { 0 };
                flight.done = next;
                if whole {
                    Some(Ok(()))
                } else if flight.stuck > STUCK {
                    Some(Err(ended(flight.chunk.offset + reached as u64)))
                } else {
                    None
                }
            }
            error if matches!(-error, libc::EINTR | libc::EAGAIN) => None,
            error => Some(Err(io::Error::from_raw_os_error(-error))),
        };
        match end {
            None => self.submit(place, disk),
            Some(result) => {
                let Some(flight) = self.flights[place].take() else { return };
                if let Some(token) = work.landed(&flight.chunk, result) {
                    let _ = self.finish.send(token);
                }
            }
        }
    }
}
