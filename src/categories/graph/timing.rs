//! Runs that are timed one by one, or several at a time where one is too short to be timed or too short to be kept.

use std::time::Instant;

use crate::categories::Context;
use crate::categories::common::Repetitions;
use crate::error::Result;
use crate::probe::clock;

/// A timing is at least this many steps of the clock: ten times what a timing must have, so that a run that happens to
/// be a fast one has enough too.
const CLOCK_STEPS: f64 = 1000.0;

/// No more timings than this are taken in the measured seconds that the plan asks for: runs are timed together until it
/// is so. Each is a row of `samples.csv`.
const MOST_TIMINGS: f64 = 10_000.0;

/// Timings are told in blocks of about this share of the measured seconds.
const BLOCKS: f64 = 20.0;

/// Unmeasured runs that are timed together, at most: one quiet moment must be enough for them.
const LARGEST_BATCH: u64 = 64;

/// How runs are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Runs of one timing.
    pub runs: u64,
    /// Timings of one block.
    pub timings: u64,
}

impl Plan {
    /// For runs that take this long.
    pub fn of(run_seconds: f64, resolution: f64, min_seconds: f64) -> Self {
        let run = run_seconds.max(1e-9);
        let shortest = (CLOCK_STEPS * resolution).max(min_seconds / MOST_TIMINGS);
        let runs = (shortest / run).ceil().max(1.0);
        let timings = (min_seconds / BLOCKS / (runs * run)).floor().max(1.0);
        Self { runs: runs as u64, timings: timings as u64 }
    }
}

/// Runs unmeasured, and returns how long a run takes: the warm-up runs of the plan, and more until a twentieth of the
/// measured seconds has passed, since the first ones are slower than those that are measured.
fn warm_up(context: &Context, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let plan = &context.cell.measurement;
    let (start, enough) = (Instant::now(), plan.min_seconds / BLOCKS);
    let (mut runs, mut fastest) = (0_u64, f64::INFINITY);
    while runs < u64::from(plan.warmup).max(1) || start.elapsed().as_secs_f64() < enough {
        // Ever more together, so that the clock's own cost does not count; the fastest, so that a disturbance does not.
        let (batch, mut counted) = (Instant::now(), 0);
        while counted < runs.clamp(1, LARGEST_BATCH) && (counted == 0 || batch.elapsed().as_secs_f64() < enough) {
            run()?;
            counted += 1;
        }
        fastest = fastest.min(batch.elapsed().as_secs_f64() / counted as f64);
        runs += counted;
    }
    context.report.fact("warmup_runs", runs)?;
    Ok(fastest)
}

/// Times runs until there is enough; `told` hears of each block's latencies, in seconds a run.
pub fn measure(
    context: &Context,
    run: &mut dyn FnMut() -> Result<()>,
    told: &mut dyn FnMut(u32, Vec<f64>) -> Result<()>,
) -> Result<()> {
    let report = context.report;
    let run_seconds = warm_up(context, run)?;
    let plan = Plan::of(run_seconds, clock::resolution_seconds(), context.cell.measurement.min_seconds);
    report.fact("runs_per_timing", plan.runs)?;
    let mut repetitions = Repetitions::new(&context.cell.measurement);
    let mut smallest = f64::INFINITY;
    while let Some(repetition) = repetitions.next() {
        let (done, of) = repetitions.progress();
        report.progress("measure", done, of)?;
        let mut latencies = Vec::with_capacity(plan.timings as usize);
        let block = Instant::now();
        for _ in 0..plan.timings {
            let start = Instant::now();
            for _ in 0..plan.runs {
                run()?;
            }
            latencies.push(start.elapsed().as_secs_f64());
        }
        repetitions.add(block.elapsed().as_secs_f64());
        smallest = latencies.iter().copied().fold(smallest, f64::min);
        latencies.iter_mut().for_each(|timing| *timing /= plan.runs as f64);
        told(repetition, latencies)?;
    }
    report.fact("smallest_timing_seconds", smallest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_are_timed_together() {
        // A run of 9 ms is timed by itself, in blocks of a twentieth of a second.
        assert_eq!(Plan::of(0.009, 50e-9, 1.0), Plan { runs: 1, timings: 5 });
        // One of 2 s is a block of its own.
        assert_eq!(Plan::of(2.0, 50e-9, 1.0), Plan { runs: 1, timings: 1 });
        // One of 3 µs: a timing is 100 µs, of which a second has 10,000.
        assert_eq!(Plan::of(3e-6, 50e-9, 1.0), Plan { runs: 34, timings: 490 });
        // A slow clock: a thousand steps of a microsecond.
        assert_eq!(Plan::of(3e-6, 1e-6, 0.2), Plan { runs: 334, timings: 9 });
        // A run that the clock did not see.
        assert!(Plan::of(0.0, 50e-9, 1.0).runs > 1);
    }
}
