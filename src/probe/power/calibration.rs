//! How often meters say something new, and what a reading costs: both are measured, for they decide how long a block
//! must be and how often it is worth looking.

use std::time::{Duration, Instant};

use super::Reading;
use super::account::Account;
use crate::cell::PowerSource;

/// What was found out about meters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// Median time from one change of a meter's value to the next, of the slowest that is counted; seconds.
    pub update_seconds: f64,
    /// Mean time of a reading of all meters, in seconds.
    pub read_seconds: f64,
}

/// Why meters could not be calibrated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncalibrated {
    /// The sentence.
    pub reason: String,
}

/// Changes after which the time between them is known well enough.
const CHANGES: u32 = 32;

/// Pause between two readings: short beside the fastest counters' milliseconds, long enough to be no load.
const PAUSE: Duration = Duration::from_micros(100);

/// When a meter's value changed.
#[derive(Debug, Clone, Default)]
struct Changes {
    count: u32,
    last: Option<Instant>,
    /// Seconds from one to the next.
    gaps: Vec<f64>,
}

impl Changes {
    fn add(&mut self, now: Instant) {
        self.count += 1;
        self.gaps.extend(self.last.map(|last| (now - last).as_secs_f64()));
        self.last = Some(now);
    }

    /// The median: where this process had to wait, a few gaps are too long.
    fn interval(&mut self) -> Option<f64> {
        self.gaps.sort_unstable_by(f64::total_cmp);
        self.gaps.get(self.gaps.len() / 2).copied()
    }
}

/// How long a source is watched at most. Counters move every millisecond or hundred; a board's sensors and batteries
/// need seconds.
fn patience(source: PowerSource) -> Duration {
    Duration::from_secs(match source {
        PowerSource::Rapl | PowerSource::AmdEnergy | PowerSource::Estimate => 2,
        PowerSource::Nvml => 5,
        PowerSource::Hwmon => 10,
        PowerSource::Battery => 60,
    })
}

/// Watches the meters until each has changed often enough. A counter of memory that stands still is dropped, with a
/// remark: some processors have the counter and no figure for it.
///
/// # Errors
/// Meters that broke, or that stand still.
pub fn calibrate(accounts: &mut Vec<Account>, remarks: &mut Vec<String>) -> Result<Calibration, Uncalibrated> {
    let counted: Vec<bool> = accounts.iter().map(|account| account.domain().counted).collect();
    let patience = accounts.iter().map(|account| patience(account.domain().source)).max().unwrap_or_default();
    let mut changes = vec![Changes::default(); accounts.len()];
    let start = Instant::now();
    let (mut reads, mut reading) = (0_u32, Duration::ZERO);
    let is_known = |changes: &[Changes]| {
        changes.iter().zip(&counted).all(|(changes, counted)| !counted || changes.count >= CHANGES)
    };
    while !is_known(&changes) && start.elapsed() < patience {
        let before = Instant::now();
        for (account, changes) in accounts.iter_mut().zip(&mut changes) {
            if account.read() {
                changes.add(Instant::now());
            }
        }
        reading += before.elapsed();
        reads += 1;
        if let Some(why) = accounts.iter().filter(|account| account.domain().counted).find_map(Account::broken) {
            return Err(Uncalibrated { reason: why.to_owned() });
        }
        std::thread::sleep(PAUSE);
    }
    let mut slowest = 0.0_f64;
    let mut place = 0;
    let mut still = None;
    accounts.retain(|account| {
        let (changes, domain) = (&mut changes[place], account.domain());
        place += 1;
        match changes.interval() {
            Some(interval) => {
                slowest = if domain.counted { slowest.max(interval) } else { slowest };
                true
            }
            None if domain.part == super::Part::Dram && changes.count == 0 => {
                remarks.push(format!("the counter of {} stands still and is not counted", domain.name));
                false
            }
            None => {
                if domain.counted {
                    still.get_or_insert((domain.name.clone(), domain.source, changes.count));
                }
                true
            }
        }
    });
    if let Some((name, source, count)) = still {
        let (seconds, times) = (patience.as_secs(), if count == 1 { "changed once" } else { "did not change" });
        return Err(Uncalibrated { reason: format!("{name} ({source}) {times} in {seconds} s") });
    }
    Ok(Calibration { update_seconds: slowest, read_seconds: reading.as_secs_f64() / f64::from(reads.max(1)) })
}

/// True where what is read is sampled power, which must be looked at more often than it changes.
pub(super) fn is_gauge(account: &Account) -> bool {
    matches!(account.last(), Some(Reading::Watts(_)))
}
