//! `ortbench doctor`: says what this machine has, what it lacks, and what adds the missing.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde::Serialize;

use crate::cell::PowerSource;
use crate::cli::doctor_gpu as gpu;
use crate::error::{Context, Error, Result};
use crate::orchestrator::memory_group::MemoryGroup;
use crate::probe;
use crate::probe::power::Place;
use crate::probe::power::registry::{self, Missing};
use crate::protocol::{FactValue, Job, Message, PROTOCOL_VERSION, Work};
use crate::runtime::catalog::{self, PINS};
use crate::units;

/// The options of `ortbench doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// One thing that this machine has or lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about: `runtime`, `gpu`, `power`, `memory`, `disk`, `tool`.
    pub topic: &'static str,
    /// The thing.
    pub name: String,
    /// Whether it is there and usable.
    pub ok: bool,
    /// What was found, or what is missing.
    pub detail: String,
    /// The command or step that adds it.
    pub remedy: Option<String>,
}

impl Finding {
    /// Something that is there.
    pub fn good(topic: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { topic, name: name.into(), ok: true, detail: detail.into(), remedy: None }
    }

    /// Something that is missing, and what adds it.
    pub fn lack(
        topic: &'static str,
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { topic, name: name.into(), ok: false, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// Runs the command. Ends with 3 when no runtime can be loaded: then nothing can run.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut findings = runtimes()?;
    let can_run = findings.iter().any(|finding| finding.ok);
    findings.extend(gpu::findings(Path::new("/"), catalog::folder().ok().as_deref()));
    // Of several GPUs the first stands for all.
    findings.extend(power(&Place { gpu: Some(0), ..Place::here() }));
    findings.extend(memory());
    findings.extend(disk());
    findings.extend(tools());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings).context("cannot print the findings")?);
    } else {
        print!("{}", render(&findings));
    }
    Ok(if can_run { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn render(findings: &[Finding]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut topic = "";
    for finding in findings {
        if finding.topic != topic {
            topic = finding.topic;
            let _ = writeln!(text, "{}{topic}", if text.is_empty() { "" } else { "\n" });
        }
        let mark = if finding.ok { "ok     " } else { "missing" };
        let _ = writeln!(text, "  {mark}  {}: {}", finding.name, finding.detail);
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "           {remedy}");
        }
    }
    text
}

/// Every runtime for this processor: installed, and what it says of itself when a process of its own loads it.
fn runtimes() -> Result<Vec<Finding>> {
    let root = catalog::folder()?;
    let mut findings = Vec::new();
    for pin in PINS.iter().filter(|pin| pin.arch == std::env::consts::ARCH) {
        let folder = catalog::place(&root, pin);
        let name = format!("{} {}", pin.name, pin.version);
        findings.push(match catalog::installed(&folder) {
            None => Finding::lack(
                "runtime",
                name,
                format!("not installed ({})", pin.about),
                format!("ortbench runtime install {}", pin.name),
            ),
            Some(installed) => match describe(&folder.join(installed.library)) {
                Ok(detail) => Finding::good("runtime", name, detail),
                Err(error) => Finding::lack(
                    "runtime",
                    name,
                    error.chain(),
                    format!("remove `{}` and run `ortbench runtime install {}`", folder.display(), pin.name),
                ),
            },
        });
    }
    Ok(findings)
}

/// Loads the library in a child, for this process must not, and returns the providers that it was compiled with.
fn describe(library: &Path) -> Result<String> {
    let failed = || format!("cannot describe `{}`", library.display());
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut child = Command::new(program)
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(failed)?;
    let job = Job { protocol: PROTOCOL_VERSION, library: library.to_owned(), work: Work::Describe };
    let text = serde_json::to_vec(&job).with_context(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(&text).with_context(failed)?;
    }
    let output = child.stdout.take().ok_or_else(|| Error::environment(failed()))?;
    // The library may hang while it loads; the messages may not come for ever.
    let (lines, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let messages = BufReader::new(output).lines().map_while(std::result::Result::ok);
        let _ = messages.map(|line| lines.send(line)).take_while(std::result::Result::is_ok).count();
    });
    let mut providers = None;
    let mut ended = Err(Error::environment(failed()).because(std::io::Error::other("it did not answer in time")));
    while let Ok(line) = received.recv_timeout(Duration::from_secs(30)) {
        match serde_json::from_str(&line) {
            Ok(Message::Fact { name, value: FactValue::Text(text) }) if name == "providers" => providers = Some(text),
            Ok(Message::Done) => ended = Ok(()),
            Ok(Message::Failed { reason, .. }) => ended = Err(Error::environment(reason)),
            _ => {}
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    ended?;
    providers.ok_or_else(|| Error::environment(failed()))
}

/// Meters of energy, and why the others do not serve. Of sources that are not there at all one line is enough where
/// another serves.
fn power(place: &Place) -> Vec<Finding> {
    let survey = registry::survey(place);
    let serves = survey.iter().any(|(_, found)| found.is_ok());
    let finding = |(source, found): (PowerSource, Result<Vec<String>, Missing>)| match found {
        Ok(domains) => Some(Finding::good("power", source.name(), domains.join(", "))),
        Err(missing) if missing.present || !serves => {
            Some(Finding::lack("power", source.name(), missing.reason, missing.remedy))
        }
        Err(_) => None,
    };
    survey.into_iter().filter_map(finding).collect()
}

fn memory() -> Vec<Finding> {
    let limits = probe::limits::MemoryLimits::now();
    let mut findings = Vec::new();
    if let Some(bytes) = limits.smallest() {
        let group = limits.cgroup_bytes.map_or("no limit by control groups".to_owned(), |bytes| {
            format!("limited by a control group to {}", units::bytes(bytes))
        });
        findings.push(Finding::good("memory", "for a cell", format!("{} ({group})", units::bytes(bytes))));
    }
    findings.push(match MemoryGroup::create(1 << 30) {
        Ok(group) if group.swap_is_off() || limits.swap_bytes == Some(0) => {
            Finding::good("memory", "limits", "`memory_limit` can be set by a control group, without swap")
        }
        Ok(_) => Finding::lack(
            "memory",
            "limits",
            "`memory_limit` can be set by a control group, but swap cannot be switched off for it",
            "switch swap off while you measure: sudo swapoff -a",
        ),
        Err(error) => {
            let remedy = error.find_hint().unwrap_or_default().to_owned();
            Finding::lack("memory", "limits", format!("`memory_limit` cannot be set: {}", error.chain()), remedy)
        }
    });
    findings.push(if probe::memory::reset_peak() {
        Finding::good("memory", "peak counter", "can be reset before each load")
    } else {
        Finding::lack(
            "memory",
            "peak counter",
            "/proc/self/clear_refs is not writable, so peaks include what came before the load",
            "run outside of the sandbox that forbids it",
        )
    });
    findings
}

fn disk() -> Vec<Finding> {
    let folder = catalog::folder().unwrap_or_else(|_| PathBuf::from("/"));
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let disk = probe::disk::Disk::of(existing);
    let free = disk.free_bytes.unwrap_or(0);
    let place = format!("cache folder `{}`", folder.display());
    let detail = format!("{} free on {}", units::bytes(free), disk.filesystem.unwrap_or_else(|| "?".to_owned()));
    vec![if free > 1 << 30 {
        Finding::good("disk", place, detail)
    } else {
        Finding::lack("disk", place, detail, "free some room, or set ORTBENCH_CACHE to a folder with more")
    }]
}

/// What installing runtimes and exporting models needs.
fn tools() -> Vec<Finding> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let says = |arguments: &[&str]| {
        let output = Command::new(&python).args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    };
    vec![
        match says(&["--version"]) {
            Some(version) => Finding::good("tool", &python, version),
            None => Finding::lack("tool", &python, "not found", "install Python 3.10 or later, or set PYTHON"),
        },
        match says(&["-m", "pip", "--version"]) {
            Some(version) => Finding::good("tool", "pip", version.split(" from ").next().unwrap_or_default()),
            None => Finding::lack("tool", "pip", "not found", "Debian: apt install python3-pip"),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lacks_come_with_remedies() {
        let findings = [
            Finding::good("runtime", "cpu 1", "CPUExecutionProvider"),
            Finding::lack("runtime", "openvino 1", "not installed", "ortbench runtime install openvino"),
            Finding::lack("power", "RAPL", "none", "another machine"),
        ];
        insta::assert_snapshot!(render(&findings));
    }

    #[test]
    fn meters_are_listed_and_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let place = Place { sysfs: root.path().to_owned(), rails: Vec::new(), gpu: None };
        let findings = power(&place);
        assert!(findings.iter().all(|finding| !finding.ok && finding.remedy.is_some()), "{findings:?}");
        assert!(findings.iter().any(|finding| finding.name == "battery"), "{findings:?}");
        let zone = root.path().join("class/powercap/intel-rapl:0");
        std::fs::create_dir_all(&zone).unwrap();
        std::fs::write(zone.join("name"), "package-0\n").unwrap();
        std::fs::write(zone.join("energy_uj"), "1\n").unwrap();
        let names: Vec<_> = power(&place).into_iter().map(|finding| (finding.name, finding.detail)).collect();
        assert_eq!(names, [("rapl".to_owned(), "package-0".to_owned())]);
        std::fs::write(zone.join("energy_uj"), "one\n").unwrap();
        let broken = &power(&place)[0];
        assert!(!broken.ok && broken.detail.contains("holds `one`"), "{broken:?}");
    }
}
