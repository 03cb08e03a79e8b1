//! NVML, whose library comes with NVIDIA's driver and is looked for when a GPU is to be watched.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

use super::{Gpu, Machine, Reading};
use crate::error::{Context, Error, Result};

struct Watched {
    nvml: Nvml,
    index: u32,
    name: String,
}

impl Gpu for Watched {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&mut self) -> Result<Reading> {
        let device = self.nvml.device_by_index(self.index).context("the GPU does not answer")?;
        let ours = device.running_compute_processes().ok().and_then(|processes| {
            let own = processes.iter().find(|process| process.pid == std::process::id())?;
            match own.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            }
        });
        Ok(Reading {
            process_bytes: ours,
            // What every driver answers: a failure here is one of the GPU.
            used_bytes: Some(device.memory_info().context("the GPU does not say its memory")?.used),
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
            throttled_by: device.current_throttle_reasons().map(reasons).unwrap_or_default(),
        })
    }
}

/// The GPU that CUDA gives this number. Where this process has begun to use one, it is that one.
///
/// # Errors
/// A machine without NVIDIA's driver, no GPU of that number.
pub fn find(number: u32) -> Result<Box<dyn Gpu>> {
    let nvml = load().map_err(|error| {
        Error::environment("NVML cannot be loaded")
            .because(std::io::Error::other(error.to_string()))
            .hint("NVIDIA's driver brings libnvidia-ml.so.1")
    })?;
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let index = match used_by_us(&nvml) {
        Some(index) => index,
        None => match visible_device(visible.as_deref(), number) {
            Visible::Index(index) => index,
            Visible::Uuid(uuid) => nvml
                .device_by_uuid(uuid)
                .and_then(|device| device.index())
                .with_context(|| format!("there is no GPU `{uuid}`"))?,
        },
    };
    let name = nvml
        .device_by_index(index)
        .and_then(|device| device.name())
        .with_context(|| format!("there is no GPU {index}"))?;
    Ok(Box::new(Watched { nvml, index, name }))
}

/// This machine's GPUs; `None` without NVIDIA's driver.
pub(super) fn machine() -> Option<Machine> {
    let nvml = load().ok()?;
    let count = nvml.device_count().ok()?;
    let names: Vec<_> = (0..count).filter_map(|index| nvml.device_by_index(index).ok()?.name().ok()).collect();
    let memory = nvml.device_by_index(0).and_then(|device| device.memory_info()).ok().map(|memory| memory.total);
    Some(Machine::of(&names, nvml.sys_driver_version().ok(), memory))
}

/// The driver's library has this name; the one without a version comes with development packages only.
fn load() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init()
}

fn used_by_us(nvml: &Nvml) -> Option<u32> {
    let count = nvml.device_count().ok()?;
    (0..count).find(|&index| {
        let processes = nvml.device_by_index(index).and_then(|device| device.running_compute_processes());
        processes.is_ok_and(|processes| processes.iter().any(|process| process.pid == std::process::id()))
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Visible<'a> {
    Index(u32),
    Uuid(&'a str),
}

/// CUDA counts the GPUs that its variable lists, by numbers or identifiers; NVML counts all of them.
fn visible_device(variable: Option<&str>, number: u32) -> Visible<'_> {
    let listed = variable.and_then(|list| list.split(',').map(str::trim).nth(number as usize));
    match listed.filter(|entry| !entry.is_empty()) {
        None => Visible::Index(number),
        Some(entry) => entry.parse().map_or(Visible::Uuid(entry), Visible::Index),
    }
}

/// Why clocks are lower than they could be, in words.
fn reasons(found: ThrottleReasons) -> Vec<&'static str> {
    [
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "clocks set by hand"),
        (ThrottleReasons::SW_POWER_CAP, "power cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "software, thermal"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hardware, thermal"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hardware, power brake"),
    ]
    .into_iter()
    .filter(|(reason, _)| found.contains(*reason))
    .map(|(_, word)| word)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_driver_says_what_brings_nvml() {
        // On a machine with one there is nothing to see.
        if load().is_ok() {
            return;
        }
        let error = find(0).err().unwrap();
        assert!(error.chain().contains("libnvidia-ml.so.1"), "{}", error.chain());
        assert!(error.find_hint().unwrap().contains("driver"));
        assert_eq!(Machine::now(), Machine::default());
    }

    #[test]
    fn being_idle_is_no_reason() {
        let all = ThrottleReasons::GPU_IDLE | ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        assert_eq!(reasons(all), ["power cap", "hardware, thermal"]);
        assert!(reasons(ThrottleReasons::GPU_IDLE).is_empty());
    }

    #[test]
    fn cudas_numbers_are_those_of_the_visible_gpus() {
        assert_eq!(visible_device(None, 1), Visible::Index(1));
        assert_eq!(visible_device(Some("3, 2"), 1), Visible::Index(2));
        assert_eq!(visible_device(Some("GPU-1a,GPU-2b"), 0), Visible::Uuid("GPU-1a"));
        assert_eq!(visible_device(Some(""), 0), Visible::Index(0));
    }
}
