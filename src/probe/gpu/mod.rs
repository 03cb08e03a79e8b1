//! What NVIDIA's management library says of a GPU, read while something is measured.

mod nvml;
mod watch;

use serde::Serialize;

use crate::error::Result;

pub use nvml::find;
pub use watch::{INTERVAL, Observed, Watch};

/// Something that tells the state of one GPU: NVML, or a record of it in tests.
pub trait Gpu: Send {
    /// The model's name.
    fn name(&self) -> &str;

    /// The state now.
    ///
    /// # Errors
    /// A GPU that does not answer.
    fn read(&mut self) -> Result<Reading>;
}

/// A GPU's state. What a GPU or driver does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Memory of this process, in bytes. Containers that hide process ids hide it too.
    pub process_bytes: Option<u64>,
    /// Memory of all processes and the driver, in bytes.
    pub used_bytes: Option<u64>,
    /// Clock of the multiprocessors, in MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory, in MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Of the chip, in °C.
    pub temperature_celsius: Option<u32>,
    /// Percent of the time, since the driver's last look, during which a kernel ran.
    pub utilization_percent: Option<u32>,
    /// Why clocks are below what they could be. Being idle is no reason.
    pub throttled_by: Vec<&'static str>,
}

/// This machine's GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Their models, as `2 × NVIDIA L4`; `None` where there is none.
    pub models: Option<String>,
    /// The driver's version.
    pub driver: Option<String>,
    /// Memory of the first one, in bytes.
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// Reads it now; nothing without NVIDIA's driver.
    pub fn now() -> Self {
        nvml::machine().unwrap_or_default()
    }

    fn of(names: &[String], driver: Option<String>, memory_bytes: Option<u64>) -> Self {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for name in names {
            match kinds.iter_mut().find(|(kind, _)| kind == name) {
                Some((_, count)) => *count += 1,
                None => kinds.push((name, 1)),
            }
        }
        let text =
            |(kind, count): &(&str, usize)| if *count > 1 { format!("{count} × {kind}") } else { (*kind).to_owned() };
        let models: Vec<_> = kinds.iter().map(text).collect();
        Self { models: (!models.is_empty()).then(|| models.join(", ")), driver, memory_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_gpus_are_counted() {
        let names = ["NVIDIA L4", "NVIDIA H100", "NVIDIA L4"].map(str::to_owned);
        let machine = Machine::of(&names, Some("580.65.06".into()), Some(1));
        assert_eq!(machine.models.as_deref(), Some("2 × NVIDIA L4, NVIDIA H100"));
        assert_eq!(Machine::of(&[], None, None), Machine::default());
    }
}
