//! Memory usage of a graph: one value a process, so the orchestrator repeats the process.

use std::time::Instant;

use crate::categories::graph::common;
use crate::categories::{Context, Measure};
use crate::engine::Inputs;
use crate::error::{Error, Result};
use crate::probe::memory::{Counters, Resident, proportional, reset_peak};
use crate::probe::sampler::Sampler;

/// The category.
pub struct Memory;

/// Seconds of runs under the sampling thread: some twenty readings.
const STEADY_SECONDS: f64 = 0.2;

impl Measure for Memory {
    fn measure(&self, context: &Context) -> Result<()> {
        let (plan, report) = (common::plan(context)?, context.report);
        let series = |name: &str, bytes: u64| report.samples(name, context.process, vec![bytes as f64]);
        // Inputs are the caller's: they belong to the baseline, not to the graph.
        let inputs = Inputs::make(plan)?;
        let baseline = Resident::now()?;
        if !reset_peak() {
            report.warning(
                "the kernel does not let this process reset its peak counter (/proc/self/clear_refs), so the peak \
                 includes what happened before the load",
            )?;
        }
        let counters = Counters::now()?;
        let sampler = Sampler::start("load")?;
        let mut graph = common::load(context)?;
        let loaded = Resident::now()?;

        report.phase("first run")?;
        sampler.enter("first run");
        graph.bind(inputs, plan, false)?;
        common::first_run(context, &mut graph)?;

        report.phase("steady")?;
        sampler.enter("steady");
        let steady = Instant::now();
        while steady.elapsed().as_secs_f64() < STEADY_SECONDS {
            graph.run()?;
        }
        let pss = proportional();
        let last = Resident::now()?;
        let counted = Counters::now()?.since(&counters);
        let readings = sampler.finish()?;
        let reading = |value: Option<u64>| value.ok_or_else(|| Error::invalid("a phase passed without a reading"));

        series("baseline_rss_bytes", baseline.total)?;
        series("peak_rss_bytes", last.peak)?;
        series("peak_rss_above_baseline_bytes", last.peak.saturating_sub(baseline.total))?;
        series("peak_anonymous_bytes", reading(readings.peak(None, |r| r.anonymous))?)?;
        series("peak_file_backed_bytes", reading(readings.peak(None, |r| r.file_backed))?)?;
        series("loaded_anonymous_bytes", loaded.anonymous)?;
        series("loaded_file_backed_bytes", loaded.file_backed)?;
        series("first_run_peak_anonymous_bytes", reading(readings.peak(Some("first run"), |r| r.anonymous))?)?;
        series("steady_anonymous_bytes", reading(readings.median("steady", |r| r.anonymous))?)?;
        series("steady_file_backed_bytes", reading(readings.median("steady", |r| r.file_backed))?)?;
        match pss {
            Some(bytes) => series("steady_pss_bytes", bytes)?,
            None => report.warning("the kernel has no smaps_rollup, so there is no proportional set size")?,
        }
        series("major_faults", counted.major_faults)?;
        series("minor_faults", counted.minor_faults)?;
        match counted.read_bytes {
            Some(bytes) => series("disk_read_bytes", bytes)?,
            None => report.warning("the kernel does not count this process's reads (/proc/self/io)")?,
        }
        report.fact("warmup_runs", 0_u64)?;
        common::identify(context, &graph)
    }
}
