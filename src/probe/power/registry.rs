//! Which meters a machine has, and why not the others.

use super::{Meter, Place, amd_energy, battery, estimate, hwmon, nvml, rapl};
use crate::cell::{PowerPlan, PowerSource};
use crate::error::{Error, Result};

/// Meters that serve together.
pub struct Choice {
    /// All of them.
    pub meters: Vec<Box<dyn Meter>>,
    /// What the reader of the figures should know.
    pub remarks: Vec<String>,
}

/// Why a source does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Whether it is there and only unusable; what is not there at all is no surprise.
    pub present: bool,
    /// What is missing.
    pub reason: String,
    /// What adds it.
    pub remedy: String,
}

/// Sources of measurements.
const METERS: [PowerSource; 5] =
    [PowerSource::Rapl, PowerSource::AmdEnergy, PowerSource::Nvml, PowerSource::Hwmon, PowerSource::Battery];

/// Sources for a processor, the best first.
const OF_PROCESSORS: [PowerSource; 4] =
    [PowerSource::Rapl, PowerSource::AmdEnergy, PowerSource::Hwmon, PowerSource::Battery];

/// Sources that say a processor's energy beside a GPU's: those of whole machines have the GPU in them.
const BESIDE_GPUS: [PowerSource; 2] = [PowerSource::Rapl, PowerSource::AmdEnergy];

/// Looks for the meters of one source.
///
/// # Errors
/// Why it does not serve.
pub fn find(source: PowerSource, place: &Place) -> Result<Vec<Box<dyn Meter>>, Missing> {
    match source {
        PowerSource::Rapl => rapl::find(&place.sysfs),
        PowerSource::AmdEnergy => amd_energy::find(&place.sysfs),
        PowerSource::Nvml => nvml::find(place.gpu),
        PowerSource::Hwmon => hwmon::find(place),
        PowerSource::Battery => battery::find(&place.sysfs),
        PowerSource::Estimate => Err(Missing {
            present: false,
            reason: "no wattage is stated".to_owned(),
            remedy: "state one: `power: {estimate_watts_per_cpu: 15}`".to_owned(),
        }),
    }
}

/// Every source of measurements, with the names of its domains or the reason why it does not serve.
pub fn survey(place: &Place) -> Vec<(PowerSource, Result<Vec<String>, Missing>)> {
    let names = |meters: Vec<Box<dyn Meter>>| meters.iter().map(|meter| meter.domain().name.clone()).collect();
    METERS.into_iter().map(|source| (source, find(source, place).map(names))).collect()
}

/// What may serve a cell, the best first: if its counters stand still, the next is tried.
///
/// # Errors
/// Unsupported, with what is missing of each source and what to do about it.
pub fn choices(plan: &PowerPlan, place: &Place) -> Result<Vec<Choice>> {
    choose(plan, place.gpu.is_some(), &|source| find(source, place))
}

type Found = Result<Vec<Box<dyn Meter>>, Missing>;

/// The same, whoever finds the meters.
fn choose(plan: &PowerPlan, gpu: bool, find: &dyn Fn(PowerSource) -> Found) -> Result<Vec<Choice>> {
    match (plan.source, plan.estimate_watts_per_cpu) {
        (Some(PowerSource::Estimate), Some(watts)) => Ok(vec![estimated(watts, &[])]),
        (Some(source), _) => {
            let why = |why| none(&format!("the source `{source}` does not serve"), &[(source, why)]);
            let meters = find(source).map_err(why)?;
            let covered = meters.iter().any(|meter| covers_gpus(meter.as_ref()));
            let remark = "the GPU's energy is not in these figures: the matrix names another source".to_owned();
            Ok(vec![Choice { meters, remarks: if gpu && !covered { vec![remark] } else { Vec::new() } }])
        }
        (None, _) if gpu => with_gpu(find).map(|choice| vec![choice]),
        (None, watts) => of_processor(watts, find),
    }
}

fn of_processor(watts: Option<f64>, find: &dyn Fn(PowerSource) -> Found) -> Result<Vec<Choice>> {
    let mut choices = Vec::new();
    let mut lacking = Vec::new();
    for source in OF_PROCESSORS {
        match find(source) {
            Ok(meters) => choices.push(Choice { meters, remarks: Vec::new() }),
            Err(why) => lacking.push((source, why)),
        }
    }
    choices.extend(watts.map(|watts| estimated(watts, &lacking)));
    if choices.is_empty() { Err(none("no meter of energy serves here", &lacking)) } else { Ok(choices) }
}

/// The GPU's meter, and the best of the processor's beside it.
fn with_gpu(find: &dyn Fn(PowerSource) -> Found) -> Result<Choice> {
    let why = |why| none("the GPU's energy cannot be read", &[(PowerSource::Nvml, why)]);
    let mut meters = find(PowerSource::Nvml).map_err(why)?;
    let mut lacking = Vec::new();
    for source in BESIDE_GPUS {
        match find(source) {
            Ok(found) => {
                meters.extend(found);
                return Ok(Choice { meters, remarks: Vec::new() });
            }
            Err(why) => lacking.push(format!("{source}: {}", why.reason)),
        }
    }
    let remark = format!("the energy is the GPU's alone, for the processor's cannot be read ({})", lacking.join("; "));
    Ok(Choice { meters, remarks: vec![remark] })
}

fn covers_gpus(meter: &dyn Meter) -> bool {
    matches!(meter.domain().part, super::Part::Gpu | super::Part::Machine)
}

fn estimated(watts: f64, lacking: &[(PowerSource, Missing)]) -> Choice {
    let mut remarks = vec![format!("energy is estimated at {watts} W a busy processor and not measured")];
    let present = lacking.iter().filter(|(_, why)| why.present);
    let unusable: Vec<_> = present.map(|(source, why)| format!("{source}: {}", why.reason)).collect();
    if !unusable.is_empty() {
        remarks.push(format!("meters that are there and do not serve: {}", unusable.join("; ")));
    }
    Choice { meters: vec![estimate::meter(watts)], remarks }
}

/// What is there and only unusable is the better advice.
fn none(what: &str, lacking: &[(PowerSource, Missing)]) -> Error {
    let reasons: Vec<_> = lacking.iter().map(|(source, why)| format!("{source}: {}", why.reason)).collect();
    let best = lacking.iter().find(|(_, why)| why.present).or(lacking.first());
    let advice = best.map(|(_, why)| why.remedy.as_str()).unwrap_or_default();
    let estimate = match lacking {
        [(PowerSource::Estimate | PowerSource::Nvml, _)] => "",
        _ => "; or state a wattage for figures that are marked as estimates: `power: {estimate_watts_per_cpu: 15}`",
    };
    Error::unsupported(format!("{what} ({})", reasons.join("; "))).hint(format!("{advice}{estimate}"))
}

/// Machines of tests.
#[cfg(test)]
pub(super) mod fixture {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    /// A folder with these files.
    pub fn tree<N: AsRef<str>, T: AsRef<str>>(files: &[(N, T)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name.as_ref());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.as_ref()).unwrap();
        }
        root
    }

    /// Does something while a file may not be read, by the superuser neither.
    pub fn denied<T: Send>(file: &Path, action: impl FnOnce() -> T + Send) -> T {
        let mode = |bits| fs::set_permissions(file, fs::Permissions::from_mode(bits)).unwrap();
        mode(0o0);
        // Capabilities are a thread's own.
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut sets = capabilities(None).unwrap();
                sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
                set_capabilities(None, sets).unwrap();
                action()
            });
            thread.join().unwrap()
        });
        mode(0o644);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::fixture::{denied, tree};
    use super::*;
    use crate::probe::power::{Domain, Part, Reading};

    fn place(root: &Path) -> Place {
        Place { sysfs: root.to_owned(), rails: Vec::new(), gpu: None }
    }

    fn rapl() -> tempfile::TempDir {
        tree(&[
            ("class/powercap/intel-rapl:0/name", "package-0\n"),
            ("class/powercap/intel-rapl:0/energy_uj", "5\n"),
            ("class/hwmon/hwmon0/name", "power_meter\n"),
            ("class/hwmon/hwmon0/power1_average", "90000000\n"),
        ])
    }

    /// A meter that is only chosen.
    struct Named(Domain);

    impl Meter for Named {
        fn domain(&self) -> &Domain {
            &self.0
        }
        fn read(&mut self) -> Result<Reading> {
            Ok(Reading::Microjoules(0))
        }
    }

    /// A machine that has these sources.
    fn having(there: &'static [PowerSource]) -> impl Fn(PowerSource) -> Found {
        move |source| {
            if !there.contains(&source) {
                let (reason, remedy) = ("not here".to_owned(), "buy one".to_owned());
                return Err(Missing { present: false, reason, remedy });
            }
            let part = match source {
                PowerSource::Nvml => Part::Gpu,
                PowerSource::Battery => Part::Machine,
                _ => Part::Processor,
            };
            let name = source.name().to_owned();
            Ok(vec![Box::new(Named(Domain { source, name, part, counted: true, range_microjoules: None }))])
        }
    }

    #[test]
    fn a_gpus_meter_and_the_processors_serve_together() {
        use PowerSource::{AmdEnergy, Battery, Estimate, Nvml, Rapl};
        let plan = |source| PowerPlan { source, estimate_watts_per_cpu: Some(15.0), ..PowerPlan::default() };
        let chosen = |source, there: &'static [PowerSource]| {
            let mut choices = choose(&plan(source), true, &having(there))?;
            assert_eq!(choices.len(), 1, "a GPU's work is never estimated");
            let Choice { meters, remarks } = choices.remove(0);
            Ok::<_, Error>((meters.iter().map(|meter| meter.domain().source).collect::<Vec<_>>(), remarks.join("; ")))
        };
        assert_eq!(chosen(None, &[Nvml, Rapl, AmdEnergy]).unwrap(), (vec![Nvml, Rapl], String::new()));
        assert_eq!(chosen(None, &[Nvml, AmdEnergy, Battery]).unwrap(), (vec![Nvml, AmdEnergy], String::new()));
        // A whole machine's has the GPU in it and is not added to it.
        let (sources, remarks) = chosen(None, &[Nvml, Battery]).unwrap();
        assert_eq!(sources, [Nvml]);
        assert!(remarks.contains("the GPU's alone") && remarks.contains("rapl: not here"), "{remarks}");
        assert_eq!(chosen(Some(Battery), &[Nvml, Battery]).unwrap(), (vec![Battery], String::new()));
        let (sources, remarks) = chosen(Some(Rapl), &[Nvml, Rapl]).unwrap();
        assert!(sources == [Rapl] && remarks.contains("GPU's energy is not in these figures"), "{remarks}");
        let error = chosen(None, &[Rapl, Battery]).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.find_hint()),
            ("the GPU's energy cannot be read (nvml: not here)", Some("buy one"))
        );
        assert_eq!(chosen(Some(Estimate), &[Nvml]).unwrap().0, [Estimate]);
        // A cell on the processor has nothing of the GPU.
        let of_processor = choose(&plan(None), false, &having(&[Nvml, Rapl])).unwrap();
        assert_eq!(sources_of(&of_processor), [Rapl, Estimate]);
    }

    fn sources_of(choices: &[Choice]) -> Vec<PowerSource> {
        choices.iter().map(|choice| choice.meters[0].domain().source).collect()
    }

    #[test]
    fn the_best_comes_first_and_the_estimate_last() {
        let root = rapl();
        let plan = PowerPlan { estimate_watts_per_cpu: Some(15.0), ..PowerPlan::default() };
        let found = choices(&plan, &place(root.path())).unwrap();
        assert_eq!(sources_of(&found), [PowerSource::Rapl, PowerSource::Hwmon, PowerSource::Estimate]);
        let plan = PowerPlan { source: Some(PowerSource::Hwmon), ..plan };
        assert_eq!(sources_of(&choices(&plan, &place(root.path())).unwrap()), [PowerSource::Hwmon]);
        let plan = PowerPlan { source: Some(PowerSource::Estimate), ..plan };
        assert_eq!(sources_of(&choices(&plan, &place(root.path())).unwrap()), [PowerSource::Estimate]);
    }

    #[test]
    fn a_source_that_was_asked_for_and_does_not_serve() {
        let root = rapl();
        // An estimate is no substitute for what was asked for by name.
        let (source, estimate_watts_per_cpu) = (Some(PowerSource::Battery), Some(15.0));
        let plan = PowerPlan { source, estimate_watts_per_cpu, ..PowerPlan::default() };
        let error = choices(&plan, &place(root.path())).err().unwrap();
        assert!(error.to_string().contains("`battery` does not serve"), "{error}");
    }

    #[test]
    fn nothing_at_all_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let error = choices(&PowerPlan::default(), &place(root.path())).err().unwrap();
        assert_eq!(error.root_kind(), crate::error::Kind::Unsupported);
        insta::assert_snapshot!(format!("{}\nhint: {}", error.chain(), error.find_hint().unwrap()));
    }

    #[test]
    fn a_permission_is_the_first_advice() {
        let root = rapl();
        std::fs::remove_dir_all(root.path().join("class/hwmon")).unwrap();
        let counter = root.path().join("class/powercap/intel-rapl:0/energy_uj");
        let error = denied(&counter, || choices(&PowerPlan::default(), &place(root.path())).err()).unwrap();
        assert!(error.to_string().contains("may not be read"), "{error}");
        assert!(error.find_hint().unwrap().starts_with("let everyone read the counters: sudo chmod"), "{error:?}");
        // With a wattage it becomes an estimate that says what stood in the way.
        let plan = PowerPlan { estimate_watts_per_cpu: Some(15.0), ..PowerPlan::default() };
        let found = denied(&counter, || choices(&plan, &place(root.path())).ok()).unwrap();
        assert_eq!(sources_of(&found), [PowerSource::Estimate]);
        assert!(found[0].remarks[1].contains("may not be read"), "{:?}", found[0].remarks);
    }

    #[test]
    fn a_survey_names_every_source() {
        let root = rapl();
        let survey = survey(&place(root.path()));
        let serving: Vec<_> = survey.iter().filter(|(_, found)| found.is_ok()).map(|(source, _)| *source).collect();
        assert_eq!(serving, [PowerSource::Rapl, PowerSource::Hwmon]);
        assert_eq!(survey.len(), PowerSource::ALL.len() - 1);
    }
}
