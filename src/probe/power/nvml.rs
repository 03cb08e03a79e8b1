//! NVIDIA GPUs through NVML, whose library is looked for when a GPU is to be measured.
//!
//! GPUs from Volta on count their energy since the driver was loaded; the counter is read. Others have a gauge of power
//! alone, which is sampled and integrated: on some of them it is a mean over a second, or sees only part of the time
//! ("Part-time Power Measurements: nvidia-smi's Lack of Attention", arXiv 2312.02741).

use std::sync::Arc;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::registry::Missing;
use super::{Domain, Meter, Part, Reading};
use crate::cell::PowerSource;
use crate::error::{Context, Error, Result};
use crate::probe::nvml::{index_of_cuda, load};

struct Gpu {
    nvml: Arc<Nvml>,
    index: u32,
    counts: bool,
    domain: Domain,
}

impl Meter for Gpu {
    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn read(&mut self) -> Result<Reading> {
        let device = self.nvml.device_by_index(self.index).context("the GPU does not answer")?;
        read(&device, self.counts).context("the GPU does not say its energy")
    }
}

fn read(device: &Device, counts: bool) -> Result<Reading, NvmlError> {
    match counts {
        true => device.total_energy_consumption().map(|millijoules| Reading::Microjoules(millijoules * 1000)),
        false => device.power_usage().map(|milliwatts| Reading::Watts(f64::from(milliwatts) / 1000.0)),
    }
}

/// The GPU of that index, as CUDA counts them.
pub(super) fn find(index: Option<u32>) -> Result<Vec<Box<dyn Meter>>, Missing> {
    let Some(index) = index else {
        return Err(Missing {
            present: false,
            reason: "the cell does not run on an NVIDIA GPU".to_owned(),
            remedy: "use a backend with the provider cuda or tensorrt, or another source".to_owned(),
        });
    };
    let nvml = load().map_err(|error| {
        missing(&error, "NVML cannot be loaded", "install NVIDIA's driver, which brings libnvidia-ml.so.1")
    })?;
    let nvml = Arc::new(nvml);
    let gone = |error: NvmlError| missing(&error, &format!("there is no GPU {index}"), "`nvidia-smi -L` lists them");
    let number = index_of_cuda(&nvml, index).map_err(gone)?;
    let device = nvml.device_by_index(number).map_err(gone)?;
    let counts = read(&device, true).is_ok();
    read(&device, counts).map_err(|error| {
        missing(&error, &format!("GPU {index} does not say its power"), "a GPU that `nvidia-smi -q -d POWER` knows")
    })?;
    let kind = device.name().unwrap_or_else(|_| "NVIDIA GPU".to_owned());
    let way = if counts { "" } else { ", sampled power" };
    let domain = Domain {
        source: PowerSource::Nvml,
        name: format!("gpu-{number} ({kind}{way})"),
        part: Part::Gpu,
        counted: true,
        range_microjoules: None,
    };
    Ok(vec![Box::new(Gpu { nvml, index: number, counts, domain })])
}

fn missing(error: &NvmlError, what: &str, remedy: &str) -> Missing {
    let cause = Error::environment(what).because(std::io::Error::other(error.to_string()));
    Missing {
        present: !matches!(error, NvmlError::LibloadingError(_)),
        reason: cause.chain(),
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_on_the_processor_have_no_gpu() {
        assert!(find(None).err().unwrap().reason.contains("does not run on an NVIDIA GPU"));
    }
}
