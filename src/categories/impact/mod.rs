//! Optimization impact: a process an arm, in pairs; each serves the cell's sequences again and again, and the optimized
//! arm's logits are held against those that the baseline left behind.

mod answers;
mod evidence;
mod running;

use std::time::Instant;

use crate::categories::common;
use crate::categories::feeding::{Feeding, Tokens, Turn};
use crate::categories::resident::Observing;
use crate::categories::{Context, Measure};
use crate::cell::{Arm, ImpactMetric};
use crate::engine::serving::Served;
use crate::error::{Error, Result};
use crate::optimizations::{self, Examination};
use crate::package::Package;
use crate::probe::memory::{Counters, Resident};

use running::Running;

/// The category.
pub struct Impact;

impl Measure for Impact {
    fn measure(&self, context: &Context) -> Result<()> {
        let (cell, report) = (context.cell, context.report);
        let arm = Arm::of_process(context.process);
        let package = common::open_package(context)?;
        let mut feeding = Feeding::of(package.clone(), &cell.workload)?;
        feeding.report(report)?;
        // What tokenizing costs is no part of an arm.
        feeding.turn(Turn::Unmeasured(0))?;
        let observing = Observing::start(context)?;
        let loading = Instant::now();
        let mut running = Running::load(context, &package)?;
        sample(context, ImpactMetric::Load, context.process, loading.elapsed().as_secs_f64())?;
        let loaded = Resident::now()?;

        report.phase("warmup")?;
        observing.enter("warmup");
        let first = serve(context, &mut running, &mut feeding, Turn::Unmeasured(0))?;
        let first_run = first.waves.first().map_or(first.seconds, |wave| wave.prefill_seconds);
        report.samples("first_run_seconds", context.process, vec![first_run])?;
        for run in 0..cell.measurement.warmup {
            serve(context, &mut running, &mut feeding, Turn::Unmeasured(1 + run))?;
        }
        report.fact("warmup_runs", u64::from(cell.measurement.warmup))?;

        observing.enter("measure");
        let mut repetitions = common::Repetitions::new(&cell.measurement);
        let mut counted = evidence::Counted::start(&running);
        let mut smallest = f64::INFINITY;
        while let Some(repetition) = repetitions.next() {
            let (done, of) = repetitions.progress();
            report.progress("measure", done, of)?;
            let before = Counters::now()?;
            let served = serve(context, &mut running, &mut feeding, Turn::Measured(repetition))?;
            let read = Counters::now()?.since(&before).read_bytes;
            counted.add(&served);
            repetitions.add(served.seconds);
            smallest = served.waves.iter().map(shortest).fold(smallest, f64::min);
            sample(context, ImpactMetric::Ttft, repetition, served.ttft_seconds())?;
            sample(context, ImpactMetric::Throughput, repetition, served.tokens_per_second())?;
            if let Some(rate) = served.decode_tokens_per_second() {
                sample(context, ImpactMetric::Decode, repetition, rate)?;
            }
            if let Some(bytes) = read {
                sample(context, ImpactMetric::BytesRead, repetition, bytes as f64)?;
            }
        }
        let seen = observing.finish(context)?;
        let (other_peaks, other_anonymous) = running.elsewhere();
        let peak = seen.peak().max(loaded.total) + other_peaks;
        sample(context, ImpactMetric::PeakResident, context.process, peak as f64)?;
        seen.peak_of(ImpactMetric::PeakAnonymous.name(), None, |reading| reading.anonymous + other_anonymous)?;
        common::check_resolution(context, smallest)?;
        if arm == Arm::Optimized {
            counted.report(&running, report)?;
        }
        compare(context, arm, &package, &mut running, &mut feeding)?;
        drop(running);
        if arm == Arm::Optimized {
            say_what_acted(context, &package)?;
        }
        Ok(())
    }
}

/// One queue of the cell's sequences.
fn serve(context: &Context, running: &mut Running, feeding: &mut Feeding, turn: Turn) -> Result<Served> {
    let (prompter, mut tokens) = feeding.turn(turn)?;
    let prompts = prompter.prompts()?;
    let generate = context.cell.workload.generate_tokens as usize;
    running.serve(&prompts, generate, &mut |_, _, chosen| next(&mut tokens, chosen))
}

/// What is fed where this token was chosen.
fn next(tokens: &mut Tokens, chosen: u32) -> u32 {
    tokens.after(&mut vec![chosen]).first().copied().unwrap_or(chosen)
}

fn shortest(wave: &crate::engine::serving::Wave) -> f64 {
    let step = if wave.steps == 0 { f64::INFINITY } else { wave.decode_seconds / wave.steps as f64 };
    // Between stretches in which none begins there is next to nothing to time.
    if wave.began == 0 { step } else { wave.prefill_seconds.min(step) }
}

fn sample(context: &Context, metric: ImpactMetric, repetition: u32, value: f64) -> Result<()> {
    context.report.samples(metric.name(), repetition, vec![value])
}

/// The first baseline process leaves its answers behind; the first optimized one is held against them.
fn compare(context: &Context, arm: Arm, package: &Package, running: &mut Running, feeding: &mut Feeding) -> Result<()> {
    let Some(folder) = context.reference.filter(|_| context.process < 2) else { return Ok(()) };
    context.report.phase("answers")?;
    let generate = context.cell.workload.generate_tokens as usize;
    match arm {
        Arm::Baseline => {
            let (prompter, mut tokens) = feeding.turn(Turn::Measured(0))?;
            let prompts = prompter.prompts()?;
            let feed = &mut |_: usize, _: usize, chosen: u32| next(&mut tokens, chosen);
            answers::record(running, package, &prompts, generate, feed, folder)
        }
        Arm::Optimized => {
            let prompts = feeding.turn(Turn::Measured(0))?.0.prompts()?;
            match answers::compare(running, package, prompts, folder) {
                Ok(figures) => figures.report(context.report),
                Err(error) if error.root_kind() == crate::error::Kind::Unsupported => {
                    context.report.warning(format!("answers were not compared: {}", error.chain()))
                }
                Err(error) => Err(error),
            }
        }
    }
}

/// What shows that the techniques acted: knobs, what derivations said, and what each technique examines.
fn say_what_acted(context: &Context, package: &Package) -> Result<()> {
    let (cell, report) = (context.cell, context.report);
    let arms = optimizations::arms(cell)?;
    let (turned, baseline) = arms.turned(cell);
    for (name, words) in [("impact_knobs", turned), ("impact_baseline_knobs", baseline)] {
        if !words.is_empty() {
            report.fact(name, words)?;
        }
    }
    for (name, value) in context.evidence {
        report.fact(name, value.clone())?;
    }
    let first = context.process == 1;
    for switched in cell.optimizations.iter().flat_map(|plan| &plan.switched).filter(|_| first) {
        let (technique, options) = optimizations::known(switched)?;
        let exam = Examination { runtime: context.runtime, cell, setup: context.setup, package, report };
        report.phase("examine")?;
        for (name, value) in technique.examine(&exam, &options)? {
            report.fact(&name, value)?;
        }
    }
    Ok(())
}

/// Why nothing can be compared.
fn lost(cause: &str) -> Error {
    Error::unsupported(format!("the baseline's answers {cause}"))
}
