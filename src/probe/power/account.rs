//! From readings to joules.

use std::time::Instant;

use super::{Domain, Meter, Reading};
use crate::error::{Error, Result};

/// A meter and what it has counted since it was first read.
pub struct Account {
    meter: Box<dyn Meter>,
    last: Option<(Instant, Reading)>,
    joules: f64,
    /// Why it cannot be believed any more.
    broken: Option<String>,
}

impl Account {
    /// Of a meter that was not read yet.
    pub fn new(meter: Box<dyn Meter>) -> Self {
        Self { meter, last: None, joules: 0.0, broken: None }
    }

    /// What is measured.
    pub fn domain(&self) -> &Domain {
        self.meter.domain()
    }

    /// Joules since the first reading.
    pub fn joules(&self) -> f64 {
        self.joules
    }

    /// What was read last.
    pub fn last(&self) -> Option<Reading> {
        self.last.map(|(_, reading)| reading)
    }

    /// Why the account is broken, if it is.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Reads the meter; true when it says something else than before. A meter that failed once is not read again: what
    /// it counted meanwhile would be missing.
    pub fn read(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        let read = self.meter.read().and_then(|reading| self.add(Instant::now(), reading));
        read.unwrap_or_else(|error| {
            self.broken = Some(format!("{} ({}): {}", self.domain().name, self.domain().source, error.chain()));
            false
        })
    }

    fn add(&mut self, now: Instant, reading: Reading) -> Result<bool> {
        let before = self.last.replace((now, reading));
        let Some((then, before)) = before else { return Ok(false) };
        let seconds = (now - then).as_secs_f64();
        self.joules += match (before, reading) {
            (Reading::Microjoules(before), Reading::Microjoules(after)) => {
                counted(self.meter.domain(), before, after, seconds)? as f64 / 1e6
            }
            (Reading::Watts(before), Reading::Watts(after)) => (before + after) / 2.0 * seconds,
            _ => return Err(Error::invalid("a counter became a gauge")),
        };
        Ok(before != reading)
    }
}

/// Microjoules from one reading of a counter to the next.
fn counted(domain: &Domain, before: u64, after: u64, seconds: f64) -> Result<u64> {
    if let Some(longest) = domain.longest_gap_seconds()
        && seconds > 2.0 * longest
    {
        return Err(Error::invalid(format!(
            "its counter was not read for {} and may have begun anew unseen",
            crate::units::seconds(seconds)
        ))
        .hint("the machine slept, or had no time for the thread that reads it; measure again"));
    }
    if after >= before {
        return Ok(after - before);
    }
    let range = domain.range_microjoules.filter(|range| before <= *range).ok_or_else(|| {
        Error::invalid(format!(
            "its counter fell from {before} to {after} microjoules, and it does not say where it wraps"
        ))
    })?;
    Ok(range - before + after)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::cell::PowerSource;
    use crate::probe::power::Part;

    struct Script {
        domain: Domain,
        readings: VecDeque<Result<Reading>>,
    }

    impl Meter for Script {
        fn domain(&self) -> &Domain {
            &self.domain
        }
        fn read(&mut self) -> Result<Reading> {
            self.readings.pop_front().expect("a reading")
        }
    }

    fn domain(range: Option<u64>) -> Domain {
        let (source, name) = (PowerSource::Rapl, "package-0".to_owned());
        Domain { source, name, part: Part::Processor, counted: true, range_microjoules: range }
    }

    fn account(range: Option<u64>, readings: impl IntoIterator<Item = Result<Reading>>) -> Account {
        Account::new(Box::new(Script { domain: domain(range), readings: readings.into_iter().collect() }))
    }

    fn counter(range: Option<u64>, values: &[u64]) -> Account {
        let mut account = account(range, values.iter().map(|value| Ok(Reading::Microjoules(*value))));
        for _ in values {
            account.read();
        }
        account
    }

    #[test]
    fn differences_are_summed_and_wraps_are_seen() {
        assert_eq!(counter(None, &[5_000_000, 7_000_000, 7_500_000]).joules(), 2.5);
        let wrapped = counter(Some(262_143_328_850), &[262_143_000_000, 671_150]);
        assert_eq!((wrapped.joules(), wrapped.broken()), (1.0, None));
        // Several times.
        let several = [0, 900, 100, 950, 50].map(|joules| joules * 1_000_000_000);
        assert_eq!(counter(Some(1_000_000_000_000), &several).joules(), 2_050_000.0);
    }

    #[test]
    fn a_counter_that_falls_without_a_range_is_broken() {
        let broken = counter(None, &[7, 5]);
        assert!(broken.broken().is_some_and(|why| why.contains("fell from 7 to 5")));
        let beyond = counter(Some(10), &[70, 5]);
        assert!(beyond.broken().is_some_and(|why| why.contains("package-0 (rapl)")));
    }

    #[test]
    fn a_meter_that_failed_is_not_read_again() {
        let readings =
            [Ok(Reading::Microjoules(0)), Ok(Reading::Microjoules(1_000_000)), Err(Error::environment("it is gone"))];
        let mut account = account(None, readings);
        assert_eq!([account.read(), account.read(), account.read(), account.read()], [false, true, false, false]);
        assert_eq!(account.broken(), Some("package-0 (rapl): it is gone"));
        assert_eq!(account.joules(), 1.0);
    }

    #[test]
    fn gauges_are_integrated_by_trapezoids() {
        let mut account = account(None, []);
        let start = Instant::now();
        for (seconds, watts) in [(0.0, 10.0), (1.0, 20.0), (3.0, 20.0), (4.0, 0.0)] {
            account.add(start + Duration::from_secs_f64(seconds), Reading::Watts(watts)).unwrap();
        }
        assert!((account.joules() - (15.0 + 40.0 + 10.0)).abs() < 1e-9, "{}", account.joules());
    }

    #[test]
    fn a_gap_that_may_hide_a_wrap_is_an_error() {
        let gap = domain(Some(65_532_610_987)).longest_gap_seconds().unwrap();
        assert!((10.0..30.0).contains(&gap), "{gap}");
        assert!(counted(&domain(Some(65_532_610_987)), 0, 5, gap).is_ok());
        let error = counted(&domain(Some(65_532_610_987)), 0, 5, 2.5 * gap).unwrap_err();
        assert!(error.to_string().contains("begun anew unseen"), "{error}");
        assert!(counted(&domain(None), 0, 5, 1e9).is_ok());
    }

    proptest! {
        #[test]
        fn what_was_fed_is_counted(start in 0_u64..1000, steps in prop::collection::vec(0_u64..900, 1..50)) {
            // Kilojoules: a counter of so few that it may wrap between two readings is not believed.
            let range = 1000;
            let mut value = start;
            let mut values = vec![value];
            for step in &steps {
                value = (value + step) % range;
                values.push(value);
            }
            let values: Vec<_> = values.iter().map(|value| value * 1_000_000_000).collect();
            let joules = counter(Some(range * 1_000_000_000), &values).joules();
            prop_assert!((joules - steps.iter().sum::<u64>() as f64 * 1000.0).abs() < 1e-3);
        }
    }
}
