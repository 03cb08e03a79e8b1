//! What stands in for a meter where there is none: seconds of the processor that this process and its children used,
//! times a stated wattage. It is no measurement, and its figures have columns of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::getpid;
use rustix::time::{ClockId, clock_gettime};

use super::{Domain, Meter, Part, Reading};
use crate::cell::PowerSource;
use crate::error::{Context, Result};

struct Estimate {
    watts_per_cpu: f64,
    domain: Domain,
}

impl Meter for Estimate {
    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn read(&mut self) -> Result<Reading> {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let own = own.tv_sec as f64 + own.tv_nsec as f64 / 1e9;
        let process = getpid().as_raw_nonzero().get().unsigned_abs();
        let children = children_seconds(Path::new("/proc"), process).context("cannot read the time of children")?;
        Ok(Reading::Microjoules(((own + children) * self.watts_per_cpu * 1e6) as u64))
    }
}

/// The estimate, as if it were a meter.
pub(super) fn meter(watts_per_cpu: f64) -> Box<dyn Meter> {
    let domain = Domain {
        source: PowerSource::Estimate,
        name: format!("{watts_per_cpu} W a busy processor"),
        part: Part::Processor,
        counted: true,
        range_microjoules: None,
    };
    Box::new(Estimate { watts_per_cpu, domain })
}

/// Processor seconds of all that a process started, those that ended among them, without its own.
fn children_seconds(proc: &Path, process: u32) -> std::io::Result<f64> {
    let mut parents = BTreeMap::new();
    let mut times = BTreeMap::new();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end meanwhile; its parent then has its time.
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some(stat) = Stat::parse(&text) else { continue };
        parents.insert(id, stat.parent);
        times.insert(id, stat);
    }
    let descends = |id: u32| {
        let mut at = id;
        // A chain is as long as there are processes at most, whatever was read while they changed.
        for _ in 0..parents.len() {
            match parents.get(&at) {
                Some(parent) if *parent == process => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    let ended = times.get(&process).map_or(0, |stat| stat.of_ended_children);
    let living = times.iter().filter(|(id, _)| descends(**id)).map(|(_, stat)| stat.own + stat.of_ended_children);
    let ticks = ended + living.sum::<u64>();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// What a stat line says of a process's time, in ticks.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    own: u64,
    of_ended_children: u64,
}

impl Stat {
    /// Fields 4 and 14 to 17; the command's name in parentheses may hold spaces.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: number(11)? + number(12)?,
            of_ended_children: number(13)? + number(14)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::power::registry::fixture::tree;

    #[test]
    fn the_whole_tree_of_processes_counts() {
        let stat =
            |name: &str, parent: u32, times: &str| format!("1 ({name}) S {parent} 1 1 0 -1 0 0 0 0 0 {times} 20 0");
        let root = tree(&[
            ("7/stat", stat("ort bench)", 1, "100 100 30 20")),
            ("8/stat", stat("child", 7, "10 10 5 5")),
            ("9/stat", stat("its child", 8, "1 1 0 0")),
            ("10/stat", stat("a stranger", 1, "9999 0 0 0")),
            ("11/stat", "nonsense".to_owned()),
            ("self/stat", String::new()),
        ]);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(children_seconds(root.path(), 7).unwrap() * ticks, 50.0 + 30.0 + 2.0);
    }

    #[test]
    fn a_busy_second_costs_what_was_stated() {
        let mut meter = meter(20.0);
        let joules = |meter: &mut Box<dyn Meter>| match meter.read().unwrap() {
            Reading::Microjoules(value) => value as f64 / 1e6,
            Reading::Watts(watts) => panic!("{watts} W"),
        };
        let before = (joules(&mut meter), clock_gettime(ClockId::ThreadCPUTime));
        let mut busy = 0.0;
        while busy < 0.1 {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            busy = (now.tv_sec - before.1.tv_sec) as f64 + (now.tv_nsec - before.1.tv_nsec) as f64 / 1e9;
        }
        // Other tests of the process may be busy as well.
        let spent = joules(&mut meter) - before.0;
        assert!(spent >= 0.1 * 20.0 * 0.99, "{spent}");
    }
}
