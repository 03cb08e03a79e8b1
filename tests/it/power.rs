//! The category `power` as a whole: the real program on a real package, before a machine's sensors that a test lays out
//! and feeds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ortbench::metrics::{self, SERIES};
use rustix::thread::{CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities};

use crate::measuring::{only_run, rows};
use crate::real::{package, root};

/// Counters below a folder that run by the clock, each at its watts, until the value is dropped.
struct Feeder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A counter of the tree: its zone, its name, its watts.
type Zone = (&'static str, &'static str, f64);

/// They begin just below it, so that they wrap during the test.
const RANGE: u64 = 20_000_000_000;

impl Feeder {
    fn start(root: &Path, zones: &'static [Zone]) -> Self {
        let class = root.join("class/powercap");
        for (zone, name, _) in zones {
            let folder = class.join(zone);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("name"), format!("{name}\n")).expect("a name");
            fs::write(folder.join("max_energy_range_uj"), format!("{RANGE}\n")).expect("a range");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let write = move || {
            for (zone, _, watts) in zones {
                let counted = (start.elapsed().as_secs_f64() * watts * 1e6) as u64;
                let value = (RANGE - 100_000_000 + counted) % RANGE;
                let (new, file) = (class.join(zone).join("new"), class.join(zone).join("energy_uj"));
                // A reader sees the whole of one number or of the next.
                fs::write(&new, format!("{value}\n")).and_then(|()| fs::rename(&new, &file)).expect("a counter");
            }
        };
        write();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                write();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the feeder did not panic");
        }
    }
}

/// A folder with a matrix and an empty machine.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(rest: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        package("int4-fused");
        let text = format!(
            "version: 1\nname: power\nmodels: [{{name: qwen3-tiny, package: '{}/models/packages/qwen3-tiny/{{precision}}-{{flavour}}'}}]\n\
             backends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
             matrix: {{model: qwen3-tiny, backend: cpu, precision: int4, flavour: [fused, plain], threads: 2, batch: 2, \
             prompt_tokens: 48, generate_tokens: 8}}\nmeasurement: {{profile: quick}}\n{rest}",
            root().display()
        );
        fs::write(folder.path().join("matrix.yaml"), text).expect("a matrix");
        fs::create_dir(folder.path().join("sys")).expect("a folder");
        Self { folder }
    }

    fn sysfs(&self) -> PathBuf {
        self.folder.path().join("sys")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ortbench"))
            .current_dir(self.folder.path())
            .env("ORTBENCH_SYSFS", self.sysfs())
            .args(["run", "matrix.yaml", "--quiet"])
            .args(arguments)
            .output()
            .expect("the program starts")
    }

    fn rows(&self, output: &Output) -> Vec<BTreeMap<String, String>> {
        let rows = rows(&self.results().join("summary.csv"));
        assert_eq!(rows.len(), 2, "{}", String::from_utf8_lossy(&output.stderr));
        rows
    }

    fn results(&self) -> PathBuf {
        only_run(&self.folder.path().join("results"))
    }
}

fn number(row: &BTreeMap<String, String>, name: &str) -> f64 {
    row[name].parse().unwrap_or_else(|_| panic!("`{name}` is `{}`: {}", row[name], row["reason"]))
}

fn near(value: f64, expected: f64, share: f64) {
    assert!((value / expected - 1.0).abs() < share, "{value} should be {expected}");
}

/// The columns of medians of what is measured, or of what is estimated.
fn medians(estimated: bool) -> Vec<String> {
    let of_meters = SERIES.iter().filter(|series| metrics::depends_on_meter(series.name));
    let of_meters = of_meters.filter(|series| !series.name.contains("graph_"));
    let names = of_meters.filter(|series| metrics::is_estimate(series.name) == estimated).map(|series| series.name);
    let columns = ortbench::results::columns::all().iter();
    let medians: Vec<_> = columns
        .filter(|column| column.group == ortbench::results::columns::Group::Medians)
        .map(|column| column.name.clone())
        .filter(|column| column.starts_with("estimated_") == estimated && !column.contains("graph_"))
        .filter(|column| ["joule", "watts"].iter().any(|word| column.contains(word)))
        .collect();
    assert_eq!(medians.len(), names.count());
    medians
}

#[test]
fn what_the_counters_were_fed_is_what_is_measured() {
    // The platform, the cores and the second way to the counters are not added up.
    const ZONES: &[Zone] = &[
        ("intel-rapl:0", "package-0", 40.0),
        ("intel-rapl:0:0", "core", 30.0),
        ("intel-rapl:0:1", "dram", 15.0),
        ("intel-rapl:1", "psys", 70.0),
        ("intel-rapl-mmio:0", "package-0", 40.0),
    ];
    let bench =
        Bench::new("categories: [speed, power]\npower: {idle_seconds: 0.5, blocks: 3, min_block_seconds: 0.5}\n");
    let feeder = Feeder::start(&bench.sysfs(), ZONES);
    let output = bench.run(&[]);
    drop(feeder);
    for row in bench.rows(&output) {
        assert_eq!(row["status"], "measured", "{}", row["reason"]);
        assert_eq!(
            (row["power_source"].as_str(), row["power_counted"].as_str()),
            ("rapl", "package-0, dram of package-0")
        );
        for name in medians(false) {
            assert!(!row[&name].is_empty(), "`{name}` is empty");
        }
        for name in medians(true) {
            assert!(row[&name].is_empty(), "`{name}` is `{}`", row[&name]);
        }
        for phase in ["prefill", "decode"] {
            let watts = number(&row, &format!("{phase}_power_median_watts"));
            near(watts, 55.0, 0.1);
            near(number(&row, &format!("{phase}_idle_power_median_watts")), 55.0, 0.1);
            let energy = number(&row, &format!("{phase}_energy_median_joules_per_token"));
            // The counters do not know of the work: nothing of it is above idle.
            let above = number(&row, &format!("{phase}_energy_above_idle_median_joules_per_token"));
            assert!(above.abs() < 0.2 * energy, "{above} of {energy}");
            assert!(number(&row, &format!("{phase}_peak_power_median_watts")) >= watts);
            let part = |name: &str| number(&row, &format!("{phase}_{name}_joules_per_token"));
            near(part("processor") / part("dram"), 40.0 / 15.0, 0.05);
            assert!(row[&format!("{phase}_gpu_joules_per_token")].is_empty());
        }
        assert!(
            row["power_domains"].contains("core of package-0: prefill") && row["power_domains"].contains("not counted")
        );
        assert!(number(&row, "power_update_seconds") < 0.05);
        assert!(number(&row, "power_read_seconds") > 0.0 && number(&row, "power_sampler_cpu_share") < 0.5);
    }
    // What the power and the energy of a token say of a block is the same whole number of runs.
    let samples = rows(&bench.results().join("samples.csv"));
    let cells: BTreeSet<_> = samples.iter().map(|sample| sample["cell_id"].as_str()).collect();
    let values = |cell: &str, metric: &str| -> Vec<f64> {
        let of = samples.iter().filter(|sample| sample["cell_id"] == cell && sample["metric"] == metric);
        of.map(|sample| sample["value"].parse().expect("a number")).collect()
    };
    for cell in cells {
        for (phase, tokens) in [("prefill", 2.0 * 48.0), ("decode", 2.0 * 7.0)] {
            let seconds = values(cell, &format!("{phase}_block_seconds"));
            assert_eq!(seconds.len(), 3, "three blocks of {phase}");
            let watts = values(cell, &format!("{phase}_power_watts"));
            let joules = values(cell, &format!("{phase}_energy_joules_per_token"));
            for block in 0..3 {
                let runs = watts[block] * seconds[block] / joules[block] / tokens;
                assert!(runs >= 1.0 && (runs - runs.round()).abs() < 1e-6 * runs, "{runs} runs of {phase}");
            }
        }
    }
}

#[test]
fn without_a_meter_the_other_categories_are_measured() {
    let bench = Bench::new("categories: [speed, power]\n");
    let output = bench.run(&[]);
    assert_eq!(output.status.code(), Some(1));
    for row in bench.rows(&output) {
        assert_eq!(row["status"], "unsupported");
        assert!(!row["ttft_median_seconds"].is_empty() && row["decode_power_median_watts"].is_empty());
        assert!(row["power_source"].is_empty(), "nothing stands for what was not measured");
        insta::assert_snapshot!("without_a_meter", format!("{}\nhint: {}", row["reason"], row["hint"]));
    }
}

#[test]
fn an_estimate_has_columns_of_its_own() {
    let bench =
        Bench::new("categories: power\npower: {estimate_watts_per_cpu: 20, blocks: 2, min_block_seconds: 0.3}\n");
    let output = bench.run(&[]);
    for row in bench.rows(&output) {
        assert_eq!(
            (row["status"].as_str(), row["power_source"].as_str()),
            ("measured", "estimate"),
            "{}",
            row["reason"]
        );
        assert_eq!(number(&row, "power_estimate_watts_per_cpu"), 20.0);
        for name in medians(false) {
            assert!(row[&name].is_empty(), "`{name}` is `{}`", row[&name]);
        }
        for name in medians(true) {
            assert!(number(&row, &name) > 0.0, "`{name}` is `{}`", row[&name]);
        }
        let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        assert!(number(&row, "estimated_decode_power_median_watts") <= 20.0 * processors * 1.05);
        assert!(
            row["warnings"].contains("energy is estimated at 20 W a busy processor and not measured"),
            "{}",
            row["warnings"]
        );
    }
}

#[test]
fn counters_that_may_not_be_read() {
    const ZONES: &[Zone] = &[("intel-rapl:0", "package-0", 40.0)];
    let bench = Bench::new("categories: power\npower: {source: rapl, estimate_watts_per_cpu: 20}\n");
    drop(Feeder::start(&bench.sysfs(), ZONES));
    let counter = bench.sysfs().join("class/powercap/intel-rapl:0/energy_uj");
    fs::set_permissions(&counter, fs::Permissions::from_mode(0o0)).expect("a permission");
    let output = as_nobody_special(|| bench.run(&["--allow-unsupported"]));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for row in bench.rows(&output) {
        // What was asked for by name is not replaced by an estimate.
        assert_eq!(row["status"], "unsupported");
        assert!(row["reason"].contains("the source `rapl` does not serve"), "{}", row["reason"]);
        assert!(row["reason"].contains("intel-rapl:0/energy_uj` may not be read"), "{}", row["reason"]);
        assert!(row["hint"].contains("sudo chmod a+r"), "{}", row["hint"]);
    }
}

#[test]
fn counters_that_stand_still_are_no_zero() {
    const ZONES: &[Zone] = &[("intel-rapl:0", "package-0", 40.0)];
    let bench = Bench::new("categories: power\n");
    drop(Feeder::start(&bench.sysfs(), ZONES));
    let output = bench.run(&[]);
    for row in bench.rows(&output) {
        assert_eq!(row["status"], "unsupported");
        assert!(row["reason"].contains("package-0 (rapl) did not change in 2 s"), "{}", row["reason"]);
        assert!(row["hint"].contains("virtual machine"), "{}", row["hint"]);
    }
}

#[test]
fn a_domain_that_vanishes_makes_the_cell_invalid() {
    const ZONES: &[Zone] = &[("intel-rapl:0", "package-0", 40.0), ("intel-rapl:1", "package-1", 20.0)];
    let bench = Bench::new("categories: power\npower: {idle_seconds: 30}\n");
    let feeder = Feeder::start(&bench.sysfs(), ZONES);
    let gone = bench.sysfs().join("class/powercap/intel-rapl:1/energy_uj");
    let output = std::thread::scope(|scope| {
        let run = scope.spawn(|| bench.run(&["--cell", "fused"]));
        // The idle time before the first block is long enough for it.
        let results = bench.folder.path().join("results");
        let measuring = || {
            let run = fs::read_dir(&results).ok()?.next()?.ok()?.path();
            fs::read_to_string(run.join("journal.jsonl")).ok().filter(|text| text.contains("job_started"))
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while measuring().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_secs(6));
        drop(feeder);
        fs::remove_file(&gone).expect("a counter");
        run.join().expect("a run")
    });
    let row = &rows(&bench.results().join("summary.csv"))[0];
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(row["status"], "invalid", "{}", row["reason"]);
    assert!(row["reason"].contains("a meter failed: package-1 (rapl)"), "{}", row["reason"]);
    assert!(row["decode_power_median_watts"].is_empty());
}

/// Runs something without the superuser's power to read every file. A thread has its capabilities for itself, and what
/// it starts has no more.
fn as_nobody_special<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let powers = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            let mut sets = capabilities(None).expect("capabilities");
            if sets.effective.contains(CapabilitySet::SETPCAP) {
                for power in powers.iter() {
                    remove_capability_from_bounding_set(power).expect("a bound");
                }
            }
            (sets.effective, sets.permitted) = (sets.effective - powers, sets.permitted - powers);
            sets.inheritable -= powers;
            set_capabilities(None, sets).expect("fewer capabilities");
            action()
        });
        thread.join().expect("the action")
    })
}
