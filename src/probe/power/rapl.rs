//! Linux powercap: the counters of processors' running average power limits.
//!
//! `/sys/class/powercap` has a zone for each package and for its parts. A package's counter contains its cores and
//! what is called uncore; memory (`dram`) has a counter of its own beside it; the platform's (`psys`) contains the
//! packages. So packages and memory are added up and the others are told beside them. Zones of `intel-rapl-mmio` read
//! the same counters a second way: one of them counts only where the first way does not have its domain.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::registry::Missing;
use super::{Domain, Meter, Part, Reading, files};
use crate::cell::PowerSource;
use crate::error::Result;

/// The ways to the counters, the preferred one first.
const CONTROLS: [&str; 2] = ["intel-rapl:", "intel-rapl-mmio:"];

pub(super) const PERMISSION: &str = "let everyone read the counters: sudo chmod a+r \
     /sys/class/powercap/intel-rapl*/energy_uj (until the next start; docs/power.md has a udev rule that lasts)";

struct Zone {
    file: PathBuf,
    domain: Domain,
}

impl Meter for Zone {
    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn read(&mut self) -> Result<Reading> {
        files::number(&self.file).map(Reading::Microjoules)
    }
}

/// Every domain, each once.
pub(super) fn find(sysfs: &Path) -> Result<Vec<Box<dyn Meter>>, Missing> {
    let class = sysfs.join("class/powercap");
    let mut seen = BTreeSet::new();
    let mut meters: Vec<Box<dyn Meter>> = Vec::new();
    for control in CONTROLS {
        // A name seen in one way is not taken from another, and twice in one way it is two zones.
        let mut of_control = BTreeSet::new();
        for zone in zones(&class, control) {
            let Some(domain) = describe(&zone) else { continue };
            if seen.contains(&domain.name) {
                continue;
            }
            let mut meter = Zone { file: zone.join("energy_uj"), domain };
            match meter.read() {
                Ok(_) => {
                    of_control.insert(meter.domain.name.clone());
                    meters.push(Box::new(meter));
                }
                // What is only told beside the others may be missing.
                Err(_) if !meter.domain.counted => {}
                Err(error) => return Err(files::unusable(&meter.file, &error, PERMISSION)),
            }
        }
        seen.extend(of_control);
    }
    if meters.iter().any(|meter| meter.domain().part == Part::Processor) {
        return Ok(meters);
    }
    Err(Missing {
        present: false,
        reason: "the kernel shows no RAPL counters in /sys/class/powercap".to_owned(),
        remedy: "on a machine of its own: sudo modprobe intel_rapl_msr; virtual machines and most containers get no \
                 counters passed through"
            .to_owned(),
    })
}

/// The zones of a control type and their parts, in the order of their names. The class lists parts beside their zones
/// and the zones hold them: each counts once.
fn zones(class: &Path, control: &str) -> Vec<PathBuf> {
    let of_control = |path: &PathBuf| files::name_of(path).starts_with(control);
    let mut zones: Vec<PathBuf> = Vec::new();
    for zone in files::entries(class).into_iter().filter(of_control) {
        let parts = files::entries(&zone).into_iter().filter(of_control);
        for path in std::iter::once(zone.clone()).chain(parts) {
            if zones.iter().all(|known| files::name_of(known) != files::name_of(&path)) {
                zones.push(path);
            }
        }
    }
    zones.sort_by_key(|zone| files::name_of(zone));
    zones
}

/// What a zone counts; `None` where it does not say.
fn describe(zone: &Path) -> Option<Domain> {
    let word = files::word(&zone.join("name"))?;
    let name = files::name_of(zone);
    // `intel-rapl:0:1` is a part of `intel-rapl:0`.
    let owner = name.rsplit_once(':').map(|(owner, _)| owner).filter(|owner| owner.contains(':'));
    let folder = |owner: &str| match zone.parent().filter(|parent| files::name_of(parent) == owner) {
        Some(parent) => parent.to_owned(),
        None => zone.with_file_name(owner),
    };
    let owner = owner.and_then(|owner| files::word(&folder(owner).join("name")));
    let (part, counted) = match word.as_str() {
        "dram" => (Part::Dram, true),
        "psys" => (Part::Around, false),
        _ if owner.is_some() => (Part::Within, false),
        _ if word.starts_with("package") => (Part::Processor, true),
        _ => (Part::Within, false),
    };
    let name = owner.map_or(word.clone(), |owner| format!("{word} of {owner}"));
    let range_microjoules = files::number(&zone.join("max_energy_range_uj")).ok().filter(|range| *range > 0);
    Some(Domain { source: PowerSource::Rapl, name, part, counted, range_microjoules })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::power::registry::fixture::{denied, tree};

    const RANGE: &str = "262143328850\n";

    /// A machine with two packages, whose parts stand both in the class and in their zones, and the platform.
    fn server() -> tempfile::TempDir {
        let mut files = Vec::new();
        for (zone, name) in [
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "dram"),
            ("intel-rapl:0/intel-rapl:0:1", "dram"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:1:0", "dram"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl-mmio:0", "package-0"),
            ("intel-rapl-mmio:0:0", "dram"),
        ] {
            files.push((format!("class/powercap/{zone}/name"), format!("{name}\n")));
            files.push((format!("class/powercap/{zone}/energy_uj"), "1000\n".to_owned()));
            files.push((format!("class/powercap/{zone}/max_energy_range_uj"), RANGE.to_owned()));
        }
        files.push(("class/powercap/intel-rapl/enabled".to_owned(), "1\n".to_owned()));
        tree(&files)
    }

    fn names(root: &Path, counted: bool) -> Vec<String> {
        let meters = find(root).unwrap_or_else(|missing| panic!("{}", missing.reason));
        let domains = meters.iter().map(|meter| meter.domain());
        domains.filter(|domain| domain.counted == counted).map(|domain| domain.name.clone()).collect()
    }

    #[test]
    fn packages_and_memory_count_once() {
        let root = server();
        assert_eq!(names(root.path(), true), ["package-0", "dram of package-0", "package-1", "dram of package-1"]);
        assert_eq!(names(root.path(), false), ["core of package-0", "psys"]);
        let mut meters = find(root.path()).ok().unwrap();
        assert_eq!(meters[0].read().unwrap(), Reading::Microjoules(1000));
        assert_eq!(meters[0].domain().range_microjoules, Some(262_143_328_850));
    }

    #[test]
    fn the_second_way_serves_where_the_first_is_missing() {
        let root = server();
        for zone in ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1", "intel-rapl:1", "intel-rapl:1:0"] {
            std::fs::remove_dir_all(root.path().join("class/powercap").join(zone)).unwrap();
        }
        assert_eq!(names(root.path(), true), ["package-0", "dram of package-0"]);
    }

    #[test]
    fn a_machine_without_counters() {
        let missing = find(tempfile::tempdir().unwrap().path()).err().unwrap();
        assert!(!missing.present && missing.reason.contains("no RAPL counters"), "{missing:?}");
    }

    #[test]
    fn one_package_that_cannot_be_read_makes_all_useless() {
        let root = server();
        let counter = root.path().join("class/powercap/intel-rapl:1/energy_uj");
        std::fs::write(&counter, "twelve\n").unwrap();
        let missing = find(root.path()).err().unwrap();
        assert!(missing.present && missing.reason.contains("holds `twelve`"), "{missing:?}");
        let missing = denied(&counter, || find(root.path()).err()).unwrap();
        assert!(missing.reason.ends_with("intel-rapl:1/energy_uj` may not be read"), "{missing:?}");
        assert!(missing.remedy.contains("chmod a+r"), "{missing:?}");
        // One that is told beside the others is no loss.
        std::fs::write(&counter, "12\n").unwrap();
        std::fs::write(root.path().join("class/powercap/intel-rapl:2/energy_uj"), "-3\n").unwrap();
        assert_eq!(names(root.path(), false), ["core of package-0"]);
    }

    #[test]
    fn a_zone_that_vanishes_is_an_error_of_its_reading() {
        let root = server();
        let mut meters = find(root.path()).ok().unwrap();
        std::fs::remove_dir_all(root.path().join("class/powercap/intel-rapl:1")).unwrap();
        let package = meters.iter_mut().find(|meter| meter.domain().name == "package-1").unwrap();
        assert!(package.read().unwrap_err().chain().contains("cannot read"));
    }
}
