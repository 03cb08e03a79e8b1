//! What a GPU did while a cell was measured.

use crate::categories::Context;
use crate::cell::Backend;
use crate::error::Result;
use crate::probe::gpu::{self, Observed, Watch};
use crate::protocol::Reporter;
use crate::runtime::providers::{self, Computes};

/// The number that CUDA has for the backend's GPU; `None` where it computes elsewhere.
pub fn number(backend: &Backend) -> Option<u32> {
    let on_gpu = providers::of(backend.provider).computes() == Computes::Cuda;
    on_gpu.then(|| backend.options.get("device_id").and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// A GPU that is watched, where the cell runs on one.
pub struct Watching(Option<Watch>);

impl Watching {
    /// Begins, after the model was loaded. A GPU that cannot be watched is a warning.
    ///
    /// # Errors
    /// A process that may not have another thread.
    pub fn start(context: &Context) -> Result<Self> {
        let Some(number) = number(&context.cell.backend) else { return Ok(Self(None)) };
        match gpu::find(number) {
            Ok(gpu) => Ok(Self(Some(Watch::start(gpu)?))),
            Err(error) => {
                context.report.warning(format!("the GPU was not watched: {}", error.chain()))?;
                Ok(Self(None))
            }
        }
    }

    /// Ends, and reports what was seen.
    ///
    /// # Errors
    /// A GPU that stopped answering.
    pub fn report(self, report: &Reporter) -> Result<()> {
        self.0.map_or(Ok(()), |watch| facts(&watch.finish()?, report))
    }
}

fn facts(seen: &Observed, report: &Reporter) -> Result<()> {
    report.fact("gpu_name", seen.name.as_str())?;
    for (name, value) in
        [("gpu_process_peak_bytes", seen.process_peak_bytes), ("gpu_used_peak_bytes", seen.used_peak_bytes)]
    {
        value.map_or(Ok(()), |value| report.fact(name, value))?;
    }
    for (name, value) in [
        ("gpu_sm_clock_mhz", seen.sm_clock_mhz),
        ("gpu_memory_clock_mhz", seen.memory_clock_mhz),
        ("gpu_temperature_celsius", seen.temperature_celsius),
        ("gpu_utilization_share", seen.utilization_share),
    ] {
        value.map_or(Ok(()), |value| report.fact(name, value))?;
    }
    report.fact("gpu_throttled_by", if seen.throttled_by.is_empty() { "nothing" } else { &seen.throttled_by })
}
