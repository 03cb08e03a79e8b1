//! Memory usage: one value a process, so the orchestrator repeats the process.

use std::time::Instant;

use crate::categories::common::{self, choose};
use crate::categories::gpu::Watching;
use crate::categories::{Context, Measure};
use crate::engine::{Decoder, Prompter};
use crate::error::{Error, Result};
use crate::probe::memory::{Counters, Resident, proportional, reset_peak};
use crate::probe::sampler::Sampler;
use crate::runtime::providers::{self, Computes};

/// The category.
pub struct Memory;

impl Measure for Memory {
    fn measure(&self, context: &Context) -> Result<()> {
        let (cell, report) = (context.cell, context.report);
        let series = |name: &str, bytes: u64| report.samples(name, context.process, vec![bytes as f64]);
        let package = common::open_package(context)?;
        // What tokenizing and drawing prompts costs belongs to the baseline, not to the model.
        let batch = cell.workload.batch as usize;
        let prompts = Prompter::open(&package, &cell.workload)?.prompts()?;
        let baseline = Resident::now()?;
        if !reset_peak() {
            report.warning(
                "the kernel does not let this process reset its peak counter (/proc/self/clear_refs), so the peak \
                 includes what happened before the load",
            )?;
        }
        let counters = Counters::now()?;
        let sampler = Sampler::start("load")?;
        let mut model = common::load_model(context, &package, &context.plan())?;
        let loaded = Resident::now()?;
        let watching = Watching::start(context)?;

        report.phase("cache")?;
        sampler.enter("cache");
        let mut decoder = Decoder::new(&model, batch, common::capacity(context))?;
        let before = Resident::now()?.anonymous;
        decoder.touch_cache();
        let cache = Resident::now()?.anonymous.saturating_sub(before);

        report.phase("prefill")?;
        sampler.enter("vision");
        let first = Instant::now();
        let features = model.see(&prompts)?;
        sampler.enter("prefill");
        decoder.prefill(&mut model, &prompts, &features)?;
        report.samples("first_run_seconds", context.process, vec![first.elapsed().as_secs_f64()])?;

        report.phase("decode")?;
        sampler.enter("decode");
        // Decode anew until the sampling thread has seen it often enough for a median.
        let decoding = Instant::now();
        loop {
            for _ in 1..cell.workload.generate_tokens {
                let next = choose(&decoder)?;
                decoder.step(&mut model, &next)?;
            }
            if decoding.elapsed().as_secs_f64() >= DECODE_SECONDS {
                break;
            }
            decoder.prefill(&mut model, &prompts, &features)?;
        }
        watching.report(report)?;
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
        if cell.workload.image.is_some() {
            series("vision_peak_anonymous_bytes", reading(readings.peak(Some("vision"), |r| r.anonymous))?)?;
        }
        series("prefill_peak_anonymous_bytes", reading(readings.peak(Some("prefill"), |r| r.anonymous))?)?;
        series("decode_anonymous_bytes", reading(readings.median("decode", |r| r.anonymous))?)?;
        series("decode_file_backed_bytes", reading(readings.median("decode", |r| r.file_backed))?)?;
        match pss {
            Some(bytes) => series("decode_pss_bytes", bytes)?,
            None => report.warning("the kernel has no smaps_rollup, so there is no proportional set size")?,
        }
        series("cache_measured_bytes", cache)?;
        series("major_faults", counted.major_faults)?;
        series("minor_faults", counted.minor_faults)?;
        match counted.read_bytes {
            Some(bytes) => series("disk_read_bytes", bytes)?,
            None => report.warning("the kernel does not count this process's reads (/proc/self/io)")?,
        }
        report.fact("warmup_runs", 0_u64)?;

        let weights = package.manifest.bytes_read_per_token.weights;
        let seen = last.peak;
        let in_host = providers::of(cell.backend.provider).computes() == Computes::Host;
        if in_host && cell.memory.holds_all_weights() && seen < weights {
            return Err(Error::invalid(format!(
                "a peak of {} cannot hold the {} of weights that a step reads",
                crate::units::bytes(seen),
                crate::units::bytes(weights)
            )));
        }
        Ok(())
    }
}

/// Seconds of decoding under the sampling thread: some twenty readings.
const DECODE_SECONDS: f64 = 0.2;
