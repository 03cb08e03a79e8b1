//! `ortbench run` and `compare` as they are typed, and the exit codes that docs/exit-codes.md promises.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

use crate::support::{only_run, summary};

const MATRIX: &str = "\
version: 1
name: nowhere
models:
  - name: nothing
    package: packages/nothing
backends:
  - name: cpu
    runtime: cpu
    provider: cpu
matrix:
  model: nothing
  backend: cpu
  precision: fp32
  flavour: fused
  threads: 1
  batch: [1, 2]
  prompt_tokens: 8
  generate_tokens: 4
categories: [speed]
";

fn ortbench(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ortbench"));
    command.current_dir(folder);
    command
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("benchmarks.yaml"), MATRIX).unwrap();
    folder
}

#[test]
fn a_cell_that_cannot_be_measured_is_a_row_and_exit_code_1() {
    let folder = folder();
    let assert = ortbench(folder.path()).arg("run").assert().code(1);
    let output = assert.get_output();
    let run = only_run(&folder.path().join("results"));
    let rows = summary(&run);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["status"], "failed");
    assert!(rows[0]["reason"].contains("packages/nothing"), "{}", rows[0]["reason"]);
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(stdout.trim_end().ends_with("summary.csv"), "{stdout}");
    assert_eq!(fs::read_to_string(run.join("matrix.yaml")).unwrap(), MATRIX);

    ortbench(folder.path()).arg("compare").assert().success().stdout(contains("packages/nothing"));
    ortbench(folder.path()).args(["run", "--resume"]).arg(&run).assert().code(1);
}

#[test]
fn part_of_a_matrix_is_run_by_pattern() {
    let folder = folder();
    let none = ortbench(folder.path()).args(["run", "--cell", "no-such-cell"]).assert().code(2);
    none.stderr(contains("none of the 2 cells").and(contains("hint: `ortbench plan`")));
    assert!(!folder.path().join("results").exists(), "nothing was begun");
}

#[test]
fn a_plan_shows_tasks_and_references() {
    let folder = folder();
    let section =
        "accuracy:\n  tasks: [{task: recall.yaml, when: {batch: 2}, limit: 7, fewshot: 2}]\n  reference: {batch: 2}\n";
    let description = "version: 1\nname: recall\nkind: choice\ndata: items.jsonl\ncontext: '{{ question }}'\n\
                       choices: options\nanswer: label\n";
    fs::write(folder.path().join("recall.yaml"), description).unwrap();
    let item = |number: u32| format!("{{\"question\": \"{number}?\", \"options\": [\"a\", \"b\"], \"label\": 0}}\n");
    let items: String = (0..3).map(item).collect();
    fs::write(folder.path().join("items.jsonl"), &items).unwrap();
    let matrix = format!("{}{section}", MATRIX.replace("[speed]", "[speed, accuracy]"));
    fs::write(folder.path().join("benchmarks.yaml"), &matrix).unwrap();
    let assert = ortbench(folder.path()).arg("plan").assert().success();
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    let accuracy = place("\nAccuracy:\nnothing-fp32-fused-cpu-t1-b2-");
    assert!(accuracy < place("  task recall ("));
    place("recall.yaml), 7 items at most, 2 examples\n  reference nothing-fp32-fused-cpu-t1-b2-");
    place("Without accuracy, because none of its tasks is for them:\nnothing-fp32-fused-cpu-t1-b1-");
    let json = ortbench(folder.path()).args(["plan", "--json"]).assert().success().get_output().stdout.clone();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["cells"][1]["cell"]["accuracy"]["tasks"][0]["name"], "recall");
    assert_eq!(json["without_tasks"].as_array().unwrap().len(), 1);

    // One is one.
    let single = matrix.replace("limit: 7, fewshot: 2", "limit: 1, fewshot: 1");
    fs::write(folder.path().join("benchmarks.yaml"), single).unwrap();
    let assert = ortbench(folder.path()).arg("plan").assert().success();
    assert.stdout(contains("recall.yaml), 1 item at most, 1 example\n"));

    // A record that does not fit is found before anything runs.
    fs::write(folder.path().join("items.jsonl"), items.replace("\"label\": 0}\n", "\"label\": 2}\n")).unwrap();
    let assert = ortbench(folder.path()).arg("run").assert().code(2);
    assert.stderr(contains("does not fit the task: the answer's index is 2"));
    assert!(!folder.path().join("results").exists());
}

#[test]
fn a_right_answer_is_shown_as_it_is_compared() {
    let folder = folder();
    let item = "{\"question\": \"2 + 2?\", \"answer\": \"2 and 2 are four.\\n#### 4\"}\n";
    fs::write(folder.path().join("items.jsonl"), item).unwrap();
    let arguments = ["tasks", "gsm8k", "--data", "items.jsonl", "--fewshot", "0"];
    ortbench(folder.path()).args(arguments).assert().success().stdout(contains("\n    compared as: 4\n"));
}

#[test]
fn wrong_input_is_exit_code_2_before_anything_is_written() {
    let folder = folder();
    ortbench(folder.path()).args(["run", "absent.yaml"]).assert().code(2).stderr(contains("absent.yaml"));
    ortbench(folder.path()).args(["run", "--resume", "absent"]).assert().code(2).stderr(contains("absent"));
    ortbench(folder.path()).args(["run", "--retry-failed"]).assert().code(2);
    ortbench(folder.path()).args(["compare", "absent"]).assert().code(2).stderr(contains("absent"));
    assert!(!folder.path().join("results").exists());
}

#[test]
fn a_results_folder_that_cannot_be_made_is_exit_code_3() {
    let folder = folder();
    fs::write(folder.path().join("results"), "a file").unwrap();
    let assert = ortbench(folder.path()).arg("run").assert().code(3);
    assert.stderr(contains("error: cannot make the results folder `results`").and(contains("hint: ")));
}

#[test]
fn tasks_are_listed_printed_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let items = "{\"id\": \"a\", \"question\": \"Hot?\", \"choices\": {\"text\": [\"sun\", \"ice\"], \"label\": [\"A\", \"B\"]}, \
                 \"answerKey\": \"B\"}\nno JSON\n";
    fs::write(folder.path().join("items.jsonl"), items).unwrap();
    let run = |args: &[&str]| ortbench(folder.path()).arg("tasks").args(args).assert();
    run(&[]).success().stdout(contains("arc_easy").and(contains("gsm8k")).and(contains("perplexity")));
    run(&["arc_easy"]).success().stdout(contains("\nanswer: index_of(choices.label, answerKey)\n"));
    let shown = "item a\n  |Question: Hot?\n  |Answer:\n    \" sun\"\n  * \" ice\"\n\n";
    run(&["arc_easy", "--data", "items.jsonl", "--limit", "1"]).success().stdout(shown);
    run(&["arc_easy", "--data", "items.jsonl"]).code(2).stderr(contains("line 2, column 2 is not JSON"));
    run(&["arc_eazy"]).code(2).stderr(contains("did you mean `arc_easy`?"));
    run(&["absent.yaml"]).code(2).stderr(contains("absent.yaml"));
    fs::write(
        folder.path().join("own.yaml"),
        "version: 1\nname: own\nkind: generation\ndata: items.jsonl\ncontext: \"{{ question }}\"\nanswer: answerKey\n\
         chat: true\n",
    )
    .unwrap();
    let shown = "item a\n  |<user>\n  |Hot?\n  |<assistant>\n  * \"B\"\n    compared as: B\n\n";
    run(&["own.yaml", "--limit", "1"]).success().stdout(shown);
}
