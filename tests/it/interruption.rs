//! Runs that end before they are done, and go on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Runner, only_run, resume, run, summary, two_cells};

/// Lines of the journal that say a job ended.
fn ended_jobs(folder: &Path) -> usize {
    let journal = fs::read_to_string(folder.join("journal.jsonl")).unwrap();
    journal.lines().filter(|line| line.contains("\"job_ended\"")).count()
}

/// True once no worker of the script is left.
fn no_worker_left(script: &str) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut commands = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        let of_script = |command: Vec<u8>| command.split(|byte| *byte == 0).any(|word| word == script.as_bytes());
        if !commands.any(of_script) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn a_killed_runner_loses_the_job_in_flight_and_nothing_else() {
    let results = tempfile::tempdir().unwrap();
    // The order is cpu speed, openvino speed, openvino throughput, cpu throughput, cpu memory, …
    let script = "tiny-cpu/memory/0=hang;kill-test=measure";
    let mut runner = Runner::start(script, results.path());
    runner.wait_for("tiny-cpu: memory 0");
    runner.kill();
    assert!(no_worker_left(script), "the worker outlives its runner");

    let folder = only_run(results.path());
    assert_eq!(ended_jobs(&folder), 4);
    assert!(summary(&folder).is_empty(), "no cell was finished");
    let measured_before = fs::read(folder.join("samples.csv")).unwrap();

    // A job that was being written: half a row, half a line.
    append(&folder.join("samples.csv"), b"1,run,tiny-cpu,mem");
    append(&folder.join("journal.jsonl"), b"{\"event\":\"job_en");
    let report = resume(&folder, "speed=abort;throughput=abort", false).unwrap();
    assert!(report.all_measured(), "what was measured is not measured again: {:?}", report.outcomes);
    assert_eq!(ended_jobs(&folder), 8);
    let samples = fs::read(folder.join("samples.csv")).unwrap();
    assert!(samples.starts_with(&measured_before));
    assert!(!String::from_utf8(samples).unwrap().contains("tiny-cpu,mem\n"));
    let row = &summary(&folder)[0];
    assert_eq!((row["status"].as_str(), row["load_seconds_samples"].as_str()), ("measured", "4"));
}

fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn ctrl_c_ends_the_worker_and_keeps_what_is_finished() {
    for signal in [Signal::INT, Signal::TERM] {
        let results = tempfile::tempdir().unwrap();
        let script = format!("openvino/memory/1=hang;ctrl-c-test-{}=measure", signal.as_raw());
        let mut runner = Runner::start(&script, results.path());
        runner.wait_for("tiny-openvino: memory 1");
        runner.signal(signal);
        assert_eq!(runner.child.wait().unwrap().code(), Some(130));
        assert!(no_worker_left(&script));
        let folder = only_run(results.path());
        assert!(fs::read_to_string(folder.join("journal.jsonl")).unwrap().contains("\"interrupted\""));
        assert!(resume(&folder, "", false).unwrap().all_measured());
    }
}

#[test]
fn a_finished_cell_is_in_the_table_before_the_next_one_starts() {
    let results = tempfile::tempdir().unwrap();
    // The last round is openvino memory 1, cpu memory 1.
    let mut runner = Runner::start("tiny-cpu/memory/1=hang;table-test=measure", results.path());
    runner.wait_for("tiny-cpu: memory 1");
    let rows = summary(&only_run(results.path()));
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0]["cell_id"].as_str(), rows[0]["status"].as_str()), ("tiny-openvino", "measured"));
    runner.kill();
}

#[test]
fn a_second_runner_stays_out() {
    let results = tempfile::tempdir().unwrap();
    let mut runner = Runner::start("speed=hang;lock-test=measure", results.path());
    runner.wait_for("tiny-cpu: speed 0");
    let error = resume(&only_run(results.path()), "", false).unwrap_err();
    assert!(error.to_string().contains("another runner"), "{error}");
    assert_eq!(error.exit_code(), 3);
    runner.kill();
    assert!(resume(&only_run(results.path()), "", false).unwrap().all_measured(), "the lock dies with its runner");
}

#[test]
fn a_run_goes_on_with_its_own_matrix_only() {
    use crate::support::{matrix, options};
    use ortbench::orchestrator::{self, progress::Quiet};

    let results = tempfile::tempdir().unwrap();
    let folder = run(two_cells(), "", results.path()).unwrap().folder;
    let mut other = two_cells();
    other[0].threads = 4;
    let error = orchestrator::resume(&folder, Some(&matrix(other)), false, options("", &mut Quiet)).unwrap_err();
    assert!(error.to_string().contains("another matrix"));
    let same = orchestrator::resume(&folder, Some(&matrix(two_cells())), false, options("", &mut Quiet));
    assert!(same.unwrap().all_measured());
}

#[test]
fn a_folder_that_is_no_run_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let error = resume(folder.path(), "", false).unwrap_err();
    assert!(error.to_string().contains("not the folder of a run"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left in it");
}
