//! What the tests of whole runs share: cells that the fake worker measures, a machine that has everything, and a way to
//! run a matrix in a process of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ortbench::cell::{Cell, RuntimeRef};
use ortbench::config::Matrix;
use ortbench::engine::fake;
use ortbench::error::{Error, Result};
use ortbench::orchestrator::child::Worker;
use ortbench::orchestrator::interrupt::Interrupt;
use ortbench::orchestrator::progress::{Lines, Quiet};
use ortbench::orchestrator::{self, Host, Options, Report};
use ortbench::results::Refusal;
use ortbench::results::record::Record;
use rustix::process::{Pid, Signal, kill_process};

/// A machine that has every runtime but those named `absent`.
pub struct Machine;

impl Host for Machine {
    fn library(&self, runtime: &RuntimeRef) -> Result<PathBuf> {
        match runtime {
            RuntimeRef::Installed(name) if name == "absent" => {
                Err(Error::environment("the runtime `absent` is not installed").hint("install it"))
            }
            _ => Ok(PathBuf::from("/fake/libonnxruntime.so")),
        }
    }

    fn refuse(&self, _cell: &Cell) -> Option<Refusal> {
        None
    }

    fn environment(&self) -> serde_json::Value {
        serde_json::json!({ "cpu": { "model": "=Fake, \"CPU\"", "cores_online": 2 } })
    }
}

/// This program's worker with a script.
pub fn worker(script: &str) -> Worker {
    Worker {
        program: env!("CARGO_BIN_EXE_ortbench").into(),
        arguments: vec!["worker".into(), "--fake".into(), script.into()],
    }
}

/// A matrix of these cells.
pub fn matrix(cells: Vec<Cell>) -> Matrix {
    Matrix {
        name: "test".to_owned(),
        source: PathBuf::from("/matrix.yaml"),
        text: "name: test\n".to_owned(),
        cells,
        excluded: Vec::new(),
        without_tasks: Vec::new(),
    }
}

/// Two backends on one model.
pub fn two_cells() -> Vec<Cell> {
    ["cpu", "openvino"].map(|backend| fake::cell("tiny", backend)).to_vec()
}

/// Runs the cells in this process.
pub fn run(cells: Vec<Cell>, script: &str, results: &Path) -> Result<Report> {
    orchestrator::start(&matrix(cells), results, options(script, &mut Quiet)).map(same_from_disk)
}

/// Continues a run in this process.
pub fn resume(folder: &Path, script: &str, retry_failed: bool) -> Result<Report> {
    orchestrator::resume(folder, None, retry_failed, options(script, &mut Quiet)).map(same_from_disk)
}

/// What a runner reports is what its folder says to whoever reads it later.
fn same_from_disk(report: Report) -> Report {
    let (record, _) = Record::load(&report.folder).expect("the run's own folder");
    assert_eq!(record.outcomes(), report.outcomes);
    report
}

/// Options with the fake worker.
pub fn options<'a>(script: &str, progress: &'a mut Quiet) -> Options<'a> {
    Options {
        worker: worker(script),
        host: &Machine,
        progress,
        interrupt: Interrupt::default(),
        byte_order_mark: false,
    }
}

/// The rows of a run's `summary.csv`, by column.
pub fn summary(folder: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(folder.join("summary.csv")).expect("a summary");
    reader.deserialize().map(|row| row.expect("a row")).collect()
}

/// The folder of the only run in `results`.
pub fn only_run(results: &Path) -> PathBuf {
    let runs: Vec<_> = std::fs::read_dir(results).expect("results").map(|entry| entry.unwrap().path()).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    runs[0].clone()
}

/// A runner in a process of its own, which tests may kill.
pub struct Runner {
    pub child: Child,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Runner {
    /// Runs [`two_cells`] below `results`. The process is this test binary again, asked for [`runner_process`] alone.
    pub fn start(script: &str, results: &Path) -> Self {
        Self::start_with("two", script, results)
    }

    /// The same with other cells: `accuracy` for those of the tests of that name, `limited` for cells with a memory limit.
    pub fn start_with(cells: &str, script: &str, results: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["support::runner_process", "--exact", "--ignored", "--nocapture"]);
        command.env("TEST_SCRIPT", script).env("TEST_RESULTS", results).env("TEST_CELLS", cells);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a runner");
        let stderr = BufReader::new(child.stderr.take().expect("its standard error"));
        Self { child, lines: Box::new(stderr.lines().map_while(std::result::Result::ok)) }
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a process that runs");
    }

    /// Ends the process as a crash would.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("its end");
    }

    /// Waits until a line of its standard error contains the text.
    pub fn wait_for(&mut self, text: &str) {
        assert!(self.lines.any(|line| line.contains(text)), "the runner ended without saying `{text}`");
    }
}

/// Not a test: the body of [`Runner`]'s process.
#[test]
#[ignore = "started by other tests"]
fn runner_process() {
    let variable = |name| std::env::var(name).expect("started by other tests");
    let mut progress = Lines;
    let options = Options {
        worker: worker(&variable("TEST_SCRIPT")),
        host: &Machine,
        progress: &mut progress,
        interrupt: Interrupt::install().expect("a handler"),
        byte_order_mark: false,
    };
    let cells = match variable("TEST_CELLS").as_str() {
        "accuracy" => crate::accuracy::cells(),
        "limited" => crate::limits::limited_cells(256 << 20),
        _ => two_cells(),
    };
    let report = orchestrator::start(&matrix(cells), variable("TEST_RESULTS").as_ref(), options);
    let report = report.unwrap_or_else(|error| {
        eprintln!("error: {}", error.chain());
        std::process::exit(i32::from(error.exit_code()));
    });
    std::process::exit(if report.interrupted { 130 } else { 0 });
}
