//! Blocks: some work, repeated until a meter can tell what it takes, with the idle power before it.
//!
//! What the work is does not matter here: it is done a run at a time, and says how many units (tokens, or runs of a
//! graph) a run was.

use std::time::{Duration, Instant};

use crate::cell::PowerPlan;
use crate::error::{Error, Result};
use crate::probe::power::{Monitor, Part, Span};
use crate::units;

/// Updates of a meter in a block, at least: its step is then one percent of the block at most.
pub const UPDATES: f64 = 100.0;

/// A part of the idle time that passes before it is measured: threads that spin go to sleep, clocks go down.
const SETTLING: f64 = 0.1;

/// Work that a block repeats.
pub trait Work {
    /// Gets ready for a run: once before a block, or before every run of it ([`Work::prepares_every_run`]). What that
    /// takes is not the block's.
    ///
    /// # Errors
    /// Whatever ends the cell.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Whether no run can follow another without being prepared.
    fn prepares_every_run(&self) -> bool {
        false
    }

    /// Does the work once; returns how many units it was.
    ///
    /// # Errors
    /// Whatever ends the cell.
    fn run(&mut self) -> Result<u64>;
}

impl<F: FnMut() -> Result<u64>> Work for F {
    fn run(&mut self) -> Result<u64> {
        self()
    }
}

/// What a block took.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Block {
    /// Seconds of work.
    pub seconds: f64,
    /// Joules of all that is counted.
    pub joules: f64,
    /// Joules of each of the monitor's domains.
    pub by_domain: Vec<f64>,
    /// The largest mean power over a short window, in watts.
    pub peak_watts: f64,
    /// Power before the block, in watts; `None` of an estimate, which knows of this process's work alone.
    pub idle_watts: Option<f64>,
    /// Runs of the work.
    pub runs: u64,
    /// Units of all runs.
    pub units: u64,
}

impl Block {
    /// Joules of a unit.
    pub fn joules_per_unit(&self) -> f64 {
        self.joules / self.units as f64
    }

    /// The same without what the machine takes when it does nothing. Within the meter's error it may be negative.
    pub fn joules_above_idle_per_unit(&self) -> Option<f64> {
        Some((self.joules - self.idle_watts? * self.seconds) / self.units as f64)
    }

    /// Units of a joule.
    pub fn units_per_joule(&self) -> f64 {
        self.units as f64 / self.joules
    }

    /// Mean power in watts.
    pub fn watts(&self) -> f64 {
        self.joules / self.seconds
    }

    /// Joules times seconds of one run.
    pub fn energy_delay_product(&self) -> f64 {
        self.joules / self.runs as f64 * (self.seconds / self.runs as f64)
    }

    /// Joules of a unit in the domains of one part of the machine; `None` where none of them is counted.
    pub fn joules_per_unit_of(&self, part: Part, monitor: &Monitor) -> Option<f64> {
        let domains = monitor.domains().iter().zip(&self.by_domain);
        let of_part = domains.filter(|(domain, _)| domain.counted && domain.part == part);
        let joules: Vec<_> = of_part.map(|(_, joules)| *joules).collect();
        (!joules.is_empty()).then(|| joules.iter().sum::<f64>() / self.units as f64)
    }

    /// Adds another block of the same work; the idle power stays the first one's.
    pub fn join(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.joules += other.joules;
        self.by_domain.resize(other.by_domain.len(), 0.0);
        self.by_domain.iter_mut().zip(&other.by_domain).for_each(|(sum, joules)| *sum += joules);
        self.peak_watts = self.peak_watts.max(other.peak_watts);
        self.units += other.units;
        self.runs += other.runs;
    }

    fn add(&mut self, span: Span, units: u64, runs: u64) {
        let Span { seconds, joules, by_domain, peak_watts } = span;
        self.join(&Self { seconds, joules, by_domain, peak_watts, idle_watts: None, runs, units });
    }
}

/// Seconds that a block lasts at least, and the idle time before it: what the plan says, and a hundred updates of the
/// meter.
///
/// # Errors
/// A meter that would need longer blocks than the plan allows.
pub fn durations(plan: &PowerPlan, update_seconds: f64) -> Result<(f64, f64)> {
    let needed = UPDATES * update_seconds;
    if needed > plan.max_block_seconds {
        return Err(Error::invalid(format!(
            "the meter changes every {}, so a block would have to last {}, and the matrix allows {}",
            units::seconds(update_seconds),
            units::seconds(needed),
            units::seconds(plan.max_block_seconds)
        ))
        .hint("raise `max_block_seconds` of `power` (and `timeout_seconds`), or use a faster meter"));
    }
    Ok((plan.min_block_seconds.max(needed), plan.idle_seconds.max(needed)))
}

/// Measures idle power and then a block of the work.
///
/// # Errors
/// A failed run, a meter that broke, a run that is too short for the meter and cannot follow another.
pub fn measure(monitor: &Monitor, plan: &PowerPlan, work: &mut dyn Work) -> Result<Block> {
    let update = monitor.calibration().update_seconds;
    let (needed, idle) = durations(plan, update)?;
    let mut block = Block::default();
    work.prepare()?;
    if !monitor.is_estimate() {
        let idle = self::idle(monitor, idle)?;
        block.idle_watts = Some(idle.joules / idle.seconds);
    }
    if !work.prepares_every_run() {
        let start = monitor.mark()?;
        let clock = Instant::now();
        let (mut units, mut runs) = (0, 0);
        while clock.elapsed().as_secs_f64() < needed {
            units += work.run()?;
            runs += 1;
        }
        block.add(monitor.between(&start, &monitor.mark()?), units, runs);
        return Ok(block);
    }
    let mut prepared = true;
    while block.seconds < needed {
        if !std::mem::take(&mut prepared) {
            work.prepare()?;
        }
        let start = monitor.mark()?;
        let units = work.run()?;
        let span = monitor.between(&start, &monitor.mark()?);
        if span.seconds < UPDATES * update {
            return Err(Error::invalid(format!(
                "a run lasts {}, less than {UPDATES} updates of the meter ({} each), and every run has its own prompt",
                units::seconds(span.seconds),
                units::seconds(update)
            ))
            .hint("generate more tokens, or a longer prompt"));
        }
        block.add(span, units, 1);
    }
    Ok(block)
}

/// What the machine takes while this process sleeps.
///
/// # Errors
/// A meter that broke.
pub fn idle(monitor: &Monitor, seconds: f64) -> Result<Span> {
    std::thread::sleep(Duration::from_secs_f64(SETTLING * seconds));
    let start = monitor.mark()?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    Ok(monitor.between(&start, &monitor.mark()?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::cell::PowerSource;
    use crate::probe::power::{Domain, Meter, Reading};

    /// A machine that takes ten watts, and a microjoule for whatever is counted as work.
    struct Machine {
        domain: Domain,
        start: Instant,
        work: Arc<AtomicU64>,
    }

    impl Meter for Machine {
        fn domain(&self) -> &Domain {
            &self.domain
        }
        fn read(&mut self) -> Result<Reading> {
            // It says something new every millisecond.
            let idle = self.start.elapsed().as_millis() as u64 * 10_000;
            Ok(Reading::Microjoules(idle + self.work.load(Ordering::Relaxed)))
        }
    }

    fn machine(source: PowerSource) -> (Monitor, Arc<AtomicU64>) {
        let work = Arc::new(AtomicU64::new(0));
        let name = "package-0".to_owned();
        let domain = Domain { source, name, part: Part::Processor, counted: true, range_microjoules: None };
        let meter = Machine { domain, start: Instant::now(), work: Arc::clone(&work) };
        (Monitor::start(vec![Box::new(meter)], &mut Vec::new()).unwrap(), work)
    }

    fn plan() -> PowerPlan {
        PowerPlan { idle_seconds: 0.2, min_block_seconds: 0.3, ..PowerPlan::default() }
    }

    fn near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 0.1, "{value} should be about {expected}");
    }

    #[test]
    fn what_the_work_takes_is_above_idle() {
        let (monitor, spent) = machine(PowerSource::Rapl);
        let block = measure(&monitor, &plan(), &mut || {
            std::thread::sleep(Duration::from_millis(3));
            // A run of two units, of 50 mJ each.
            spent.fetch_add(100_000, Ordering::Relaxed);
            Ok(2)
        })
        .unwrap();
        assert!(block.seconds >= 0.3 && block.units == 2 * block.runs && block.runs > 10);
        near(block.idle_watts.unwrap(), 10.0);
        near(block.joules_above_idle_per_unit().unwrap(), 0.05);
        near(block.joules_per_unit(), 0.05 + 10.0 * block.seconds / block.units as f64);
        near(block.units_per_joule() * block.joules_per_unit(), 1.0);
        near(block.energy_delay_product(), block.joules * block.seconds / (block.runs * block.runs) as f64);
        near(block.joules_per_unit_of(Part::Processor, &monitor).unwrap(), block.joules_per_unit());
        assert_eq!(block.joules_per_unit_of(Part::Gpu, &monitor), None);
        assert!(block.peak_watts >= block.watts());
    }

    /// Work whose preparation is dear.
    struct Prepared {
        spent: Arc<AtomicU64>,
        run: Duration,
        prepared: u64,
        runs: u64,
    }

    impl Work for Prepared {
        fn prepare(&mut self) -> Result<()> {
            self.prepared += 1;
            self.spent.fetch_add(1_000_000_000, Ordering::Relaxed);
            Ok(())
        }
        fn prepares_every_run(&self) -> bool {
            true
        }
        fn run(&mut self) -> Result<u64> {
            self.runs += 1;
            std::thread::sleep(self.run);
            self.spent.fetch_add(1_000_000, Ordering::Relaxed);
            Ok(1)
        }
    }

    #[test]
    fn preparation_is_not_the_blocks() {
        let (monitor, spent) = machine(PowerSource::Rapl);
        let mut work = Prepared { spent, run: Duration::from_millis(500), prepared: 0, runs: 0 };
        let plan = PowerPlan { min_block_seconds: 0.8, ..plan() };
        let block = measure(&monitor, &plan, &mut work).unwrap();
        assert_eq!((work.prepared, work.runs), (work.runs, block.runs));
        near(block.joules_above_idle_per_unit().unwrap(), 1.0);
    }

    #[test]
    fn runs_that_are_too_short_and_cannot_be_joined() {
        let (monitor, spent) = machine(PowerSource::Rapl);
        let mut work = Prepared { spent, run: Duration::from_millis(5), prepared: 0, runs: 0 };
        let error = measure(&monitor, &plan(), &mut work).unwrap_err();
        assert_eq!(error.root_kind(), crate::error::Kind::Invalid);
        assert!(error.to_string().contains("less than 100 updates of the meter"), "{error}");
    }

    #[test]
    fn blocks_are_as_long_as_the_meter_needs() {
        assert_eq!(durations(&PowerPlan::default(), 1e-3).unwrap(), (1.0, 5.0));
        assert_eq!(durations(&PowerPlan::default(), 0.1).unwrap(), (10.0, 10.0));
        let error = durations(&PowerPlan::default(), 3.6).unwrap_err();
        assert_eq!(error.root_kind(), crate::error::Kind::Invalid);
        assert!(error.to_string().contains("360 s") && error.find_hint().unwrap().contains("max_block_seconds"));
    }

    #[test]
    fn an_estimate_has_no_idle_power() {
        let (monitor, spent) = machine(PowerSource::Estimate);
        let block = measure(&monitor, &plan(), &mut || {
            std::thread::sleep(Duration::from_millis(3));
            spent.fetch_add(1000, Ordering::Relaxed);
            Ok(1)
        })
        .unwrap();
        assert_eq!((block.idle_watts, block.joules_above_idle_per_unit()), (None, None));
        assert!(block.joules > 0.0);
    }
}
