//! A model over several devices: simulated from what its parts take here, and held against a pipeline of two real
//! processes.
//!
//! What is measured and what is simulated stands in columns of their own: `simulated_*` is of the devices that were asked
//! for, `simulation_*` of two stages, predicted and run. `simulated_only` says that no arm was run as it was simulated:
//! arms are two processes for a pipeline of two devices, and otherwise both of them the model in one process.

pub mod costs;
mod examine;
pub mod simulator;

pub use examine::examine_with;

use super::options::{OptionKind, OptionSpec, Options};
use super::pack::PackStep;
use super::setup::{Setup, Subject};
use super::{Evidence, Examination, Optimization};
use crate::cell::{ImpactMetric, Residency, Technique};
use crate::engine::stages::{Stages, Via};
use crate::error::{Context, Error, Result};
use crate::runtime::providers::{self, Computes};

/// The technique.
pub struct DistributedSimulation;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "devices",
        kind: OptionKind::Count(1, 1024),
        default: "2",
        description: "Devices. A pipeline of two is also run, by two processes; every other number is simulated only.",
    },
    OptionSpec {
        name: "parallel",
        kind: OptionKind::Words(&["pipeline", "tensor"]),
        default: "pipeline",
        description: "How the model is shared out: some layers to each device, or some of each layer (simulated only).",
    },
    OptionSpec {
        name: "bandwidth",
        kind: OptionKind::NumberOr("unlimited"),
        default: "10",
        description: "Gbit/s of the link from each device to the next one.",
    },
    OptionSpec {
        name: "latency",
        kind: OptionKind::NumberOr("none"),
        default: "0.1",
        description: "Milliseconds that a message is under way, besides.",
    },
    OptionSpec {
        name: "micro_batches",
        kind: OptionKind::CountOr("auto", 1, 1 << 16),
        default: "auto",
        description: "Groups of sequences that are under way at once; `auto` is one for each device.",
    },
    OptionSpec {
        name: "link",
        kind: OptionKind::Words(&["auto", "shaper", "namespace"]),
        default: "auto",
        description: "Who slows the real link down: whoever sends, or the kernel in a network namespace. `auto` compares \
                      the arms over the sender's, and checks the simulation over the kernel's where that is permitted.",
    },
];

/// What the options say.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    devices: usize,
    tensor: bool,
    /// Bytes a second.
    bandwidth: Option<f64>,
    /// Seconds.
    latency: f64,
    micro_batches: u32,
}

impl Told {
    fn of(options: &Options) -> Self {
        let devices = options.count("devices").unwrap_or(2);
        Self {
            devices: devices as usize,
            tensor: options.is("parallel", "tensor"),
            bandwidth: options.number("bandwidth").map(|gigabits| gigabits * 1e9 / 8.0),
            latency: options.number("latency").unwrap_or(0.0) / 1e3,
            micro_batches: options.count("micro_batches").unwrap_or(devices),
        }
    }

    /// Whether there is an arm that runs that way.
    fn is_real(&self) -> bool {
        self.devices == 2 && !self.tensor
    }

    /// Two stages over such a link.
    fn stages(&self, via: Via) -> Stages {
        Stages {
            count: 2,
            bandwidth: self.bandwidth,
            latency: self.latency,
            via,
            micro_batches: self.micro_batches,
            borders: None,
        }
    }
}

impl Optimization for DistributedSimulation {
    fn technique(&self) -> Technique {
        Technique::DistributedSimulation
    }

    fn summary(&self) -> &'static str {
        "The model runs over several devices: simulated from what its parts take, checked against two real processes."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::Throughput
    }

    fn check(&self, subject: &Subject, options: &Options) -> Result<()> {
        let told = Told::of(options);
        let (cell, layers) = (subject.cell, subject.manifest.shape.layers);
        if providers::of(cell.backend.provider).computes() != Computes::Host {
            return Err(Error::unsupported("its stages compute in the host's memory, and not on a GPU"));
        }
        if cell.workload.image.is_some() {
            return Err(Error::unsupported("its stages take no images"));
        }
        if cell.threads < 2 {
            return Err(Error::unsupported("two stages need a thread each, and the cell has one")
                .hint("give the cell at least two threads"));
        }
        let most = if told.tensor { subject.manifest.shape.attention_heads } else { layers };
        if told.devices as u64 > most {
            let what = if told.tensor { "attention heads" } else { "layers" };
            return Err(Error::unsupported(format!("{} devices cannot share {most} {what}", told.devices)));
        }
        if options.is("link", "namespace") && !told.is_real() {
            return Err(Error::unsupported("what is simulated only has no link of a network namespace")
                .hint("leave `link` out, or take a pipeline of two devices"));
        }
        Ok(())
    }

    fn baseline(&self, setup: &mut Setup, subject: &Subject, _options: &Options) -> Result<()> {
        PackStep::page(setup, subject, Residency::Resident);
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        PackStep::page(setup, subject, Residency::Resident);
        let told = Told::of(options);
        if told.is_real() {
            let via = if options.is("link", "namespace") { Via::Namespace } else { Via::Shaper };
            setup.plan.stages = Some(told.stages(via));
        }
        Ok(())
    }

    fn examine(&self, exam: &Examination, options: &Options) -> Result<Evidence> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        examine_with(exam, options, &program)
    }
}

#[cfg(test)]
mod tests;
