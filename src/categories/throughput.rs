//! Throughput: a closed loop over one batch, from the first request to the last token.

use std::time::Instant;

use crate::categories::common::{self, Loaded, Repetitions, choose};
use crate::categories::feeding::{Tokens, Turn};
use crate::categories::gpu::Watching;
use crate::categories::streaming::{Meter, Reading};
use crate::categories::{Context, Measure, disk};
use crate::cell::Category;
use crate::engine::{Decoder, Model, Prompter};
use crate::error::Result;

/// The category.
pub struct Throughput;

impl Measure for Throughput {
    fn measure(&self, context: &Context) -> Result<()> {
        let Loaded { mut model, mut feeding } = common::load(context)?;
        let (cell, report) = (context.cell, context.report);
        let mut decoder = common::decoder(context, &model)?;
        let generate = cell.workload.generate_tokens;
        report.phase("warmup")?;
        common::first_run(context, &mut model, &mut decoder, &feeding.turn(Turn::Unmeasured(0))?.0.prompts()?)?;
        for run in 0..cell.measurement.warmup {
            let turn = feeding.turn(Turn::Unmeasured(1 + run))?;
            batch(&mut decoder, &mut model, turn, generate, &mut Meter::default())?;
        }
        report.fact("warmup_runs", u64::from(cell.measurement.warmup))?;
        let watching = Watching::start(context)?;
        let mut repetitions = Repetitions::new(&cell.measurement);
        let mut meter = Meter::default();
        let mut smallest = f64::INFINITY;
        let sequences = f64::from(cell.workload.batch);
        let (new, prompt) = (f64::from(generate), f64::from(cell.workload.prompt_tokens));
        while let Some(repetition) = repetitions.next() {
            let (done, of) = repetitions.progress();
            report.progress("measure", done, of)?;
            let turn = feeding.turn(Turn::Measured(repetition))?;
            let seconds = batch(&mut decoder, &mut model, turn, generate, &mut meter)?;
            repetitions.add(seconds);
            smallest = smallest.min(seconds);
            report.samples("batch_seconds", repetition, vec![seconds])?;
            report.samples("output_tokens_per_second", repetition, vec![sequences * new / seconds])?;
            report.samples("total_tokens_per_second", repetition, vec![sequences * (new + prompt) / seconds])?;
            report.samples("requests_per_second", repetition, vec![sequences / seconds])?;
        }
        watching.report(report)?;
        // A row has one value of each, which is that of `speed` where both are measured.
        if !cell.categories.contains(&Category::Speed) {
            meter.report(report)?;
            // What the model holds must not be in memory beside the buffers of these reads.
            drop((decoder, model));
            if context.process == 0 {
                disk::report_bandwidth(feeding.package(), context.setup.plan.residency, report)?;
            }
        }
        common::check_resolution(context, smallest)
    }
}

/// One batch of requests that arrive together; seconds from the first to the last token. What the loader did meanwhile,
/// where there is one, is counted by `meter`.
fn batch(
    decoder: &mut Decoder,
    model: &mut Model,
    (prompter, mut feed): (&Prompter, Tokens),
    generate: u32,
    meter: &mut Meter,
) -> Result<f64> {
    let start = Instant::now();
    let prompts = prompter.prompts()?;
    let features = model.see(&prompts)?;
    let before = Reading::now(model, decoder);
    decoder.prefill(model, &prompts, &features)?;
    let between = Reading::now(model, decoder);
    let mut chosen = choose(decoder)?;
    let first = Instant::now();
    for _ in 1..generate {
        decoder.step(model, &feed.after(&mut chosen))?;
        chosen = choose(decoder)?;
    }
    let (seconds, decoding) = (start.elapsed().as_secs_f64(), first.elapsed().as_secs_f64());
    let decoded = chosen.len() as u64 * u64::from(generate.saturating_sub(1));
    meter.prefilled(&before, &between);
    meter.decoded(&between, &Reading::now(model, decoder), decoded, decoding);
    Ok(seconds)
}
