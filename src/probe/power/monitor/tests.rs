use super::*;
use crate::error::Error;
use crate::probe::power::{Part, Reading};

/// A machine whose meters run by the clock.
struct Clock {
    domain: Domain,
    start: Instant,
    watts: f64,
    step: f64,
    gauge: bool,
    /// After that many seconds it is gone.
    life: f64,
}

impl Meter for Clock {
    fn domain(&self) -> &Domain {
        &self.domain
    }
    fn read(&mut self) -> Result<Reading> {
        let now = self.start.elapsed().as_secs_f64();
        if now > self.life {
            return Err(Error::environment("it is gone"));
        }
        let stepped = (now / self.step).floor();
        if self.gauge {
            return Ok(Reading::Watts(self.watts + if stepped % 2.0 == 0.0 { 1.0 } else { -1.0 }));
        }
        let microjoules = (stepped * self.step * self.watts * 1e6) as u64;
        Ok(Reading::Microjoules(self.domain.range_microjoules.map_or(microjoules, |range| microjoules % range)))
    }
}

fn clock(name: &str, part: Part, watts: f64) -> Clock {
    let counted = !matches!(part, Part::Within | Part::Around);
    let (source, name) = (PowerSource::Rapl, name.to_owned());
    let domain = Domain { source, name, part, counted, range_microjoules: None };
    Clock { domain, start: Instant::now(), watts, step: 1e-3, gauge: false, life: f64::INFINITY }
}

fn start(clocks: Vec<Clock>) -> (Result<Monitor, Uncalibrated>, Vec<String>) {
    let mut remarks = Vec::new();
    let meters = clocks.into_iter().map(|clock| Box::new(clock) as Box<dyn Meter>).collect();
    (Monitor::start(meters, &mut remarks), remarks)
}

fn span(monitor: &Monitor, seconds: f64) -> Span {
    let start = monitor.mark().unwrap();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    monitor.between(&start, &monitor.mark().unwrap())
}

fn near(value: f64, expected: f64) {
    assert!((value / expected - 1.0).abs() < 0.1, "{value} should be about {expected}");
}

#[test]
fn counted_domains_are_summed_and_the_others_told() {
    let (monitor, _) = start(vec![
        clock("package-0", Part::Processor, 40.0),
        clock("core of package-0", Part::Within, 30.0),
        clock("dram of package-0", Part::Dram, 10.0),
    ]);
    let monitor = monitor.unwrap();
    assert!(monitor.calibration().update_seconds > 0.5e-3, "{:?}", monitor.calibration());
    let span = span(&monitor, 0.3);
    near(span.joules / span.seconds, 50.0);
    near(span.by_domain[1] / span.seconds, 30.0);
    near(span.peak_watts, 50.0);
    assert!(monitor.overhead().is_some_and(|overhead| overhead.read_seconds > 0.0 && overhead.cpu_share < 0.5));
    let (reads, burst) = monitor.burst(0.2).unwrap();
    assert!(reads > 10);
    near(burst.joules / burst.seconds, 50.0);
}

#[test]
fn a_counter_that_wraps_many_times_is_read_often_enough() {
    let mut fast = clock("package-0", Part::Processor, 100.0);
    // At the most that a package is thought to draw, it wraps after 0.1 s; at its own 100 W after 2 s.
    fast.domain.range_microjoules = Some(200_000_000);
    let calibration = Calibration { update_seconds: 1e-3, read_seconds: 1e-5 };
    let seconds = sampling_seconds(&[Account::new(Box::new(fast))], &calibration);
    assert!((seconds - 0.1 / 8.0).abs() < 1e-9, "{seconds}");
    let mut tight = clock("package-0", Part::Processor, 10_000.0);
    tight.domain.range_microjoules = Some(2_000_000_000);
    let monitor = start(vec![tight]).0.unwrap();
    let start = monitor.mark().unwrap();
    // Three wraps. A reading that comes too late on a busy machine is found out, never taken.
    std::thread::sleep(Duration::from_millis(650));
    if let Ok(end) = monitor.mark() {
        let span = monitor.between(&start, &end);
        near(span.joules / span.seconds, 10_000.0);
    }
}

#[test]
fn gauges_are_sampled_faster_than_they_change() {
    let mut gauge = clock("gpu-0", Part::Gpu, 70.0);
    (gauge.gauge, gauge.step) = (true, 0.02);
    let monitor = start(vec![gauge]).0.unwrap();
    assert!(monitor.sampling_seconds() < 0.02, "{}", monitor.sampling_seconds());
    let span = span(&monitor, 0.2);
    near(span.joules / span.seconds, 70.0);
}

#[test]
fn meters_that_stand_still_or_vanish() {
    let (monitor, _) = start(vec![clock("package-0", Part::Processor, 0.0)]);
    assert_eq!(monitor.err().unwrap().reason, "package-0 (rapl) did not change in 2 s");
    let (monitor, remarks) =
        start(vec![clock("package-0", Part::Processor, 9.0), clock("dram of package-0", Part::Dram, 0.0)]);
    assert_eq!(monitor.unwrap().domains().len(), 1);
    assert_eq!(remarks, ["the counter of dram of package-0 stands still and is not counted"]);
    let mut dying = clock("package-1", Part::Processor, 9.0);
    dying.life = 1.0;
    let monitor = start(vec![clock("package-0", Part::Processor, 9.0), dying]).0.unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let error = monitor.mark().unwrap_err();
    assert_eq!(error.to_string(), "a meter failed: package-1 (rapl): it is gone");
    assert_eq!(error.root_kind(), crate::error::Kind::Invalid);
}

#[test]
fn one_told_beside_the_others_may_vanish() {
    let mut dying = clock("psys", Part::Around, 9.0);
    dying.life = 0.2;
    let monitor = start(vec![clock("package-0", Part::Processor, 9.0), dying]).0.unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(monitor.mark().is_ok());
    assert_eq!(monitor.lost(), ["psys (rapl): it is gone"]);
}

#[test]
fn peaks_are_means_of_windows() {
    let start = Instant::now();
    let at = |milliseconds: u64, joules: f64| Sample { at: start + Duration::from_millis(milliseconds), joules };
    let samples = [at(0, 0.0), at(50, 1.0), at(60, 2.0), at(100, 6.0), at(150, 7.0)];
    // From 50 to 100 ms: 5 J.
    assert!((peak(&samples, 0.05).unwrap() - 100.0).abs() < 1e-6);
    assert!((peak(&samples, 0.1).unwrap() - 60.0).abs() < 1e-6);
    assert_eq!(peak(&samples, 1.0), None);
    assert_eq!(peak(&[], 1.0), None);
}
