//! Memory usage: one value a process, so the orchestrator repeats the process.

use std::time::Instant;

use crate::categories::common::{self, choose};
use crate::categories::gpu::Watching;
use crate::categories::resident::Observing;
use crate::categories::{Context, Measure};
use crate::engine::{Decoder, Prompter};
use crate::error::{Error, Result};
use crate::probe::memory::Resident;
use crate::runtime::providers::{self, Computes};

/// The category.
pub struct Memory;

impl Measure for Memory {
    fn measure(&self, context: &Context) -> Result<()> {
        let (cell, report) = (context.cell, context.report);
        let package = common::open_package(context)?;
        // What tokenizing and drawing prompts costs belongs to the baseline, not to the model.
        let batch = cell.workload.batch as usize;
        let prompts = Prompter::open(&package, &cell.workload)?.prompts()?;
        let observing = Observing::start(context)?;
        let mut model = common::load_model(context, &package, &context.plan())?;
        let loaded = Resident::now()?;
        let watching = Watching::start(context)?;

        report.phase("cache")?;
        observing.enter("cache");
        let mut decoder = Decoder::new(&model, batch, common::capacity(context))?;
        let before = Resident::now()?.anonymous;
        decoder.touch_cache();
        let cache = Resident::now()?.anonymous.saturating_sub(before);

        report.phase("prefill")?;
        observing.enter("vision");
        let first = Instant::now();
        let features = model.see(&prompts)?;
        observing.enter("prefill");
        decoder.prefill(&mut model, &prompts, &features)?;
        report.samples("first_run_seconds", context.process, vec![first.elapsed().as_secs_f64()])?;

        report.phase("decode")?;
        observing.enter("decode");
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
        let seen = observing.finish(context)?;

        seen.report_peaks(&loaded)?;
        if cell.workload.image.is_some() {
            seen.peak_of("vision_peak_anonymous_bytes", Some("vision"), |r| r.anonymous)?;
        }
        seen.peak_of("prefill_peak_anonymous_bytes", Some("prefill"), |r| r.anonymous)?;
        seen.median_of("decode_anonymous_bytes", "decode", |r| r.anonymous)?;
        seen.median_of("decode_file_backed_bytes", "decode", |r| r.file_backed)?;
        seen.report_proportional("decode_pss_bytes")?;
        seen.series("cache_measured_bytes", cache)?;
        seen.report_counters()?;

        let weights = package.manifest.bytes_read_per_token.weights;
        let peak = seen.peak();
        let in_host = providers::of(cell.backend.provider).computes() == Computes::Host;
        if in_host && cell.holds_all_weights() && peak < weights {
            return Err(Error::invalid(format!(
                "a peak of {} cannot hold the {} of weights that a step reads",
                crate::units::bytes(peak),
                crate::units::bytes(weights)
            )));
        }
        Ok(())
    }
}

/// Seconds of decoding under the sampling thread: some twenty readings.
const DECODE_SECONDS: f64 = 0.2;
