//! From what was measured of a model's parts to what is simulated.

use std::collections::BTreeMap;

use super::simulator::{Busy, Group, Link, Outcome, Pipeline, Run, Work, simulate};
use crate::engine::stages::{Cut, Phase, Times, Timing, balance};
use crate::error::{Error, Result};

/// Bytes of an answer, and of each of its tokens.
const ANSWER: f64 = 28.0;
const TOKEN: f64 = 4.0;

/// What one run of a model's parts takes.
#[derive(Debug, Clone, PartialEq)]
pub struct PartCosts {
    /// Seconds of each part.
    pub parts: Vec<f64>,
    /// Seconds beside them.
    pub around: f64,
    /// Bytes that cross the border after each.
    pub handed: Vec<f64>,
}

impl PartCosts {
    fn of(timing: &Timing) -> Self {
        Self {
            parts: timing.part_seconds(),
            around: timing.around_seconds(),
            handed: timing.handed.iter().map(|bytes| *bytes as f64).collect(),
        }
    }

    /// All parts, and what is beside them.
    pub fn seconds(&self) -> f64 {
        self.parts.iter().sum::<f64>() + self.around
    }

    /// Between two of them, `share` of the way to the other.
    fn between(&self, other: &Self, share: f64) -> Self {
        let mix = |a: f64, b: f64| a + (b - a) * share;
        let all = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| mix(*a, *b)).collect();
        Self {
            parts: all(&self.parts, &other.parts),
            around: mix(self.around, other.around),
            handed: all(&self.handed, &other.handed),
        }
    }
}

/// What runs of several numbers of sequences take.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Costs {
    runs: BTreeMap<(Phase, usize), PartCosts>,
}

impl Costs {
    /// What was measured.
    pub fn of(times: &Times) -> Self {
        Self { runs: times.iter().map(|timing| ((timing.phase, timing.sequences), PartCosts::of(timing))).collect() }
    }

    /// Of a run of so many sequences: as measured, or on the line between the next smaller and the next larger number
    /// that were.
    ///
    /// # Errors
    /// A number beyond those that were measured.
    pub fn at(&self, phase: Phase, sequences: usize) -> Result<PartCosts> {
        let below = self.runs.range((phase, 0)..=(phase, sequences)).next_back();
        let above = self.runs.range((phase, sequences)..=(phase, usize::MAX)).next();
        match (below, above) {
            (Some(((_, low), a)), Some(((_, high), b))) => {
                let share = if low == high { 0.0 } else { (sequences - low) as f64 / (high - low) as f64 };
                Ok(a.between(b, share))
            }
            _ => Err(Error::new(format!("nothing was measured of runs of {sequences} sequences; this is a bug"))),
        }
    }

    /// Seconds of a batch on one device, and to its first tokens.
    ///
    /// # Errors
    /// As [`Costs::at`].
    pub fn of_batch(&self, sequences: usize, generate: usize) -> Result<(f64, f64)> {
        let prefill = self.at(Phase::Prefill, sequences)?.seconds();
        let steps = generate.saturating_sub(1) as f64;
        let step = if generate > 1 { self.at(Phase::Step, sequences)?.seconds() } else { 0.0 };
        Ok((prefill + steps * step, prefill))
    }
}

/// What is asked of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Sequences of each group.
    pub sizes: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that each sequence gets.
    pub generate: usize,
}

/// The cut of a model's parts over so many devices that makes the slowest of them as fast as can be, over the whole of
/// the task.
///
/// # Errors
/// Fewer parts than devices.
pub fn balanced(costs: &Costs, task: &Task, devices: usize) -> Result<Cut> {
    let size = task.sizes.iter().copied().max().unwrap_or(1);
    let mut all = costs.at(Phase::Prefill, size)?.parts;
    let steps = task.generate.saturating_sub(1) as f64;
    if steps > 0.0 {
        let step = costs.at(Phase::Step, size)?.parts;
        all.iter_mut().zip(step).for_each(|(sum, step)| *sum += steps * step);
    }
    balance(&all, devices).ok_or_else(|| {
        Error::unsupported(format!("the model has {} parts, which are too few for {devices} devices", all.len()))
    })
}

/// A pipeline of devices that have a machine each, as fast as the one that was measured.
///
/// # Errors
/// As [`Costs::at`].
pub fn apart(costs: &Costs, task: &Task, cut: &Cut, link: Link) -> Result<Pipeline> {
    let devices = cut.len();
    let run = |phase: Phase, sequences: usize, ids: usize| -> Result<Run> {
        let costs = costs.at(phase, sequences)?;
        let mut work: Vec<f64> = cut.iter().map(|parts| costs.parts[parts.clone()].iter().sum()).collect();
        // Most of what is beside the parts is the choice of tokens, which the last device has.
        work[devices - 1] += costs.around;
        let ids = TOKEN * (sequences * ids) as f64;
        let mut bytes: Vec<f64> = cut.iter().map(|parts| costs.handed[parts.end - 1] + ids).collect();
        bytes[devices - 1] = answer(sequences);
        Ok(Run { work: work.into_iter().map(Work::apart).collect(), bytes })
    };
    let group = |sequences: &usize| {
        let prefill = run(Phase::Prefill, *sequences, task.prompt)?;
        let step = if task.generate > 1 { run(Phase::Step, *sequences, 1)? } else { prefill.clone() };
        Ok(Group { sequences: *sequences, prefill, step })
    };
    let groups = task.sizes.iter().map(group).collect::<Result<_>>()?;
    let links = if devices > 1 { vec![link; devices] } else { Vec::new() };
    Ok(Pipeline { groups, links, generate: task.generate })
}

/// Bytes of an answer.
fn answer(sequences: usize) -> f64 {
    ANSWER + TOKEN * sequences as f64
}

/// What was measured of the stages of a pipeline on one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Stages {
    /// Each while the others did nothing.
    pub alone: Vec<Costs>,
    /// By how much all of them slow each other down, prefill and steps of each.
    pub slow: Vec<[f64; 2]>,
}

impl Stages {
    /// The pipeline.
    ///
    /// # Errors
    /// As [`Costs::at`].
    pub fn pipeline(&self, task: &Task, link: Link) -> Result<Pipeline> {
        let last = self.alone.len() - 1;
        let run = |phase: Phase, sequences: usize, ids: usize| -> Result<Run> {
            let mut run = Run { work: Vec::new(), bytes: Vec::new() };
            for (place, (costs, slow)) in self.alone.iter().zip(&self.slow).enumerate() {
                let costs = costs.at(phase, sequences)?;
                let seconds = costs.seconds();
                let slow = slow[usize::from(phase == Phase::Step)];
                run.work.push(Work { alone: seconds, together: seconds * slow });
                let handed = costs.handed.last().copied().unwrap_or(0.0) + TOKEN * (sequences * ids) as f64;
                run.bytes.push(if place == last { answer(sequences) } else { handed });
            }
            Ok(run)
        };
        let group = |sequences: &usize| {
            let prefill = run(Phase::Prefill, *sequences, task.prompt)?;
            let step = if task.generate > 1 { run(Phase::Step, *sequences, 1)? } else { prefill.clone() };
            Ok(Group { sequences: *sequences, prefill, step })
        };
        let groups = task.sizes.iter().map(group).collect::<Result<_>>()?;
        Ok(Pipeline { groups, links: vec![link; self.alone.len()], generate: task.generate })
    }

    /// Finds by how much stages slow each other down: so that a simulation of this task has each stage compute for as long
    /// as it was measured to. How much of the time others compute as well is the simulation's to say.
    ///
    /// # Errors
    /// As [`Costs::at`].
    pub fn fit(alone: Vec<Costs>, task: &Task, link: Link, measured: &[Busy]) -> Result<Self> {
        /// More than machines are known to do.
        const MOST: f64 = 16.0;
        /// It comes near in two or three.
        const ROUNDS: usize = 12;
        let mut stages = Self { slow: vec![[1.0; 2]; alone.len()], alone };
        let free = simulate(&stages.pipeline(task, link)?).busy;
        // Something to tell the share of the time by in which others compute.
        stages.slow.iter_mut().for_each(|slow| *slow = [1.5; 2]);
        for _ in 0..ROUNDS {
            let simulated = simulate(&stages.pipeline(task, link)?).busy;
            for (place, slow) in stages.slow.iter_mut().enumerate() {
                let both = |busy: Busy| [busy.prefill, busy.step];
                let (free, simulated, measured) = (both(free[place]), both(simulated[place]), both(measured[place]));
                for phase in 0..2 {
                    if free[phase] <= 0.0 {
                        continue;
                    }
                    let (slower, wanted) = (simulated[phase] / free[phase] - 1.0, measured[phase] / free[phase] - 1.0);
                    // The share of the time in which others compute, as far as the last guess can tell.
                    let share = if slow[phase] > 1.0 { (slower / (slow[phase] - 1.0)).clamp(0.0, 1.0) } else { 1.0 };
                    slow[phase] = match share {
                        // Nobody else computes: nothing can be told, and nothing depends on it.
                        share if share < 0.02 => 1.0,
                        share => (1.0 + wanted.max(1e-3) / share).min(MOST),
                    };
                }
            }
        }
        Ok(stages)
    }
}

/// Tensor parallelism: each layer is computed by all devices, each a share of its heads and of its products' columns or
/// rows, so that its time is divided among them; after the attention and after the multilayer perceptron their sums go
/// around a ring (all-reduce, `2 (N − 1) ÷ N` of the bytes over each link, in `2 (N − 1)` messages one after the other).
/// What is before the first layer and after the last one is computed by each device in full. Transfers and computation
/// do not overlap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorParallel {
    /// Devices.
    pub devices: usize,
    /// Between neighbours of the ring.
    pub link: Link,
    /// Bytes of one token's hidden state.
    pub hidden_bytes: f64,
}

/// Rings of each layer.
const RINGS: f64 = 2.0;

impl TensorParallel {
    /// Seconds of a run over so many tokens, and those of them in which transfers are under way. `layers` says which of
    /// the parts are layers.
    pub fn run(&self, costs: &PartCosts, layers: &[bool], tokens: usize) -> (f64, f64) {
        let devices = self.devices as f64;
        let of_layers: f64 = costs.parts.iter().zip(layers).filter(|(_, layer)| **layer).map(|(part, _)| part).sum();
        let others = costs.seconds() - of_layers;
        let bytes = self.hidden_bytes * tokens as f64;
        let ring =
            2.0 * (devices - 1.0) / devices * bytes / self.link.bandwidth + 2.0 * (devices - 1.0) * self.link.latency;
        let count = layers.iter().filter(|layer| **layer).count() as f64;
        let transfers = if self.devices > 1 { RINGS * count * ring } else { 0.0 };
        (others + of_layers / devices + transfers, transfers)
    }

    /// A whole batch, whose sequences all go together.
    ///
    /// # Errors
    /// As [`Costs::at`].
    pub fn simulate(&self, costs: &Costs, layers: &[bool], sequences: usize, task: &Task) -> Result<Outcome> {
        let prefill = self.run(&costs.at(Phase::Prefill, sequences)?, layers, sequences * task.prompt);
        let steps = task.generate.saturating_sub(1) as f64;
        let step = match steps > 0.0 {
            true => self.run(&costs.at(Phase::Step, sequences)?, layers, sequences),
            false => (0.0, 0.0),
        };
        let busy = Busy { prefill: prefill.0 - prefill.1, step: steps * (step.0 - step.1) };
        Ok(Outcome {
            seconds: prefill.0 + steps * step.0,
            first_token: vec![prefill.0; sequences],
            tokens: sequences * task.generate,
            busy: vec![busy; self.devices],
            occupied: vec![prefill.1 + steps * step.1; self.devices],
        })
    }
}

#[cfg(test)]
mod tests;
