//! Sensors of power that hwmon drivers show: `powerN_average` or `powerN_input`, in microwatts, sampled.
//!
//! What a rail feeds is known of few drivers. Those are taken by themselves; any other is taken when the
//! matrix names it.

use std::path::{Path, PathBuf};

use super::registry::Missing;
use super::{Domain, Meter, Part, Place, Reading, files};
use crate::cell::PowerSource;
use crate::error::Result;

const PERMISSION: &str = "let everyone read the sensors: sudo chmod a+r /sys/class/hwmon/hwmon*/power*_input \
     /sys/class/hwmon/hwmon*/power*_average (until the next start; docs/power.md has a udev rule that lasts)";

struct Rail {
    file: PathBuf,
    domain: Domain,
}

impl Meter for Rail {
    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn read(&mut self) -> Result<Reading> {
        Ok(Reading::Watts(files::number(&self.file)? as f64 / 1e6))
    }
}

/// The rails that the matrix names, or those whose meaning is known: the processor's, or else the machine's.
pub(super) fn find(place: &Place) -> Result<Vec<Box<dyn Meter>>, Missing> {
    let all = rails(&place.sysfs);
    let names: Vec<_> = all.iter().map(|rail| rail.domain.name.clone()).collect();
    let chosen: Vec<Rail> = if place.rails.is_empty() {
        let has = |part| all.iter().any(|rail| known_part(&rail.domain.name) == Some(part));
        let part = if has(Part::Processor) { Part::Processor } else { Part::Machine };
        all.into_iter().filter(|rail| known_part(&rail.domain.name) == Some(part)).collect()
    } else {
        if let Some(lacking) = place.rails.iter().find(|name| !names.contains(name)) {
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Missing {
                present: true,
                reason: format!("there is no sensor `{lacking}`"),
                remedy: format!("name some of those that there are as `rails`: {there}"),
            });
        }
        all.into_iter().filter(|rail| place.rails.contains(&rail.domain.name)).collect()
    };
    let machines = chosen.iter().filter(|rail| known_part(&rail.domain.name) == Some(Part::Machine)).count();
    if chosen.is_empty() || (place.rails.is_empty() && machines > 1) {
        let remedy = "a machine with a sensor of its power, such as an ACPI power meter or an INA3221";
        return Err(match names.is_empty() {
            true => Missing {
                present: false,
                reason: "no hwmon driver shows a sensor of power".to_owned(),
                remedy: remedy.to_owned(),
            },
            false => Missing {
                present: true,
                reason: format!("what the sensors {} feed is not known", names.join(", ")),
                remedy: "name those that feed what you measure: `power: {source: hwmon, rails: [...]}`".to_owned(),
            },
        });
    }
    let mut meters: Vec<Box<dyn Meter>> = Vec::new();
    for mut rail in chosen {
        if let Err(error) = rail.read() {
            return Err(files::unusable(&rail.file, &error, PERMISSION));
        }
        meters.push(Box::new(rail));
    }
    Ok(meters)
}

/// The part of the machine that a rail feeds, by the driver that shows it.
fn known_part(name: &str) -> Option<Part> {
    match name.split_once('/')? {
        ("fam15h_power", _) | ("zenpower", "SVI2_P_Core" | "SVI2_P_SoC") => Some(Part::Processor),
        ("power_meter", _) => Some(Part::Machine),
        _ => None,
    }
}

/// Every sensor of power; where a rail has both, the average is taken, which is that of a stated interval.
fn rails(sysfs: &Path) -> Vec<Rail> {
    let mut rails: Vec<Rail> = Vec::new();
    for chip in files::entries(&sysfs.join("class/hwmon")) {
        let driver = files::word(&chip.join("name")).unwrap_or_else(|| files::name_of(&chip));
        let mut sensors: Vec<String> = Vec::new();
        for ending in ["_average", "_input"] {
            for file in files::entries(&chip) {
                let name = files::name_of(&file);
                let Some(sensor) = name.strip_suffix(ending).filter(|name| is_power(name)) else { continue };
                if sensors.iter().any(|known| known == sensor) {
                    continue;
                }
                sensors.push(sensor.to_owned());
                let label = files::word(&chip.join(format!("{sensor}_label"))).unwrap_or_else(|| sensor.to_owned());
                let name = format!("{driver}/{label}");
                let part = known_part(&name).unwrap_or(Part::Machine);
                let domain = Domain { source: PowerSource::Hwmon, name, part, counted: true, range_microjoules: None };
                rails.push(Rail { file, domain });
            }
        }
    }
    rails
}

fn is_power(name: &str) -> bool {
    name.strip_prefix("power").is_some_and(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::power::registry::fixture::tree;

    fn place(root: &Path, rails: &[&str]) -> Place {
        Place { sysfs: root.to_owned(), rails: rails.iter().map(|rail| (*rail).to_owned()).collect(), gpu: None }
    }

    fn names(root: &Path, rails: &[&str]) -> Result<Vec<String>, Missing> {
        Ok(find(&place(root, rails))?.iter().map(|meter| meter.domain().name.clone()).collect())
    }

    fn board() -> tempfile::TempDir {
        tree(&[
            ("class/hwmon/hwmon0/name", "ina3221\n"),
            ("class/hwmon/hwmon0/power1_input", "4500000\n"),
            ("class/hwmon/hwmon0/power1_label", "VDD_CPU\n"),
            ("class/hwmon/hwmon0/power2_input", "1500000\n"),
            ("class/hwmon/hwmon0/power2_label", "VDD_SOC\n"),
            ("class/hwmon/hwmon0/power1_cap", "9000000\n"),
            ("class/hwmon/hwmon1/name", "nvme\n"),
            ("class/hwmon/hwmon1/temp1_input", "30000\n"),
        ])
    }

    #[test]
    fn rails_of_unknown_meaning_are_named_by_the_matrix() {
        let root = board();
        let missing = names(root.path(), &[]).unwrap_err();
        assert!(missing.present && missing.reason.contains("ina3221/VDD_CPU, ina3221/VDD_SOC"), "{missing:?}");
        assert_eq!(names(root.path(), &["ina3221/VDD_CPU"]).unwrap(), ["ina3221/VDD_CPU"]);
        let mut meters = find(&place(root.path(), &["ina3221/VDD_CPU"])).ok().unwrap();
        assert_eq!(meters[0].read().unwrap(), Reading::Watts(4.5));
        let missing = names(root.path(), &["ina3221/VDD_GPU"]).unwrap_err();
        assert!(missing.remedy.contains("ina3221/VDD_SOC"), "{missing:?}");
    }

    #[test]
    fn known_rails_are_taken_and_the_processors_before_the_machines() {
        let root = tree(&[
            ("class/hwmon/hwmon2/name", "power_meter\n"),
            ("class/hwmon/hwmon2/power1_average", "150000000\n"),
            ("class/hwmon/hwmon2/power1_input", "140000000\n"),
        ]);
        assert_eq!(names(root.path(), &[]).unwrap(), ["power_meter/power1"]);
        assert_eq!(find(&place(root.path(), &[])).ok().unwrap()[0].read().unwrap(), Reading::Watts(150.0));
        for (file, text) in [
            ("name", "zenpower\n"),
            ("power1_input", "20000000\n"),
            ("power1_label", "SVI2_P_Core\n"),
            ("power2_input", "5000000\n"),
            ("power2_label", "SVI2_P_SoC\n"),
        ] {
            let folder = root.path().join("class/hwmon/hwmon3");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(file), text).unwrap();
        }
        assert_eq!(names(root.path(), &[]).unwrap(), ["zenpower/SVI2_P_Core", "zenpower/SVI2_P_SoC"]);
    }

    #[test]
    fn nothing_and_nonsense() {
        assert!(!names(tempfile::tempdir().unwrap().path(), &[]).unwrap_err().present);
        let root = board();
        std::fs::write(root.path().join("class/hwmon/hwmon0/power1_input"), "\n").unwrap();
        let missing = names(root.path(), &["ina3221/VDD_CPU"]).unwrap_err();
        assert!(missing.reason.contains("no count"), "{missing:?}");
    }
}
