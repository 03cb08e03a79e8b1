//! What is asked of the category `power`: which meter, how long its blocks are.

use serde::{Deserialize, Serialize};

named_enum! {
    /// Where figures of energy come from, in the order in which they are preferred for a processor.
    PowerSource {
        /// The processor's own counters, as Linux's powercap shows them (Intel, and AMD since family 17h).
        Rapl => "rapl",
        /// AMD's counters, as the hwmon driver `amd_energy` shows them.
        AmdEnergy => "amd_energy",
        /// An NVIDIA GPU's counter, or where it has none its sampled power.
        Nvml => "nvml",
        /// Sensors of power, sampled.
        Hwmon => "hwmon",
        /// The battery of a machine that runs on it: the whole machine, sampled.
        Battery => "battery",
        /// Seconds of the processor times a stated wattage: no measurement.
        Estimate => "estimate",
    }
}

/// How a cell's energy is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PowerPlan {
    /// The source asked for; `None` takes the best that the machine has.
    pub source: Option<PowerSource>,
    /// Sensors of hwmon that are summed, as `driver/label`; empty takes those whose meaning is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rails: Vec<String>,
    /// Watts of one busy logical processor, for the estimate; `None` allows none.
    pub estimate_watts_per_cpu: Option<f64>,
    /// Seconds over which idle power is measured before each block.
    pub idle_seconds: f64,
    /// Blocks of each phase.
    pub blocks: u32,
    /// The shortest block, in seconds; a slow meter makes it longer.
    pub min_block_seconds: f64,
    /// The longest that a block is made for a slow meter's sake, in seconds.
    pub max_block_seconds: f64,
}

impl Default for PowerPlan {
    fn default() -> Self {
        Self {
            source: None,
            rails: Vec::new(),
            estimate_watts_per_cpu: None,
            idle_seconds: 5.0,
            blocks: 5,
            min_block_seconds: 1.0,
            max_block_seconds: 60.0,
        }
    }
}
