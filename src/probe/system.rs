//! Kernel, load, temperature.

use std::fs;

use serde::Serialize;
use sysinfo::System;

/// Facts of the running system; what it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Os {
    /// Name and version of the distribution.
    pub name: Option<String>,
    /// Version of the kernel.
    pub kernel: Option<String>,
    /// Setting of transparent huge pages: `always`, `madvise`, `never`.
    pub huge_pages: Option<String>,
    /// Processes that ran or waited in the last minute, on average.
    pub load_average_1m: Option<f64>,
    /// The hottest thermal zone, where one is readable.
    pub temperature_celsius: Option<f64>,
}

impl Os {
    /// Reads them now.
    pub fn now() -> Self {
        let huge_pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
        let load = fs::read_to_string("/proc/loadavg").ok();
        Self {
            name: System::long_os_version(),
            kernel: System::kernel_version(),
            huge_pages: huge_pages.as_deref().and_then(chosen),
            load_average_1m: load.and_then(|text| text.split(' ').next()?.parse().ok()),
            temperature_celsius: temperature(),
        }
    }
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn temperature() -> Option<f64> {
    let zones = fs::read_dir("/sys/class/thermal").ok()?;
    zones
        .filter_map(|zone| fs::read_to_string(zone.ok()?.path().join("temp")).ok()?.trim().parse::<f64>().ok())
        .map(|millidegrees| millidegrees / 1000.0)
        .max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_chosen_word_stands_in_brackets() {
        assert_eq!(super::chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(super::chosen("none"), None);
    }
}
