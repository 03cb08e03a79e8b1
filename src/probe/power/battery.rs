//! The battery of a machine that runs on it: the whole machine's power, sampled.
//!
//! A battery that is charged says nothing of what the machine draws, so it serves only while it discharges. Its gauge
//! of power is preferred to its charge, whose steps are some ten joules.

use std::path::{Path, PathBuf};

use super::registry::Missing;
use super::{Domain, Meter, Part, Reading, files};
use crate::cell::PowerSource;
use crate::error::{Error, Result};

struct Battery {
    folder: PathBuf,
    way: Way,
    /// The charge when it was first read, for [`Way::Charge`].
    full: Option<u64>,
    domain: Domain,
}

/// How it says what it gives.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// `power_now`, microwatts.
    Power,
    /// `current_now` and `voltage_now`, microamperes and microvolts.
    Current,
    /// `energy_now`, microwatt-hours, which falls.
    Charge,
}

impl Meter for Battery {
    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn read(&mut self) -> Result<Reading> {
        let status = files::word(&self.folder.join("status")).unwrap_or_default();
        if status != "Discharging" {
            return Err(Error::environment(format!("the battery is not discharging (`{status}`)"))
                .hint("unplug the power supply while you measure"));
        }
        let number = |name: &str| files::number(&self.folder.join(name));
        Ok(match self.way {
            Way::Power => Reading::Watts(number("power_now")? as f64 / 1e6),
            Way::Current => Reading::Watts(number("current_now")? as f64 * number("voltage_now")? as f64 / 1e12),
            Way::Charge => {
                let now = number("energy_now")?;
                let full = *self.full.get_or_insert(now);
                // A charge that rises while the battery discharges was estimated anew; the counter then falls and is
                // found out.
                let given = i128::from(full) - i128::from(now);
                let microjoules = u64::try_from(given * 3600 + i128::from(u32::MAX)).unwrap_or(0);
                Reading::Microjoules(microjoules)
            }
        })
    }
}

/// Every battery of the machine, all of which discharge together or in turn.
pub(super) fn find(sysfs: &Path) -> Result<Vec<Box<dyn Meter>>, Missing> {
    let mut meters: Vec<Box<dyn Meter>> = Vec::new();
    let mut waiting = None;
    for folder in files::entries(&sysfs.join("class/power_supply")) {
        let word = |name: &str| files::word(&folder.join(name));
        // Mice and headsets have batteries too.
        if word("type").as_deref() != Some("Battery") || word("scope").as_deref() == Some("Device") {
            continue;
        }
        let has = |name: &str| folder.join(name).exists();
        let way = if has("power_now") {
            Way::Power
        } else if has("current_now") && has("voltage_now") {
            Way::Current
        } else if has("energy_now") {
            Way::Charge
        } else {
            continue;
        };
        let domain = Domain {
            source: PowerSource::Battery,
            name: files::name_of(&folder),
            part: Part::Machine,
            counted: true,
            range_microjoules: None,
        };
        let mut meter = Battery { folder, way, full: None, domain };
        match meter.read() {
            Ok(_) => meters.push(Box::new(meter)),
            Err(error) => {
                let name = &meter.domain.name;
                let remedy = "unplug the power supply while you measure, or use another source".to_owned();
                waiting = Some(Missing { present: true, reason: format!("`{name}`: {}", error.chain()), remedy });
            }
        }
    }
    match (meters.is_empty(), waiting) {
        (false, None) => Ok(meters),
        // Of two batteries that feed the machine in turn, one stands still while the other discharges.
        (false, Some(missing)) if missing.reason.contains("not discharging") => Ok(meters),
        (_, Some(missing)) => Err(missing),
        (true, None) => Err(Missing {
            present: false,
            reason: "the machine has no battery".to_owned(),
            remedy: "measure on a machine that runs on its battery".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::power::registry::fixture::tree;

    fn laptop(files: &[(&str, &str)]) -> tempfile::TempDir {
        let mut all = vec![
            ("class/power_supply/AC/type".to_owned(), "Mains\n".to_owned()),
            ("class/power_supply/BAT0/type".to_owned(), "Battery\n".to_owned()),
            ("class/power_supply/BAT0/status".to_owned(), "Discharging\n".to_owned()),
            ("class/power_supply/mouse/type".to_owned(), "Battery\n".to_owned()),
            ("class/power_supply/mouse/scope".to_owned(), "Device\n".to_owned()),
            ("class/power_supply/mouse/status".to_owned(), "Discharging\n".to_owned()),
            ("class/power_supply/mouse/power_now".to_owned(), "1\n".to_owned()),
        ];
        all.extend(files.iter().map(|(name, text)| (format!("class/power_supply/BAT0/{name}"), (*text).to_owned())));
        tree(&all)
    }

    fn first(root: &Path) -> Box<dyn Meter> {
        find(root).unwrap_or_else(|missing| panic!("{}", missing.reason)).remove(0)
    }

    #[test]
    fn three_ways_to_say_it() {
        let root = laptop(&[("power_now", "12500000\n"), ("energy_now", "40000000\n")]);
        assert_eq!(first(root.path()).read().unwrap(), Reading::Watts(12.5));
        let root = laptop(&[("current_now", "1500000\n"), ("voltage_now", "12000000\n")]);
        assert_eq!(first(root.path()).read().unwrap(), Reading::Watts(18.0));
        let root = laptop(&[("energy_now", "40000000\n")]);
        let mut meter = first(root.path());
        let value = |meter: &mut Box<dyn Meter>| match meter.read().unwrap() {
            Reading::Microjoules(value) => value,
            Reading::Watts(watts) => panic!("{watts} W"),
        };
        let before = value(&mut meter);
        std::fs::write(root.path().join("class/power_supply/BAT0/energy_now"), "39990000\n").unwrap();
        // 10 mWh are 36 J.
        assert_eq!(value(&mut meter) - before, 36_000_000);
    }

    #[test]
    fn it_serves_only_while_it_discharges() {
        let root = laptop(&[("power_now", "12500000\n")]);
        let mut meter = first(root.path());
        std::fs::write(root.path().join("class/power_supply/BAT0/status"), "Charging\n").unwrap();
        assert!(meter.read().unwrap_err().chain().contains("not discharging (`Charging`)"));
        let missing = find(root.path()).err().unwrap();
        assert!(missing.present && missing.remedy.contains("unplug"), "{missing:?}");
        assert!(!find(tempfile::tempdir().unwrap().path()).err().unwrap().present);
    }
}
