//! A thread that reads this process's memory every 10 ms and knows the phase it is in.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::probe::memory::Resident;

/// Time between two readings.
pub const INTERVAL: Duration = Duration::from_millis(10);

/// The running thread.
#[derive(Debug)]
pub struct Sampler {
    phases: Sender<&'static str>,
    thread: JoinHandle<Vec<Reading>>,
}

/// One reading.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The phase in which it was taken.
    pub phase: &'static str,
    /// What was resident.
    pub resident: Resident,
}

impl Sampler {
    /// Starts the thread in the given phase.
    ///
    /// # Errors
    /// A process that may not have another thread.
    pub fn start(first: &'static str) -> Result<Self> {
        let (phases, changes) = channel();
        let thread = std::thread::Builder::new()
            .name("memory-sampler".into())
            .spawn(move || {
                let mut phase = first;
                let mut readings = Vec::new();
                loop {
                    if let Ok(resident) = Resident::now() {
                        readings.push(Reading { phase, resident });
                    }
                    match changes.recv_timeout(INTERVAL) {
                        // Once more at the end of a phase: one shorter than the interval has it alone. What it freed
                        // before is not seen, what its arena keeps is.
                        Ok(next) => {
                            if let Ok(resident) = Resident::now() {
                                readings.push(Reading { phase, resident });
                            }
                            phase = next;
                        }
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return readings,
                    }
                }
            })
            .context("cannot start the thread that samples memory")?;
        Ok(Self { phases, thread })
    }

    /// Enters a phase; a reading is taken at the end of the one before, and at once.
    pub fn enter(&self, phase: &'static str) {
        // The thread ends only with this value, so somebody always listens.
        let _ = self.phases.send(phase);
    }

    /// Stops the thread and returns every reading.
    ///
    /// # Errors
    /// A thread that died.
    pub fn finish(self) -> Result<Readings> {
        drop(self.phases);
        let readings = self.thread.join().map_err(|_| Error::invalid("the thread that samples memory died"))?;
        Ok(Readings(readings))
    }
}

/// All readings of a process.
#[derive(Debug)]
pub struct Readings(Vec<Reading>);

impl Readings {
    /// The largest value of any reading, or of those in one phase.
    pub fn peak(&self, phase: Option<&str>, value: impl Fn(&Resident) -> u64) -> Option<u64> {
        self.of(phase).map(|reading| value(&reading.resident)).max()
    }

    /// The median of a phase's readings.
    pub fn median(&self, phase: &str, value: impl Fn(&Resident) -> u64) -> Option<u64> {
        let mut values: Vec<_> = self.of(Some(phase)).map(|reading| value(&reading.resident)).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    }

    fn of(&self, phase: Option<&str>) -> impl Iterator<Item = &Reading> {
        self.0.iter().filter(move |reading| phase.is_none_or(|phase| phase == reading.phase))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_phases_apart() {
        let sampler = Sampler::start("small").unwrap();
        std::thread::sleep(Duration::from_millis(30));
        sampler.enter("large");
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        std::thread::sleep(Duration::from_millis(50));
        drop(block);
        let readings = sampler.finish().unwrap();
        // Other tests share the process, so only the block's own size is certain.
        let large = readings.peak(Some("large"), |r| r.anonymous).unwrap();
        assert!(large >= 64 << 20, "{large}");
        assert!(readings.median("small", |r| r.anonymous).is_some());
        assert_eq!(readings.peak(Some("none"), |r| r.anonymous), None);
    }
}
