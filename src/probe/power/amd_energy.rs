//! AMD's counters through the hwmon driver `amd_energy`: `energyN_input` in microjoules, labelled by socket and core.
//!
//! A socket's counter contains its cores, so sockets are added up and cores are not looked at: there are hundreds, and
//! a reading of each interrupts it.

use std::path::{Path, PathBuf};

use super::registry::Missing;
use super::{Domain, Meter, Part, Reading, files};
use crate::cell::PowerSource;
use crate::error::Result;

const PERMISSION: &str = "let everyone read the counters: sudo chmod a+r /sys/class/hwmon/hwmon*/energy*_input \
     (until the next start; docs/power.md has a udev rule that lasts)";

struct Socket {
    file: PathBuf,
    domain: Domain,
}

impl Meter for Socket {
    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn read(&mut self) -> Result<Reading> {
        files::number(&self.file).map(Reading::Microjoules)
    }
}

/// Every socket.
pub(super) fn find(sysfs: &Path) -> Result<Vec<Box<dyn Meter>>, Missing> {
    let mut meters: Vec<Box<dyn Meter>> = Vec::new();
    for chip in files::entries(&sysfs.join("class/hwmon")) {
        if files::word(&chip.join("name")).as_deref() != Some("amd_energy") {
            continue;
        }
        for file in files::entries(&chip) {
            let name = files::name_of(&file);
            let Some(number) = name.strip_prefix("energy").and_then(|name| name.strip_suffix("_input")) else {
                continue;
            };
            let label = files::word(&chip.join(format!("energy{number}_label"))).unwrap_or_default();
            let Some(socket) = label.strip_prefix("Esocket") else { continue };
            let domain = Domain {
                source: PowerSource::AmdEnergy,
                name: format!("socket-{socket}"),
                part: Part::Processor,
                counted: true,
                // The driver adds the processor's 32 bits up to 64.
                range_microjoules: None,
            };
            let mut meter = Socket { file, domain };
            if let Err(error) = meter.read() {
                return Err(files::unusable(&meter.file, &error, PERMISSION));
            }
            meters.push(Box::new(meter));
        }
    }
    if !meters.is_empty() {
        return Ok(meters);
    }
    Err(Missing {
        present: false,
        reason: "no sensor of the driver amd_energy counts a socket's energy".to_owned(),
        remedy: "on an AMD EPYC server without RAPL counters: build and load the driver amd_energy".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::power::registry::fixture::{denied, tree};

    fn server() -> tempfile::TempDir {
        tree(&[
            ("class/hwmon/hwmon0/name", "k10temp\n"),
            ("class/hwmon/hwmon1/name", "amd_energy\n"),
            ("class/hwmon/hwmon1/energy1_input", "100\n"),
            ("class/hwmon/hwmon1/energy1_label", "Ecore000\n"),
            ("class/hwmon/hwmon1/energy2_input", "200\n"),
            ("class/hwmon/hwmon1/energy2_label", "Ecore001\n"),
            ("class/hwmon/hwmon1/energy3_input", "3000\n"),
            ("class/hwmon/hwmon1/energy3_label", "Esocket0\n"),
            ("class/hwmon/hwmon1/energy4_input", "4000\n"),
            ("class/hwmon/hwmon1/energy4_label", "Esocket1\n"),
        ])
    }

    #[test]
    fn sockets_are_added_up_and_cores_are_not() {
        let root = server();
        let mut meters = find(root.path()).ok().unwrap();
        let names: Vec<_> = meters.iter().map(|meter| meter.domain().name.clone()).collect();
        assert_eq!(names, ["socket-0", "socket-1"]);
        let readings: Vec<_> = meters.iter_mut().map(|meter| meter.read().unwrap()).collect();
        assert_eq!(readings, [Reading::Microjoules(3000), Reading::Microjoules(4000)]);
    }

    #[test]
    fn what_is_missing_is_said() {
        let root = server();
        let counter = root.path().join("class/hwmon/hwmon1/energy4_input");
        let missing = denied(&counter, || find(root.path()).err()).unwrap();
        assert!(missing.reason.contains("may not be read") && missing.remedy.contains("chmod"), "{missing:?}");
        std::fs::write(root.path().join("class/hwmon/hwmon1/name"), "other\n").unwrap();
        assert!(!find(root.path()).err().unwrap().present);
    }
}
