//! The thread that reads the chosen meters, and what was used between two moments.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::account::Account;
use super::calibration::{Calibration, Uncalibrated, calibrate, is_gauge};
use super::{Domain, Meter};
use crate::cell::PowerSource;
use crate::error::{Context, Error, Result};

/// Seconds between two readings, where nothing asks for more of them.
const SAMPLING_SECONDS: f64 = 0.05;

/// The fewest seconds between two readings.
const FASTEST_SECONDS: f64 = 0.005;

/// Updates of a counter within the shortest window of peak power: the counter's step is then a twentieth of it at most.
const PEAK_UPDATES: f64 = 20.0;

/// Meters in use.
pub struct Monitor {
    shared: Arc<Mutex<Shared>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
    started: Instant,
    calibration: Calibration,
    sampling_seconds: f64,
    domains: Vec<Domain>,
}

struct Shared {
    accounts: Vec<Account>,
    samples: Vec<Sample>,
    cost: Cost,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    /// Joules of all that is counted.
    joules: f64,
}

/// What the sampling thread cost so far.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    reads: u64,
    seconds: f64,
    cpu_seconds: f64,
}

/// A moment, with what every meter had counted by then.
#[derive(Debug, Clone)]
pub struct Mark {
    at: Instant,
    joules: Vec<f64>,
    sample: usize,
}

/// What was used between two moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// How long it was.
    pub seconds: f64,
    /// Joules of all that is counted.
    pub joules: f64,
    /// Joules of each domain, in the order of [`Monitor::domains`].
    pub by_domain: Vec<f64>,
    /// The largest mean power within a window of [`Monitor::peak_window_seconds`] or more, in watts.
    pub peak_watts: f64,
}

/// What the measurement itself takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overhead {
    /// Mean seconds of a reading of all meters by the thread.
    pub read_seconds: f64,
    /// Processor time of the thread ÷ time: a share of one processor.
    pub cpu_share: f64,
}

impl Monitor {
    /// Takes the meters in use: watches them until it is known how often they change, then starts the thread.
    ///
    /// # Errors
    /// Meters that stand still, a process that may not have another thread.
    pub fn start(meters: Vec<Box<dyn Meter>>, remarks: &mut Vec<String>) -> Result<Self, Uncalibrated> {
        let mut accounts: Vec<_> = meters.into_iter().map(Account::new).collect();
        let estimate = accounts.iter().all(|account| account.domain().source == PowerSource::Estimate);
        let calibration = match estimate {
            // The clock of the processor's time has nanoseconds, and peaks of an estimate mean nothing.
            true => Calibration { update_seconds: 0.0, read_seconds: 0.0 },
            false => calibrate(&mut accounts, remarks)?,
        };
        let sampling_seconds = sampling_seconds(&accounts, &calibration);
        let domains = accounts.iter().map(|account| account.domain().clone()).collect();
        let shared = Shared { accounts, samples: Vec::new(), cost: Cost::default() };
        let shared = Arc::new(Mutex::new(shared));
        let thread = match estimate {
            true => None,
            false => Some(
                sample(Arc::clone(&shared), Duration::from_secs_f64(sampling_seconds))
                    .map_err(|error| Uncalibrated { reason: error.chain() })?,
            ),
        };
        Ok(Self { shared, thread, started: Instant::now(), calibration, sampling_seconds, domains })
    }

    /// What is read, in a fixed order.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// How often the meters change.
    pub fn calibration(&self) -> Calibration {
        self.calibration
    }

    /// Seconds between two readings of the thread.
    pub fn sampling_seconds(&self) -> f64 {
        self.sampling_seconds
    }

    /// Whether the figures are estimates.
    pub fn is_estimate(&self) -> bool {
        self.thread.is_none()
    }

    /// The shortest window over which peak power is a mean.
    pub fn peak_window_seconds(&self) -> f64 {
        SAMPLING_SECONDS.max(PEAK_UPDATES * self.calibration.update_seconds)
    }

    /// Reads every meter now.
    ///
    /// # Errors
    /// A meter that broke since the start.
    pub fn mark(&self) -> Result<Mark> {
        let mut shared = lock(&self.shared);
        shared.read();
        let counted = |account: &&Account| account.domain().counted;
        if let Some(why) = shared.accounts.iter().filter(counted).find_map(Account::broken) {
            return Err(Error::invalid(format!("a meter failed: {why}")));
        }
        let last = shared.samples.last().map_or_else(Instant::now, |sample| sample.at);
        let joules = shared.accounts.iter().map(Account::joules).collect();
        Ok(Mark { at: last, joules, sample: shared.samples.len() - 1 })
    }

    /// What was used from one moment to another.
    pub fn between(&self, start: &Mark, end: &Mark) -> Span {
        let seconds = (end.at - start.at).as_secs_f64();
        let by_domain: Vec<_> = end.joules.iter().zip(&start.joules).map(|(end, start)| end - start).collect();
        let counted = self.domains.iter().zip(&by_domain).filter(|(domain, _)| domain.counted);
        let joules = counted.map(|(_, joules)| joules).sum();
        let shared = lock(&self.shared);
        let samples = &shared.samples[start.sample..=end.sample];
        // What is left over at the start, shorter than a window, may be above all windows.
        let peak_watts =
            peak(samples, self.peak_window_seconds()).map_or(joules / seconds, |peak| peak.max(joules / seconds));
        Span { seconds, joules, by_domain, peak_watts }
    }

    /// Reads as often as possible for a while, to see what reading costs; returns the number of readings and what was
    /// used.
    ///
    /// # Errors
    /// As [`Monitor::mark`].
    pub fn burst(&self, seconds: f64) -> Result<(u64, Span)> {
        let start = self.mark()?;
        let mut reads = 0;
        while start.at.elapsed().as_secs_f64() < seconds {
            lock(&self.shared).read_accounts();
            reads += 1;
        }
        let end = self.mark()?;
        Ok((reads, self.between(&start, &end)))
    }

    /// What the thread cost since the start; `None` before its first reading.
    pub fn overhead(&self) -> Option<Overhead> {
        let cost = lock(&self.shared).cost;
        let elapsed = self.started.elapsed().as_secs_f64();
        (cost.reads > 0)
            .then(|| Overhead { read_seconds: cost.seconds / cost.reads as f64, cpu_share: cost.cpu_seconds / elapsed })
    }

    /// Remarks on domains that were told beside the others and broke.
    pub fn lost(&self) -> Vec<String> {
        let shared = lock(&self.shared);
        let beside = shared.accounts.iter().filter(|account| !account.domain().counted);
        beside.filter_map(|account| account.broken().map(ToOwned::to_owned)).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn read_accounts(&mut self) {
        for account in &mut self.accounts {
            account.read();
        }
    }

    fn read(&mut self) {
        self.read_accounts();
        let counted = self.accounts.iter().filter(|account| account.domain().counted);
        self.samples.push(Sample { at: Instant::now(), joules: counted.map(Account::joules).sum() });
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often the thread reads: well within the time in which a counter could wrap, and twice as often as a gauge
/// changes, whose readings in between are all there is.
fn sampling_seconds(accounts: &[Account], calibration: &Calibration) -> f64 {
    let wraps = accounts.iter().filter_map(|account| account.domain().longest_gap_seconds());
    let mut seconds = wraps.map(|gap| gap / 4.0).fold(SAMPLING_SECONDS, f64::min);
    if accounts.iter().any(is_gauge) {
        seconds = seconds.min(calibration.update_seconds / 2.0);
    }
    seconds.max(FASTEST_SECONDS)
}

fn sample(shared: Arc<Mutex<Shared>>, interval: Duration) -> Result<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = channel();
    let thread = std::thread::Builder::new()
        .name("power-sampler".into())
        .spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) {
                let start = Instant::now();
                let mut shared = lock(&shared);
                let waited = start.elapsed();
                shared.read();
                let cpu = clock_gettime(ClockId::ThreadCPUTime);
                shared.cost = Cost {
                    reads: shared.cost.reads + 1,
                    seconds: shared.cost.seconds + (start.elapsed() - waited).as_secs_f64(),
                    cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
                };
            }
        })
        .context("cannot start the thread that reads meters")?;
    Ok((stop, thread))
}

/// The largest mean power over a window of at least `seconds`; `None` where the samples span less.
fn peak(samples: &[Sample], seconds: f64) -> Option<f64> {
    let mut largest: Option<f64> = None;
    let mut start = 0;
    for end in samples {
        // The latest start that is far enough away.
        while samples.get(start + 1).is_some_and(|next| (end.at - next.at).as_secs_f64() >= seconds) {
            start += 1;
        }
        let span = (end.at - samples[start].at).as_secs_f64();
        if span >= seconds && span > 0.0 {
            let watts = (end.joules - samples[start].joules) / span;
            largest = Some(largest.map_or(watts, |largest| largest.max(watts)));
        }
    }
    largest
}

#[cfg(test)]
mod tests;
