//! NVML, whose library comes with NVIDIA's driver and is looked for when a GPU is to be watched.

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;

use super::{Gpu, Machine, Reading};
use crate::error::{Context, Error, Result};
use crate::probe::nvml::{index_of_cuda, load};

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
    let missing = || format!("there is no GPU {number}");
    let index = match used_by_us(&nvml) {
        Some(index) => index,
        None => index_of_cuda(&nvml, number).with_context(missing)?,
    };
    let name = nvml.device_by_index(index).and_then(|device| device.name()).with_context(missing)?;
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

fn used_by_us(nvml: &Nvml) -> Option<u32> {
    let count = nvml.device_count().ok()?;
    (0..count).find(|&index| {
        let processes = nvml.device_by_index(index).and_then(|device| device.running_compute_processes());
        processes.is_ok_and(|processes| processes.iter().any(|process| process.pid == std::process::id()))
    })
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
}
