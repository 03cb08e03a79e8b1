//! NVIDIA GPUs through NVML, whose library is looked for when a GPU is to be measured.
//!
//! GPUs from Volta on count their energy since the driver was loaded; the counter is read. Others have a gauge of power
//! alone, which is sampled and integrated: on some of them it is a mean over a second, or sees only part of the time
//! ("Part-time Power Measurements: nvidia-smi's Lack of Attention", arXiv 2312.02741).

use std::ffi::OsStr;
use std::sync::Arc;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::registry::Missing;
use super::{Domain, Meter, Part, Reading};
use crate::cell::PowerSource;
use crate::error::{Context, Error, Result};

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
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let device = match visible_device(visible.as_deref(), index) {
        Visible::Index(index) => nvml.device_by_index(index),
        Visible::Uuid(uuid) => nvml.device_by_uuid(uuid),
    };
    let gone = |error: NvmlError| missing(&error, &format!("there is no GPU {index}"), "`nvidia-smi -L` lists them");
    let device = device.map_err(gone)?;
    let number = device.index().map_err(gone)?;
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

/// The driver's library has this name; the one without a version comes with development packages only.
fn load() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init()
}

fn missing(error: &NvmlError, what: &str, remedy: &str) -> Missing {
    let cause = Error::environment(what).because(std::io::Error::other(error.to_string()));
    Missing {
        present: !matches!(error, NvmlError::LibloadingError(_)),
        reason: cause.chain(),
        remedy: remedy.to_owned(),
    }
}

#[derive(Debug, PartialEq)]
enum Visible {
    Index(u32),
    Uuid(String),
}

/// What CUDA's device of that number is, where CUDA_VISIBLE_DEVICES renames them: a list of indices or of UUIDs.
fn visible_device(variable: Option<&str>, index: u32) -> Visible {
    let entry = variable.and_then(|list| list.split(',').nth(index as usize)).map(str::trim).unwrap_or_default();
    match entry.parse() {
        Ok(index) => Visible::Index(index),
        Err(_) if entry.starts_with("GPU-") || entry.starts_with("MIG-") => Visible::Uuid(entry.to_owned()),
        Err(_) => Visible::Index(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_may_have_renamed_the_devices() {
        assert_eq!(visible_device(None, 1), Visible::Index(1));
        assert_eq!(visible_device(Some("3, 5"), 1), Visible::Index(5));
        assert_eq!(visible_device(Some("GPU-a,GPU-b"), 1), Visible::Uuid("GPU-b".to_owned()));
        assert_eq!(visible_device(Some(""), 0), Visible::Index(0));
    }

    #[test]
    fn cells_on_the_processor_have_no_gpu() {
        assert!(find(None).err().unwrap().reason.contains("does not run on an NVIDIA GPU"));
    }
}
