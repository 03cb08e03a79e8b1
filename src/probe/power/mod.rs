//! Meters of energy: one file a source, one table of all ([`registry`]), one thread that reads what was chosen
//! ([`Monitor`]).
//!
//! A meter is a counter of energy or a gauge of power. [`account`] makes joules of both: a counter's differences,
//! modulo its range, and the trapezoids under a gauge's readings.

mod account;
mod amd_energy;
mod battery;
mod calibration;
mod estimate;
mod files;
mod hwmon;
mod monitor;
mod nvml;
mod rapl;
pub mod registry;

use std::path::PathBuf;

pub use calibration::{Calibration, Uncalibrated};
pub use monitor::{Mark, Monitor, Overhead, Span};

use crate::cell::PowerSource;
use crate::error::Result;

/// Something whose energy can be read.
pub trait Meter: Send {
    /// What it measures.
    fn domain(&self) -> &Domain;

    /// Reads it now.
    ///
    /// # Errors
    /// A meter that is gone, or says something that is no number. What was read before is worth nothing then, for the
    /// energy in between is unknown.
    fn read(&mut self) -> Result<Reading>;
}

/// What a meter measures.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Where the figure comes from.
    pub source: PowerSource,
    /// The domain's own name, as `package-0` or `dram of package-0`.
    pub name: String,
    /// The part of the machine.
    pub part: Part,
    /// Whether it is added up. A part of another domain, or one that contains others, is not.
    pub counted: bool,
    /// For counters that wrap: the energy after which they begin anew, in microjoules.
    pub range_microjoules: Option<u64>,
}

/// A part of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A processor's package: cores, caches, memory controller.
    Processor,
    /// The memory's modules.
    Dram,
    /// What lies within another domain: cores, an integrated GPU.
    Within,
    /// What contains other domains: the platform.
    Around,
    /// A GPU with its memory.
    Gpu,
    /// The whole machine.
    Machine,
}

/// What a meter says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// A counter of energy, in microjoules.
    Microjoules(u64),
    /// A gauge of power, in watts.
    Watts(f64),
}

impl Part {
    /// A power, in watts, that the part does not exceed: how fast its counter may run at most. Several times what the
    /// largest parts sold draw.
    pub fn most_watts(self) -> f64 {
        match self {
            Self::Dram => 500.0,
            Self::Processor | Self::Within => 2000.0,
            Self::Gpu | Self::Around | Self::Machine => 5000.0,
        }
    }
}

impl Domain {
    /// The longest time between two readings in which the counter cannot have begun anew twice, in seconds; `None` for
    /// what does not wrap. Half of what the formula gives, so that a late reading is no loss.
    pub fn longest_gap_seconds(&self) -> Option<f64> {
        self.range_microjoules.map(|range| range as f64 / 1e6 / self.part.most_watts() / 2.0)
    }
}

/// Where a machine's sensors are looked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Sensors of hwmon that were asked for by name, as `driver/label`.
    pub rails: Vec<String>,
    /// The NVIDIA GPU of the cell, by the index that its provider has for it.
    pub gpu: Option<u32>,
}

/// The environment variable that names another root for sysfs, so that tests can lay out a machine's sensors.
pub const SYSFS_VARIABLE: &str = "ORTBENCH_SYSFS";

impl Place {
    /// This machine, as the environment variable has it where it is set.
    pub fn here() -> Self {
        let sysfs = std::env::var_os(SYSFS_VARIABLE).map_or_else(|| PathBuf::from("/sys"), PathBuf::from);
        Self { sysfs, rails: Vec::new(), gpu: None }
    }
}
