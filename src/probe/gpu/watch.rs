//! A thread that reads a GPU every 100 ms.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Gpu, Reading};
use crate::error::{Context, Error, Result};

/// Time between two readings: the driver itself looks at utilisation no more often than that, on most GPUs.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// The running thread.
#[derive(Debug)]
pub struct Watch {
    name: String,
    end: Sender<()>,
    thread: JoinHandle<(Vec<Reading>, Option<Error>)>,
}

/// What was seen of a GPU.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The model's name.
    pub name: String,
    /// Largest memory of this process, in bytes.
    pub process_peak_bytes: Option<u64>,
    /// Largest memory of all processes, in bytes.
    pub used_peak_bytes: Option<u64>,
    /// Median, in MHz.
    pub sm_clock_mhz: Option<f64>,
    /// Median, in MHz.
    pub memory_clock_mhz: Option<f64>,
    /// Largest, in °C.
    pub temperature_celsius: Option<f64>,
    /// Mean, from 0 to 1.
    pub utilization_share: Option<f64>,
    /// Each reason for lower clocks with its share of the readings, the most frequent first; empty without any.
    pub throttled_by: String,
}

impl Watch {
    /// Starts the thread, with a reading at once.
    ///
    /// # Errors
    /// A process that may not have another thread.
    pub fn start(mut gpu: Box<dyn Gpu>) -> Result<Self> {
        let name = gpu.name().to_owned();
        let (end, ended) = channel();
        let thread = std::thread::Builder::new()
            .name("gpu-sampler".into())
            .spawn(move || {
                let mut readings = Vec::new();
                loop {
                    // Once more at the end: what lasts less than the interval has that reading and the first.
                    let last = match ended.recv_timeout(if readings.is_empty() { Duration::ZERO } else { INTERVAL }) {
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
                        Err(RecvTimeoutError::Timeout) => false,
                    };
                    match gpu.read() {
                        Ok(reading) => readings.push(reading),
                        Err(error) => return (readings, Some(error)),
                    }
                    if last {
                        return (readings, None);
                    }
                }
            })
            .context("cannot start the thread that watches the GPU")?;
        Ok(Self { name, end, thread })
    }

    /// Stops the thread and sums its readings up.
    ///
    /// # Errors
    /// A thread that died, a GPU that stopped answering: it may have fallen off the bus.
    pub fn finish(self) -> Result<Observed> {
        // A thread that met an error has ended already.
        let _ = self.end.send(());
        let (readings, error) =
            self.thread.join().map_err(|_| Error::invalid("the thread that watches the GPU died"))?;
        match error {
            Some(error) => Err(error.kind(crate::error::Kind::Invalid)),
            None => Ok(Observed::of(self.name, &readings)),
        }
    }
}

impl Observed {
    /// Sums readings up.
    pub fn of(name: String, readings: &[Reading]) -> Self {
        let of = |value: fn(&Reading) -> Option<u32>| -> Vec<u32> { readings.iter().filter_map(value).collect() };
        let utilization = of(|reading| reading.utilization_percent);
        let total: u64 = utilization.iter().map(|percent| u64::from(*percent)).sum();
        Self {
            name,
            process_peak_bytes: readings.iter().filter_map(|reading| reading.process_bytes).max(),
            used_peak_bytes: readings.iter().filter_map(|reading| reading.used_bytes).max(),
            sm_clock_mhz: median(of(|reading| reading.sm_clock_mhz)),
            memory_clock_mhz: median(of(|reading| reading.memory_clock_mhz)),
            temperature_celsius: of(|reading| reading.temperature_celsius).into_iter().max().map(f64::from),
            utilization_share: (!utilization.is_empty()).then(|| total as f64 / 100.0 / utilization.len() as f64),
            throttled_by: reasons(readings),
        }
    }
}

fn median(mut values: Vec<u32>) -> Option<f64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied().map(f64::from)
}

fn reasons(readings: &[Reading]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in readings.iter().flat_map(|reading| &reading.throttled_by) {
        *counts.entry(reason).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let share = |count: usize| (100.0 * count as f64 / readings.len() as f64).round();
    let texts: Vec<_> = counts.into_iter().map(|(reason, count)| format!("{reason} {} %", share(count))).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record that is played; the last reading is repeated.
    struct Record(Vec<Reading>, usize, Option<usize>);

    impl Gpu for Record {
        fn name(&self) -> &str {
            "NVIDIA Test"
        }

        fn read(&mut self) -> Result<Reading> {
            self.1 += 1;
            if self.2.is_some_and(|fails| self.1 >= fails) {
                return Err(Error::environment("the GPU does not answer"));
            }
            Ok(self.0[(self.1 - 1).min(self.0.len() - 1)].clone())
        }
    }

    fn reading(mhz: u32, percent: u32, bytes: u64, throttled_by: &[&'static str]) -> Reading {
        Reading {
            process_bytes: Some(bytes),
            used_bytes: Some(bytes + 7),
            sm_clock_mhz: Some(mhz),
            memory_clock_mhz: None,
            temperature_celsius: Some(mhz / 40),
            utilization_percent: Some(percent),
            throttled_by: throttled_by.to_vec(),
        }
    }

    #[test]
    fn readings_become_one_line() {
        let record = [
            reading(1980, 90, 100, &[]),
            reading(1500, 100, 300, &["power cap"]),
            reading(1700, 80, 200, &["power cap", "hardware, thermal"]),
            reading(1710, 90, 200, &[]),
        ];
        let seen = Observed::of("NVIDIA Test".to_owned(), &record);
        assert_eq!((seen.process_peak_bytes, seen.used_peak_bytes), (Some(300), Some(307)));
        assert_eq!((seen.sm_clock_mhz, seen.memory_clock_mhz), (Some(1710.0), None));
        assert_eq!(seen.temperature_celsius, Some(49.0));
        assert!((seen.utilization_share.unwrap() - 0.9).abs() < 1e-12);
        assert_eq!(seen.throttled_by, "power cap 50 %; hardware, thermal 25 %");
        assert_eq!(Observed::of(String::new(), &[]), Observed::default());
    }

    #[test]
    fn a_short_stretch_is_seen_at_its_beginning_and_end() {
        let record = Record(vec![reading(1000, 0, 1, &[]), reading(2000, 50, 9, &[])], 0, None);
        let seen = Watch::start(Box::new(record)).unwrap().finish().unwrap();
        assert_eq!(seen.name, "NVIDIA Test");
        assert!(seen.process_peak_bytes.is_some());
    }

    #[test]
    fn a_gpu_that_stops_answering_makes_figures_invalid() {
        let record = Record(vec![reading(1000, 0, 1, &[])], 0, Some(2));
        let watch = Watch::start(Box::new(record)).unwrap();
        std::thread::sleep(3 * INTERVAL);
        let error = watch.finish().unwrap_err();
        assert!(error.chain().contains("does not answer"), "{}", error.chain());
        assert_eq!(error.root_kind(), crate::error::Kind::Invalid);
    }
}
