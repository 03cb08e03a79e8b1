//! From blocks to the figures that `metrics` names.

use super::blocks::{self, Block};
use crate::categories::Context;
use crate::cell::{PowerPlan, PowerSource};
use crate::error::Result;
use crate::probe::power::{Monitor, Part};
use crate::units::significant;

/// Parts of the machine that have columns of their own.
const PARTS: [(&str, Part); 3] = [("processor", Part::Processor), ("dram", Part::Dram), ("gpu", Part::Gpu)];

/// Readings without a pause, to see what one takes: at most so many seconds.
const BURST_SECONDS: f64 = 2.0;

/// Work whose figures have columns of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// How its columns begin.
    name: &'static str,
    /// What a unit of it is.
    unit: &'static str,
}

impl Phase {
    /// A language model's first pass over a prompt.
    pub const PREFILL: Self = Self { name: "prefill", unit: "token" };
    /// A language model's steps after it.
    pub const DECODE: Self = Self { name: "decode", unit: "token" };
    /// Runs of any graph.
    pub const GRAPH: Self = Self { name: "graph", unit: "run" };
}

/// Sends figures, and remembers what facts are made of.
pub struct Report<'a> {
    context: &'a Context<'a>,
    monitor: &'a Monitor,
    /// The sum of each phase's blocks.
    sums: Vec<(Phase, Block)>,
    idle_watts: Vec<f64>,
    /// Joules and seconds of reading without a pause, and the number of readings.
    burst: Option<(f64, f64, u64)>,
}

impl<'a> Report<'a> {
    pub fn new(context: &'a Context<'a>, monitor: &'a Monitor) -> Self {
        Self { context, monitor, sums: Vec::new(), idle_watts: Vec::new(), burst: None }
    }

    /// Says which meters serve, and how well.
    ///
    /// # Errors
    /// A meter that broke, a parent that no longer listens.
    pub fn meters(&mut self, plan: &PowerPlan) -> Result<()> {
        let (monitor, report) = (self.monitor, self.context.report);
        let counted: Vec<_> = monitor.domains().iter().filter(|domain| domain.counted).collect();
        let mut sources: Vec<PowerSource> = Vec::new();
        counted.iter().for_each(|domain| {
            if !sources.contains(&domain.source) {
                sources.push(domain.source);
            }
        });
        let sources: Vec<_> = sources.iter().map(|source| source.name()).collect();
        let names: Vec<_> = counted.iter().map(|domain| domain.name.as_str()).collect();
        report.fact("power_source", sources.join(" + "))?;
        report.fact("power_counted", names.join(", "))?;
        if monitor.is_estimate() {
            let watts = plan.estimate_watts_per_cpu.unwrap_or(0.0);
            return report.fact("power_estimate_watts_per_cpu", watts);
        }
        let update = monitor.calibration().update_seconds;
        report.fact("power_update_seconds", update)?;
        report.fact("power_sampling_seconds", monitor.sampling_seconds())?;
        report.fact("power_peak_window_seconds", monitor.peak_window_seconds())?;
        let seconds = blocks::UPDATES * update;
        if seconds <= BURST_SECONDS {
            let (reads, span) = monitor.burst(seconds)?;
            self.burst = Some((span.joules, span.seconds, reads));
        }
        Ok(())
    }

    /// Sends the figures of one block; their names begin with the phase's, and `metrics` must know them.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn block(&mut self, phase: Phase, number: u32, block: &Block) -> Result<()> {
        let sample = |name: String, value: f64| self.context.report.samples(&name, number, vec![value]);
        let Phase { name: of, unit } = phase;
        sample(format!("{of}_block_seconds"), block.seconds)?;
        if let Some(idle) = block.idle_watts {
            sample(format!("{of}_idle_power_watts"), idle)?;
            self.idle_watts.push(idle);
        }
        let figures = [
            (format!("energy_joules_per_{unit}"), Some(block.joules_per_unit())),
            (format!("energy_above_idle_joules_per_{unit}"), block.joules_above_idle_per_unit()),
            (format!("{unit}s_per_joule"), Some(block.units_per_joule())),
            ("power_watts".to_owned(), Some(block.watts())),
            ("peak_power_watts".to_owned(), block.idle_watts.map(|_| block.peak_watts)),
            ("energy_delay_product_joule_seconds".to_owned(), Some(block.energy_delay_product())),
        ];
        // What is estimated has no place among what is measured.
        let prefix = if self.monitor.is_estimate() { "estimated_" } else { "" };
        for (name, value) in figures {
            if let Some(value) = value {
                sample(format!("{prefix}{of}_{name}"), value)?;
            }
        }
        match self.sums.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, sum)) => sum.join(block),
            None => self.sums.push((phase, block.clone())),
        }
        Ok(())
    }

    /// Sends what all blocks tell together.
    ///
    /// # Errors
    /// A parent that no longer listens.
    pub fn finish(&self) -> Result<()> {
        let (monitor, report) = (self.monitor, self.context.report);
        if monitor.is_estimate() {
            return Ok(());
        }
        for (Phase { name: phase, unit }, sum) in &self.sums {
            for (name, part) in PARTS {
                if let Some(joules) = sum.joules_per_unit_of(part, monitor) {
                    report.fact(&format!("{phase}_{name}_joules_per_{unit}"), joules)?;
                }
            }
        }
        report.fact("power_domains", self.domains())?;
        if let Some(overhead) = monitor.overhead() {
            report.fact("power_read_seconds", overhead.read_seconds)?;
            report.fact("power_sampler_cpu_share", overhead.cpu_share)?;
        }
        if let Some((joules, seconds, reads)) = self.burst {
            let idle = self.idle_watts.iter().sum::<f64>() / self.idle_watts.len().max(1) as f64;
            let of_a_reading = (joules - idle * seconds) / reads.max(1) as f64;
            report.fact("power_sampler_watts", of_a_reading / monitor.sampling_seconds())?;
        }
        for lost in monitor.lost() {
            report.warning(format!("a meter beside those that are counted failed: {lost}"))?;
        }
        Ok(())
    }

    /// Every domain with its mean power in each phase.
    fn domains(&self) -> String {
        let place_of = |place: usize| {
            let watts = self.sums.iter().map(|(Phase { name: phase, .. }, sum)| {
                let watts = sum.by_domain.get(place).copied().unwrap_or(0.0) / sum.seconds;
                format!("{phase} {} W", significant(watts, 3))
            });
            watts.collect::<Vec<_>>().join(", ")
        };
        let describe = |(place, domain): (usize, &crate::probe::power::Domain)| {
            let beside = if domain.counted { "" } else { ", not counted" };
            format!("{}: {}{beside}", domain.name, place_of(place))
        };
        self.monitor.domains().iter().enumerate().map(describe).collect::<Vec<_>>().join("; ")
    }
}
