//! The measurements behind the simulation, and the run that it is held against.

use std::path::Path;

use super::costs::{self, Costs, Task, TensorParallel};
use super::simulator::{Busy, Link, Outcome, simulate};
use super::{Options, Told};
use crate::engine::serving::{Served, greedy};
use crate::engine::stages::{Phase, Pipeline, Stages, Times, Timing, Via, namespaces_permitted};
use crate::engine::{Plan, Prompt, Prompter};
use crate::error::{Error, Result};
use crate::optimizations::{Evidence, Examination};
use crate::stats::{Summary, median};

/// Tokens that a calibration generates, at most.
const CALIBRATION: usize = 24;

/// Rounds of a calibration and the run that it predicts, each with stages that were started for it; medians count. In
/// turns, so that a machine that is slower for a while is so for both.
const ROUNDS: usize = 3;

/// Groups for each stage in a calibration that keeps all of them busy.
const QUEUE: usize = 2;

/// Measures what the parts take, simulates, and holds two stages against two processes, which run this program.
///
/// # Errors
/// Stages that cannot be started or fail.
pub fn examine_with(exam: &Examination, options: &Options, program: &Path) -> Result<Evidence> {
    let told = Told::of(options);
    let prompts = Prompter::open(exam.package, &exam.cell.workload)?.prompts()?;
    let generate = exam.cell.workload.generate_tokens as usize;
    let bench = Bench { exam, program, prompts, generate };
    let mut evidence = Evidence::new();
    let mut hop = 0.0;
    if !told.tensor {
        let via = match (options.text("link"), namespaces_permitted()) {
            ("namespace", _) | ("auto", Ok(())) => Via::Namespace,
            ("auto", Err(reason)) => {
                exam.report.warning(format!("the simulation is checked over a shaper: {}", reason.chain()))?;
                Via::Shaper
            }
            _ => Via::Shaper,
        };
        let check = bench.check(&told.stages(via))?;
        hop = check.hop();
        check.report(&mut evidence);
    }
    exam.report.phase("simulate")?;
    bench.simulate(&told, hop, &mut evidence)?;
    Ok(evidence)
}

struct Bench<'a> {
    exam: &'a Examination<'a>,
    program: &'a Path,
    prompts: Vec<Prompt>,
    generate: usize,
}

impl Bench<'_> {
    fn plan(&self, stages: &Stages, sequences: usize) -> Plan {
        Plan {
            stages: Some(stages.clone()),
            micro_batch: None,
            sequences: sequences as u32,
            ..self.exam.setup.plan.clone()
        }
    }

    fn load(&self, stages: &Stages, sequences: usize, apart: bool) -> Result<Pipeline> {
        let Examination { runtime, setup, package, .. } = self.exam;
        let load = if apart { Pipeline::load_apart } else { Pipeline::load_with };
        load(runtime, package, &setup.backend, &self.plan(stages, sequences), self.program)
    }

    /// So many prompts; the cell's again where it has fewer.
    fn some(&self, count: usize) -> Vec<Prompt> {
        self.prompts.iter().cycle().take(count).cloned().collect()
    }

    fn task(&self, sizes: Vec<usize>, generate: usize) -> Task {
        let prompt = self.prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        Task { sizes, prompt, generate }
    }

    /// Serves so many prompts, all in one group or in several; times are those of this run.
    fn serve(
        &self,
        pipeline: &mut Pipeline,
        count: usize,
        groups: usize,
        generate: usize,
    ) -> Result<(Served, Vec<Times>)> {
        pipeline.set_micro_batches(groups as u32);
        pipeline.times()?;
        let served = pipeline.serve(&self.some(count), generate, &mut greedy)?;
        let times = pipeline.times()?.into_iter().map(|(times, _)| times).collect();
        Ok((served, times))
    }

    /// Devices that are as fast as this machine, each with all of the cell's threads.
    fn simulate(&self, told: &Told, hop: f64, evidence: &mut Evidence) -> Result<()> {
        let batch = self.prompts.len();
        let one = Stages { count: 1, bandwidth: None, latency: 0.0, via: Via::Shaper, micro_batches: 1, borders: None };
        let sizes = Stages { micro_batches: told.micro_batches, ..one.clone() }.group_sizes(batch);
        let mut pipeline = self.load(&one, batch, true)?;
        let mut all = sizes.clone();
        all.push(batch);
        all.sort_unstable();
        all.dedup();
        let calibration = self.generate.min(CALIBRATION);
        let mut times: Times = Vec::new();
        self.serve(&mut pipeline, batch, 1, calibration.min(2))?;
        for size in &all {
            let (_, run) = self.serve(&mut pipeline, *size, 1, calibration)?;
            times.extend(run.into_iter().flatten());
        }
        drop(pipeline);
        let costs = Costs::of(&times);
        let task = self.task(sizes, self.generate);
        let alone = costs.of_batch(batch, self.generate)?.0;
        let link = |hop: f64| Link { bandwidth: told.bandwidth.unwrap_or(f64::INFINITY), latency: told.latency + hop };
        let (outcome, border) = if told.tensor {
            let layers = self.layers()?;
            let hidden_bytes = (self.exam.package.manifest.shape.hidden_size * size_of::<f32>() as u64) as f64;
            let ring = TensorParallel { devices: told.devices, link: link(0.0), hidden_bytes };
            (ring.simulate(&costs, &layers, batch, &task)?, hidden_bytes * batch as f64)
        } else {
            let cut = costs::balanced(&costs, &task, told.devices)?;
            let pipeline = costs::apart(&costs, &task, &cut, link(hop))?;
            let bytes = pipeline.groups.iter().flat_map(|group| group.step.bytes.iter().copied());
            let border = if told.devices > 1 { bytes.fold(0.0, f64::max) } else { 0.0 };
            (simulate(&pipeline), border)
        };
        let mut put = |name: &str, value: f64| evidence.insert(format!("simulated_{name}"), value.into());
        put("tokens_per_second", outcome.tokens_per_second());
        put("ttft_seconds", median(&outcome.first_token));
        put("speedup", alone / outcome.seconds);
        put("bubble_share", outcome.bubble_share());
        put("link_share", outcome.link_utilisation());
        evidence.insert("simulated_border_bytes".to_owned(), (border.round() as u64).into());
        evidence.insert("simulated_devices".to_owned(), (told.devices as u64).into());
        evidence.insert("simulated_only".to_owned(), (!told.is_real()).into());
        let parallel = if told.tensor { "tensor" } else { "pipeline" };
        evidence.insert("simulated_parallel".to_owned(), parallel.to_owned().into());
        Ok(())
    }

    /// Which parts are layers.
    fn layers(&self) -> Result<Vec<bool>> {
        let index = self.exam.package.shards()?.ok_or_else(|| Error::new("only packs are examined; this is a bug"))?;
        Ok(index.segments.iter().map(|segment| segment.layer.is_some()).collect())
    }

    /// Predicts what two processes do over such a link, and runs them.
    fn check(&self, stages: &Stages) -> Result<Check> {
        let mut rounds = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            self.exam.report.progress("check", round as u64, ROUNDS as u64)?;
            rounds.push((self.predict(stages)?, self.measure(stages)?));
        }
        Ok(Check { via: stages.via, rounds })
    }

    /// What two processes would do over such a link, from what they do over one without limits.
    fn predict(&self, stages: &Stages) -> Result<Predicted> {
        let sizes = stages.group_sizes(self.prompts.len());
        let calibration = self.generate.min(CALIBRATION);
        let free = Stages { bandwidth: None, latency: 0.0, via: Via::Shaper, ..stages.clone() };
        let count = stages.count as usize;
        let queue = QUEUE * count;
        let largest = sizes.iter().copied().max().unwrap_or(1);
        let mut pipeline = self.load(&free, queue * largest, false)?;
        self.serve(&mut pipeline, largest, 1, calibration.min(2))?;
        // One group alone: one stage computes at a time.
        let mut alone: Vec<Times> = vec![Vec::new(); count];
        let mut distinct = sizes.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let mut hop = 0.0;
        for size in &distinct {
            let (served, times) = self.serve(&mut pipeline, *size, 1, calibration)?;
            if calibration > 1 {
                let round = served.waves.iter().map(|wave| wave.decode_seconds).sum::<f64>() / (calibration - 1) as f64;
                let computing: f64 =
                    times.iter().flatten().filter(|timing| timing.phase == Phase::Step).map(per_run).sum();
                hop = ((round - computing) / count as f64).max(0.0);
            }
            alone.iter_mut().zip(times).for_each(|(all, times)| all.extend(times));
        }
        // More groups than stages: all of them compute, most of the time.
        self.serve(&mut pipeline, queue * largest, queue, calibration.min(2))?;
        let (_, times) = self.serve(&mut pipeline, queue * largest, queue, calibration)?;
        let measured: Vec<Busy> = times.iter().map(busy).collect();
        let stage_bytes = pipeline.facts().iter().map(|facts| facts.resident_bytes).max().unwrap_or(0);
        let alone = alone.iter().map(Costs::of).collect();
        let unlimited = Link { bandwidth: f64::INFINITY, latency: hop };
        let together = costs::Stages::fit(alone, &self.task(vec![largest; queue], calibration), unlimited, &measured)?;
        let link = Link { bandwidth: stages.bandwidth.unwrap_or(f64::INFINITY), latency: stages.latency + hop };
        let outcome = simulate(&together.pipeline(&self.task(sizes, self.generate), link)?);
        let slowdown = together.slow.iter().map(|slow| slow[1]).fold(1.0, f64::max);
        Ok(Predicted { outcome, hop, slowdown, stage_bytes })
    }

    /// What they do.
    fn measure(&self, stages: &Stages) -> Result<Measured> {
        let batch = self.prompts.len();
        let groups = stages.group_sizes(batch).len();
        let mut pipeline = self.load(stages, batch, false)?;
        self.serve(&mut pipeline, batch, groups, self.generate.min(2))?;
        let (served, times) = self.serve(&mut pipeline, batch, groups, self.generate)?;
        let busy: f64 = times.iter().map(|times| busy(times).all()).sum();
        Ok(Measured {
            seconds: served.seconds,
            first: served.ttft_seconds(),
            bubbles: 1.0 - busy / (served.seconds * f64::from(stages.count)),
        })
    }
}

/// A prediction, and what it is made of.
struct Predicted {
    outcome: Outcome,
    /// Seconds of a message over a link without limits.
    hop: f64,
    /// Of a step while the other stage computes.
    slowdown: f64,
    /// What the largest stage's process holds.
    stage_bytes: u64,
}

/// What it is held against.
struct Measured {
    seconds: f64,
    first: f64,
    bubbles: f64,
}

struct Check {
    via: Via,
    rounds: Vec<(Predicted, Measured)>,
}

impl Check {
    /// Of all rounds.
    fn all(&self, of: impl Fn(&Predicted, &Measured) -> f64) -> Vec<f64> {
        self.rounds.iter().map(|(predicted, measured)| of(predicted, measured)).collect()
    }

    fn median(&self, of: impl Fn(&Predicted, &Measured) -> f64) -> f64 {
        median(&self.all(of))
    }

    /// Seconds of a message over a link without limits.
    fn hop(&self) -> f64 {
        self.median(|predicted, _| predicted.hop)
    }

    fn report(&self, evidence: &mut Evidence) {
        let predicted = self.median(|predicted, _| predicted.outcome.tokens_per_second());
        let measured = self.median(|predicted, measured| predicted.outcome.tokens as f64 / measured.seconds);
        let errors = self.all(|predicted, measured| percent(measured.seconds, predicted.outcome.seconds));
        let predicted_first = self.median(|predicted, _| median(&predicted.outcome.first_token));
        let first = self.median(|_, measured| measured.first);
        let mut put = |name: &str, value: f64| evidence.insert(format!("simulation_{name}"), value.into());
        put("predicted_tokens_per_second", predicted);
        put("measured_tokens_per_second", measured);
        put("error_percent", percent(predicted, measured));
        if let Some(errors) = Summary::of(&errors) {
            put("error_low_percent", errors.min);
            put("error_high_percent", errors.max);
        }
        put("predicted_ttft_seconds", predicted_first);
        put("measured_ttft_seconds", first);
        put("ttft_error_percent", percent(predicted_first, first));
        put("predicted_bubble_share", self.median(|predicted, _| predicted.outcome.bubble_share()));
        put("measured_bubble_share", self.median(|_, measured| measured.bubbles));
        put("slowdown", self.median(|predicted, _| predicted.slowdown));
        put("hop_seconds", self.hop());
        evidence.insert("simulation_link".to_owned(), self.via.name().to_owned().into());
        let stage_bytes = self.rounds.iter().map(|(predicted, _)| predicted.stage_bytes).max().unwrap_or(0);
        evidence.insert("stage_peak_bytes".to_owned(), stage_bytes.into());
    }
}

/// By how much a figure is more than another one.
fn percent(predicted: f64, measured: f64) -> f64 {
    (predicted / measured - 1.0) * 100.0
}

/// Seconds of one run.
fn per_run(timing: &Timing) -> f64 {
    timing.part_seconds().iter().sum::<f64>() + timing.around_seconds()
}

/// Seconds of all runs.
fn busy(times: &Times) -> Busy {
    let of = |phase: Phase| {
        let runs = times.iter().filter(|timing| timing.phase == phase);
        runs.map(|timing| timing.parts.iter().sum::<f64>() + timing.around).sum()
    };
    Busy { prefill: of(Phase::Prefill), step: of(Phase::Step) }
}
