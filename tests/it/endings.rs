//! Every end that a worker's process can have becomes a row that says so, and harms no other row.

use std::path::Path;
use std::time::{Duration, Instant};

use ortbench::cell::{Category, Cell, Status};
use ortbench::engine::fake;
use ortbench::results::Outcome;

use crate::support::{resume, run, summary, two_cells};

/// Runs one cell for its speed beside an innocent one.
fn outcome(behaviour: &str, edit: impl FnOnce(&mut Cell)) -> Outcome {
    let results = tempfile::tempdir().unwrap();
    let mut cells = two_cells();
    for cell in &mut cells {
        cell.categories = vec![Category::Speed];
    }
    edit(&mut cells[0]);
    let mut report = run(cells, &format!("tiny-cpu={behaviour}"), results.path()).unwrap();
    assert_eq!(report.outcomes.len(), 2);
    assert_eq!(report.outcomes[1].status, Status::Measured, "{:?}", report.outcomes[1].reason);
    let rows = summary(&report.folder);
    assert_eq!(rows[0]["status"], report.outcomes[0].status.name());
    assert_eq!(rows[0]["ttft_median_seconds"].is_empty(), report.outcomes[0].status != Status::Measured);
    report.outcomes.swap_remove(0)
}

#[track_caller]
fn check(behaviour: &str, status: Status, words: &[&str]) {
    let outcome = outcome(behaviour, |_| {});
    let reason = outcome.reason.unwrap_or_default();
    assert_eq!(outcome.status, status, "{reason}");
    for word in words {
        assert!(reason.contains(word), "{reason:?} should contain {word:?}");
    }
    if status != Status::Measured {
        assert!(reason.starts_with("speed: "), "{reason}");
        assert!(outcome.samples.is_empty() && outcome.facts.is_empty());
    }
}

#[test]
fn crashes() {
    check("segfault", Status::Failed, &["SIGSEGV", "phase `measure`"]);
    check("abort", Status::Failed, &["SIGABRT", "phase `load`", "Ort::Exception"]);
    check("exit:3", Status::Failed, &["exit code 3"]);
    check("exit:0", Status::Failed, &["without a result"]);
}

#[test]
fn proper_failures() {
    check("fail:unsupported", Status::Unsupported, &["told to fail"]);
    check("fail:out_of_memory", Status::OutOfMemory, &["told to fail"]);
    check("fail:measured", Status::Failed, &["the status of a success"]);
}

#[test]
fn figures_that_cannot_be_true() {
    check("value:ttft_seconds:0", Status::Invalid, &["`ttft_seconds` has the value 0"]);
    check("value:ttft_seconds:nan", Status::Invalid, &["`ttft_seconds`", "not finite"]);
    check("value:decode_tokens_per_second:-5", Status::Invalid, &["the value -5"]);
    check("lack:itl_seconds", Status::Invalid, &["no sample of `itl_seconds`"]);
    check("unknown", Status::Invalid, &["`luck`"]);
}

#[test]
fn lines_that_are_not_messages() {
    check("foreign", Status::Failed, &["telepathy"]);
    let outcome = outcome("garbage", |_| {});
    assert_eq!(outcome.status, Status::Measured);
    assert!(outcome.warnings[0].contains("2 lines"), "{:?}", outcome.warnings);
}

#[test]
fn a_hanging_worker_is_ended_at_its_timeout() {
    let start = Instant::now();
    let outcome = outcome("hang", |cell| cell.measurement.timeout_seconds = 1.0);
    assert_eq!(outcome.status, Status::TimedOut);
    assert!(outcome.reason.unwrap().contains("longer than 1.00 s, in phase `load`"));
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// Runs a cell whose worker leaves a process behind, and returns that process's id.
fn left_behind(behaviour: &str) -> String {
    let results = tempfile::tempdir().unwrap();
    let mut cell = fake::cell("tiny", "cpu");
    cell.categories = vec![Category::Speed];
    let start = Instant::now();
    let report = run(vec![cell], &format!("speed={behaviour}"), results.path()).unwrap();
    assert!(report.all_measured());
    assert!(start.elapsed() < Duration::from_secs(20), "the runner waited for the process");
    let log = std::fs::read_to_string(report.folder.join("logs/tiny-cpu.speed.0.log")).unwrap();
    log.trim().strip_prefix("left behind: ").expect("its id").to_owned()
}

#[test]
fn what_a_worker_leaves_behind_is_ended_with_it() {
    let process = Path::new("/proc").join(left_behind("orphan"));
    // The kernel takes a moment, and whoever inherits the process may take another to collect it.
    let gone = || std::fs::read_to_string(process.join("stat")).map_or(true, |stat| stat.contains(") Z "));
    let start = Instant::now();
    while !gone() {
        assert!(start.elapsed() < Duration::from_secs(10), "{} is still there", process.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_process_that_escapes_with_the_output_does_not_hold_up_the_run() {
    left_behind("escape");
}

#[test]
fn the_other_categories_of_a_cell_are_kept() {
    let results = tempfile::tempdir().unwrap();
    let report = run(vec![fake::cell("tiny", "cpu")], "memory/1=segfault", results.path()).unwrap();
    let outcome = &report.outcomes[0];
    assert_eq!(outcome.status, Status::Failed);
    assert!(outcome.reason.as_ref().unwrap().starts_with("memory: the process ended by SIGSEGV"));
    assert_eq!(outcome.measured, [Category::Speed, Category::Throughput]);
    let row = &summary(&report.folder)[0];
    assert_eq!(row["categories_measured"], "speed throughput");
    assert!(!row["ttft_median_seconds"].is_empty());
    assert!(row["peak_rss_median_bytes"].is_empty(), "one of its two processes failed");
}

#[test]
fn a_package_that_changes_during_the_run_makes_no_row() {
    let results = tempfile::tempdir().unwrap();
    let report = run(vec![fake::cell("tiny", "cpu")], "memory/1=package:other", results.path()).unwrap();
    let outcome = &report.outcomes[0];
    assert_eq!(outcome.status, Status::Invalid);
    assert!(outcome.reason.as_ref().unwrap().contains("`package_hash` changed"));
    assert!(outcome.samples.is_empty());
}

#[test]
fn a_runtime_that_is_not_there_is_a_row_and_nothing_is_started() {
    let results = tempfile::tempdir().unwrap();
    let cells = vec![fake::cell("tiny", "absent"), fake::cell("tiny", "cpu")];
    let report = run(cells, "tiny-absent=abort", results.path()).unwrap();
    let row = &summary(&report.folder)[0];
    assert_eq!((row["status"].as_str(), row["started_at"].as_str()), ("unsupported", ""));
    assert!(row["reason"].contains("not installed"));
    assert_eq!(row["hint"], "install it");
    assert_eq!(report.outcomes[1].status, Status::Measured);
}

#[test]
fn what_failed_is_done_again_when_asked() {
    let results = tempfile::tempdir().unwrap();
    let report = run(two_cells(), "tiny-cpu/speed=segfault;openvino=fail:unsupported", results.path()).unwrap();
    assert!(!report.all_measured());
    let again = resume(&report.folder, "=abort", false).unwrap();
    assert_eq!(again.outcomes, report.outcomes, "without being asked, what ended stays as it is");
    let again = resume(&report.folder, "", true).unwrap();
    assert!(again.all_measured(), "{:?}", again.outcomes);
    assert_eq!(again.outcomes[0].samples["load_seconds"].len(), 4, "what was measured before still counts");
}

#[test]
fn without_ceilings_there_is_no_utilisation() {
    let results = tempfile::tempdir().unwrap();
    let with = run(vec![fake::cell("tiny", "cpu")], "", results.path()).unwrap();
    assert!(!summary(&with.folder)[0]["decode_mbu_ratio"].is_empty());
    let without = run(vec![fake::cell("tiny", "cpu")], "ceilings=abort", results.path()).unwrap();
    let row = &summary(&without.folder)[0];
    assert_eq!((row["decode_mbu_ratio"].as_str(), row["status"].as_str()), ("", "measured"));
    let environment = std::fs::read_to_string(without.folder.join("environment.json")).unwrap();
    assert!(environment.contains("SIGABRT"), "{environment}");

    let script = "ceilings=lack:ceiling_int4_flops_per_second";
    let partly = run(vec![fake::cell("tiny", "cpu")], script, results.path()).unwrap();
    let row = &summary(&partly.folder)[0];
    assert!(!row["decode_mbu_ratio"].is_empty(), "the bandwidth was measured before");
    assert_eq!(row["decode_mfu_ratio"], "");
}
