//! Accuracy in whole runs: references come first and leave their answers, tasks and items become rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ortbench::cell::{Category, Cell, Status};
use ortbench::engine::fake;
use ortbench::results::{columns, tasks};

use crate::support::{Runner, only_run, resume, run, summary};

/// An arm before its reference, with speed and accuracy each.
pub fn cells() -> Vec<Cell> {
    let reference = fake::cell("ref", "cpu").id;
    let cell = |name, backend| {
        let mut cell = fake::cell_with_accuracy(name, backend, Some(&reference));
        cell.categories = vec![Category::Speed, Category::Accuracy];
        cell
    };
    vec![cell("arm", "openvino"), cell("ref", "cpu")]
}

fn rows(folder: &Path, name: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(folder.join(name)).unwrap();
    reader.deserialize().map(Result::unwrap).collect()
}

/// Cells and categories in the order in which their jobs ended.
fn ended(folder: &Path) -> Vec<String> {
    let journal = fs::read_to_string(folder.join("journal.jsonl")).unwrap();
    let events = journal.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let ended = events.filter(|event| event["event"] == "job_ended");
    ended.map(|event| format!("{} {}", event["job"]["cell"], event["job"]["category"]).replace('"', "")).collect()
}

#[test]
fn the_header_of_the_tasks_is_as_agreed_and_a_row_has_its_figures() {
    let names: Vec<_> = tasks::columns().iter().map(|column| column.name).collect();
    insta::assert_snapshot!("tasks_header", names.join("\n"));

    let results = tempfile::tempdir().unwrap();
    let mut cells = cells();
    cells[0].model.name = "=1+1".to_owned();
    let report = run(cells, "", results.path()).unwrap();
    assert!(report.all_measured(), "{:?}", report.outcomes);
    let text = fs::read_to_string(report.folder.join("tasks.csv")).unwrap();
    assert!(text.split_inclusive('\n').all(|line| line.ends_with("\r\n")));
    let rows = rows(&report.folder, "tasks.csv");
    assert_eq!(rows.len(), 4);
    let row: Vec<_> = names.iter().map(|name| format!("{name}: {}", rows[0][*name])).collect();
    let row = row.join("\n").replace(&rows[0]["run_id"], "RUN");
    insta::assert_snapshot!("tasks_row", row);
    let run_id = report.folder.file_name().unwrap().to_string_lossy();
    assert!(rows.iter().all(|row| row["run_id"] == run_id));
    assert_eq!(
        (rows[3]["cell_id"].as_str(), rows[3]["task"].as_str(), rows[3]["acc"].as_str()),
        ("ref-cpu", "wiki", "")
    );
    assert_eq!([&rows[2], &rows[3]].map(|row| row["higher_is_better"].as_str()), ["true", "false"]);
}

#[test]
fn items_are_samples_with_their_task_and_id() {
    let results = tempfile::tempdir().unwrap();
    let report = run(cells(), "", results.path()).unwrap();
    let samples = rows(&report.folder, "samples.csv");
    let items: Vec<_> =
        samples.iter().filter(|row| row["cell_id"] == "arm-openvino" && !row["task"].is_empty()).collect();
    let fields = ["category", "process", "metric", "unit", "repetition", "index", "value", "task", "item"];
    let text: Vec<_> = items.iter().map(|row| fields.map(|field| row[field].as_str()).join(" ")).collect();
    assert_eq!(
        text,
        [
            "accuracy 0 item_acc  0 0 1 recall q0",
            "accuracy 0 item_acc  0 1 1 recall q1",
            "accuracy 0 item_acc  0 2 0 recall q2",
            "accuracy 0 item_acc  0 3 1 recall q3",
            "accuracy 0 item_log_likelihood nats 0 0 -12.5 wiki '=d0",
        ]
    );
    assert!(samples.iter().filter(|row| row["metric"] == "ttft_seconds").all(|row| row["item"].is_empty()));
}

#[test]
fn a_run_without_accuracy_has_no_table_of_tasks() {
    let results = tempfile::tempdir().unwrap();
    let report = run(crate::support::two_cells(), "", results.path()).unwrap();
    assert!(!report.folder.join("tasks.csv").exists() && !report.folder.join("references").exists());
}

#[test]
fn a_reference_comes_first_and_its_large_file_goes_at_the_end() {
    let results = tempfile::tempdir().unwrap();
    let report = run(cells(), "", results.path()).unwrap();
    assert!(report.all_measured(), "{:?}", report.outcomes);
    assert_eq!(
        ended(&report.folder),
        ["arm-openvino speed", "ref-cpu accuracy", "arm-openvino accuracy", "ref-cpu speed"]
    );
    let reference = report.folder.join("references/ref-cpu");
    assert!(reference.join("reference.json").is_file());
    assert!(!reference.join("logits.bin").exists());
}

#[test]
fn without_a_reference_a_cell_is_scored_alone() {
    let results = tempfile::tempdir().unwrap();
    let report = run(cells(), "ref-cpu/accuracy=fail:out_of_memory", results.path()).unwrap();
    assert!(!report.all_measured(), "the reference was not");
    let arm = &report.outcomes[0];
    assert_eq!((arm.status, &arm.reason), (Status::Measured, &None));
    let expected = "accuracy was not compared: the reference `ref-cpu` ended: out_of_memory: the fake was told to fail \
                    (hint: tell it otherwise)";
    assert!(arm.warnings.iter().any(|warning| warning == expected), "{:?}", arm.warnings);
    let row = &summary(&report.folder)[0];
    assert_eq!((row["accuracy_score"].as_str(), row["accuracy_gate"].as_str()), ("0.5", ""));
    assert!(row["kl_divergence_mean"].is_empty() && row["warnings"].contains(expected));
    let tasks = rows(&report.folder, "tasks.csv");
    assert_eq!(tasks.iter().map(|row| row["cell_id"].as_str()).collect::<Vec<_>>(), ["arm-openvino"; 2]);
    assert!(tasks[0]["score"] == "0.75" && tasks[0]["flips"].is_empty());
    let text = ortbench::results::compare::render(&report.outcomes);
    assert!(text.contains("openvino (accuracy unknown)"), "{text}");

    // The row stays as it was measured, although the reference is measured now.
    let before = ended(&report.folder).len();
    let again = resume(&report.folder, "speed=abort", true).unwrap();
    assert!(again.all_measured(), "{:?}", again.outcomes);
    assert_eq!(ended(&report.folder).len(), before + 1);
    assert_eq!(rows(&report.folder, "tasks.csv").len(), 4);
}

#[test]
fn a_cell_that_is_scored_alone_may_fail_by_itself() {
    let results = tempfile::tempdir().unwrap();
    let report = run(cells(), "accuracy=abort", results.path()).unwrap();
    let arm = &report.outcomes[0];
    assert_eq!((arm.status, &arm.measured[..]), (Status::Failed, &[Category::Speed][..]));
    assert!(arm.reason.as_ref().unwrap().starts_with("accuracy: the process ended by SIGABRT"), "{:?}", arm.reason);
    let again = resume(&report.folder, "", true).unwrap();
    assert!(again.all_measured() && again.outcomes[0].text("accuracy_gate") == Some("pass"), "{:?}", again.outcomes);
}

#[test]
fn a_reference_whose_runtime_is_missing_is_named() {
    let results = tempfile::tempdir().unwrap();
    let mut cells = cells();
    cells[1].backend = fake::cell("ref", "absent").backend;
    let report = run(cells, "", results.path()).unwrap();
    assert_eq!(report.outcomes[0].status, Status::Measured);
    let warnings = report.outcomes[0].warnings.join("\n");
    assert!(warnings.contains("`ref-cpu` was not started: unsupported: the runtime `absent`"), "{warnings}");
}

#[test]
fn answers_that_were_removed_are_made_again() {
    let results = tempfile::tempdir().unwrap();
    let report = run(cells(), "arm-openvino/accuracy=abort", results.path()).unwrap();
    assert!(!report.all_measured());
    let reference = report.folder.join("references/ref-cpu");
    for gone in ["logits.bin", "reference.json"] {
        let _ = fs::remove_file(reference.join(gone));
        let before = (ended(&report.folder).len(), summary(&report.folder)[1].clone());
        let again = resume(&report.folder, "arm-openvino/accuracy=abort", true).unwrap();
        assert_eq!(ended(&report.folder).len(), before.0 + 1, "the reference's second run is no job of its own");
        assert!(reference.join("reference.json").is_file() && !reference.join("logits.bin").exists());
        assert_eq!(summary(&report.folder)[1], before.1);
        assert_eq!(again.outcomes[1].tasks[0].figures["acc"], 0.75);
    }
    // Answers that are others than those of its row are no reference.
    fs::remove_file(reference.join("reference.json")).unwrap();
    for script in ["ref-cpu=value:acc:0.1", "ref-cpu=package:another"] {
        let other = resume(&report.folder, script, true).unwrap();
        let reason = other.outcomes[0].reason.clone().unwrap();
        assert!(reason.contains("lost its answers, and another run of it gave others"), "{reason}");
        assert_eq!(other.outcomes[1].tasks[0].figures["acc"], 0.75);
        assert!(!reference.join("reference.json").exists());
    }
    let unwilling = resume(&report.folder, "ref-cpu=fail:out_of_memory", true).unwrap();
    let reason = unwilling.outcomes[0].reason.clone().unwrap();
    assert!(reason.contains("lost its answers, and another run of it ended: out_of_memory"), "{reason}");
    let empty_handed = resume(&report.folder, "ref-cpu=lack:logits.bin", true).unwrap();
    let reason = empty_handed.outcomes[0].reason.clone().unwrap();
    assert!(reason.contains("left none"), "{reason}");
    assert!(resume(&report.folder, "", true).unwrap().all_measured());
}

#[test]
fn a_reference_that_fails_leaves_no_earlier_answers() {
    let results = tempfile::tempdir().unwrap();
    let report = run(cells(), "ref-cpu/accuracy=value:acc:nan", results.path()).unwrap();
    let reference = report.folder.join("references/ref-cpu");
    assert!(reference.join("reference.json").is_file(), "it failed after it had written them");
    let arm = &report.outcomes[0];
    assert!(arm.warnings.iter().any(|warning| warning.contains("`ref-cpu` ended: invalid")), "{:?}", arm.warnings);
    assert!(arm.text("accuracy_gate").is_none(), "no one reads them");
    resume(&report.folder, "ref-cpu/accuracy=lack:reference.json", true).unwrap();
    assert!(!reference.join("reference.json").exists());
}

#[test]
fn results_of_tasks_that_cannot_be_true_are_invalid() {
    for (script, words) in [
        ("lack:wiki", "the task `wiki` has no result"),
        ("value:acc:nan", "`acc` of the task `recall` is not finite"),
        ("value:item_acc:nan", "`item_acc` of the item `q0`"),
        ("unknown", "figure `luck`"),
    ] {
        let results = tempfile::tempdir().unwrap();
        let report = run(cells(), &format!("arm-openvino/accuracy={script}"), results.path()).unwrap();
        let arm = &report.outcomes[0];
        let reason = arm.reason.clone().unwrap_or_default();
        assert!(arm.status == Status::Invalid && reason.contains(words), "{script}: {reason}");
        assert_eq!(rows(&report.folder, "tasks.csv").len(), 2, "the reference's");
        let samples = rows(&report.folder, "samples.csv");
        assert!(samples.iter().all(|row| row["cell_id"] != "arm-openvino" || row["category"] == "speed"));
    }
}

#[test]
fn an_arm_below_the_floor_is_measured_and_marked() {
    let results = tempfile::tempdir().unwrap();
    let report = run(cells(), "arm-openvino=below", results.path()).unwrap();
    assert!(report.all_measured());
    let row = &summary(&report.folder)[0];
    assert_eq!((row["status"].as_str(), row["accuracy_gate"].as_str()), ("measured", "fail"));
    let failure = "FAILS the accuracy floor: recall 0.31 of 0.42 (floor 0.99)";
    assert!(row["warnings"].starts_with(failure), "{}", row["warnings"]);
    assert!(!row["ttft_median_seconds"].is_empty());
    let text = ortbench::results::compare::render(&report.outcomes);
    assert!(text.contains(&format!("openvino: {failure}")), "{text}");
    assert_eq!(text.matches(failure).count(), 1, "{text}");
    let of_accuracy = |column: &&columns::Column| column.category == Some(Category::Accuracy);
    assert!(columns::all().iter().filter(of_accuracy).all(|column| !row[&column.name].is_empty()));
}

#[test]
fn a_killed_run_keeps_items_and_answers() {
    let results = tempfile::tempdir().unwrap();
    let mut runner = Runner::start_with("accuracy", "arm-openvino/accuracy=hang;accuracy-test=measure", results.path());
    runner.wait_for("arm-openvino: accuracy 0");
    runner.kill();
    let folder = only_run(results.path());
    assert_eq!(ended(&folder), ["arm-openvino speed", "ref-cpu accuracy"]);
    assert!(folder.join("references/ref-cpu/logits.bin").is_file(), "it is still needed");
    let before = fs::read(folder.join("samples.csv")).unwrap();
    // The reference would fail now: it need not run again.
    let report = resume(&folder, "ref-cpu/accuracy=abort", false).unwrap();
    assert!(report.all_measured(), "{:?}", report.outcomes);
    assert!(fs::read(folder.join("samples.csv")).unwrap().starts_with(&before));
    assert_eq!(rows(&folder, "samples.csv").iter().filter(|row| !row["task"].is_empty()).count(), 10);
    assert!(!folder.join("references/ref-cpu/logits.bin").exists());
}
