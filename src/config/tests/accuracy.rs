//! The section `accuracy`: plans, references, mistakes.

use std::collections::BTreeSet;

use super::*;
use crate::cell::{Category, Scoring, TaskSource};

const SECTION: &str = "\
accuracy:
  tasks:
    - tasks/{model}/recall.yaml
    - task: hellaswag
      data: items.jsonl
      examples: train.jsonl
      name: hellaswag-3shot
      limit: 200
      fewshot: 3
      chat: true
      max_length: 2048
      when: {model: tiny}
  limit: 500
  seed: 7
  reference: {backend: cpu, precision: fp32}
  fidelity: {text: text.txt, window: 64}
accuracy_floor: 0.99 of reference
";

const HEAD: &str = "\
version: 1
name: demo
models: [{name: tiny, package: p}, {name: large, package: p}]
backends: [{name: cpu, runtime: cpu, provider: cpu}, {name: ov, runtime: openvino, provider: openvino}]
matrix: {model: [tiny, large], backend: [cpu, ov], precision: [int4, fp32], threads: 2, batch: [1, 4],
  prompt_tokens: 16, generate_tokens: 8}
";

const DESCRIPTION: &str = "\
version: 1
name: recall
kind: choice
data: ../../items.jsonl
context: '{{ question }}'
choices: options
answer: label
";

/// A record that fits [`DESCRIPTION`] and the ready description hellaswag; `number` tells it from others.
fn record(number: u32) -> String {
    let endings = ["up", "down", "left", "right"];
    let record = serde_json::json!({
        "question": format!("Which way {number}?"), "options": endings, "label": 1,
        "activity_label": "Walking", "ctx_a": format!("A man {number}."), "ctx_b": "he goes", "endings": endings,
    });
    format!("{record}\n")
}

/// Parses the text as a file in a folder that has what [`SECTION`] names.
fn with_files(text: &str) -> (tempfile::TempDir, Result<Matrix>) {
    let folder = tempfile::tempdir().unwrap();
    for model in ["tiny", "large"] {
        let tasks = folder.path().join("tasks").join(model);
        fs::create_dir_all(&tasks).unwrap();
        fs::write(tasks.join("recall.yaml"), DESCRIPTION).unwrap();
    }
    fs::write(folder.path().join("odd name.yaml"), DESCRIPTION.replace("../../", "")).unwrap();
    let records: String = (0..4).map(record).collect();
    for file in ["items.jsonl", "train.jsonl", "text.txt"] {
        fs::write(folder.path().join(file), &records).unwrap();
    }
    fs::write(folder.path().join("wrong.jsonl"), records.clone() + "{\"question\": \"?\"}\n").unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let code = "{\"task_id\": \"x/0\", \"prompt\": \"def f():\\n\", \"test\": \"\", \"entry_point\": \"f\"}\n";
    fs::write(folder.path().join("code.jsonl"), code).unwrap();
    let matrix = parse("b.yaml", &folder.path().join("b.yaml"), text.to_owned());
    (folder, matrix)
}

fn good(text: &str) -> Matrix {
    with_files(text).1.unwrap()
}

fn find<'a>(matrix: &'a Matrix, start: &str) -> &'a Cell {
    matrix.cells.iter().find(|cell| cell.id.0.starts_with(start)).expect("the cell")
}

#[test]
fn a_cell_has_its_tasks_and_its_reference() {
    let (folder, matrix) = with_files(&format!("{HEAD}{SECTION}"));
    let matrix = matrix.unwrap();
    let cell = find(&matrix, "tiny-int4-fused-ov-t2-b4-");
    assert_eq!(cell.categories, Category::ALL[..4]);
    let plan = cell.accuracy.as_deref().unwrap();
    assert_eq!((plan.seed, plan.scoring, plan.run_code, plan.floor), (7, Scoring::Batched, false, Some(0.99)));
    let [recall, hellaswag] = &plan.tasks[..] else { panic!("{:?}", plan.tasks) };
    let file = folder.path().join("tasks/tiny/recall.yaml");
    assert_eq!((recall.name.as_str(), recall.limit), ("recall", Some(500)));
    assert_eq!(recall.description, TaskSource::File(file));
    assert_eq!(hellaswag.description, TaskSource::Ready("hellaswag".to_owned()));
    assert_eq!((hellaswag.name.as_str(), hellaswag.limit, hellaswag.fewshot), ("hellaswag-3shot", Some(200), Some(3)));
    assert_eq!((hellaswag.chat, hellaswag.max_length), (Some(true), Some(2048)));
    assert_eq!(hellaswag.data, Some(folder.path().join("items.jsonl")));
    assert_eq!(hellaswag.examples, Some(folder.path().join("train.jsonl")));
    let fidelity = plan.fidelity.as_ref().unwrap();
    assert_eq!((fidelity.tokens, fidelity.window, fidelity.context), (2048, 64, 32));
    assert_eq!((fidelity.generations, fidelity.generate_tokens), (8, 32));

    // The first cell of the matrix with these axes: neither its batch nor the cell's own counts.
    let reference = find(&matrix, "tiny-fp32-fused-cpu-t2-b1-").id.clone();
    for cell in matrix.cells.iter().filter(|cell| cell.model.name == "tiny") {
        assert_eq!(cell.accuracy.as_ref().unwrap().reference, Some(reference.clone()), "{}", cell.id);
    }
    assert_eq!(find(&matrix, "large-").accuracy.as_ref().unwrap().tasks.len(), 1);
}

#[test]
fn accuracy_is_asked_only_where_the_file_says_what_it_is() {
    let asked = |text: &str| good(text).cells[0].categories.clone();
    assert_eq!(asked(HEAD), [Category::Speed, Category::Throughput, Category::Memory]);
    assert_eq!(asked(&format!("{HEAD}{SECTION}categories: speed\n")), [Category::Speed]);
    assert!(good(&format!("{HEAD}{SECTION}categories: speed\n")).cells[0].accuracy.is_none());
}

#[test]
fn a_rule_takes_accuracy_from_cells() {
    let rule = "overrides: [{when: {batch: 1}, set: {categories: [speed]}}]\n";
    let matrix = good(&format!("{HEAD}{SECTION}{rule}"));
    assert!(find(&matrix, "tiny-int4-fused-ov-t2-b1-").accuracy.is_none());
    let plan = find(&matrix, "tiny-int4-fused-ov-t2-b4-").accuracy.as_ref().unwrap();
    let reference = plan.reference.as_ref().unwrap();
    assert!(reference.0.starts_with("tiny-fp32-fused-cpu-t2-b4-"), "the first one that measures it: {reference}");
}

#[test]
fn a_cell_that_no_task_is_for_has_no_accuracy() {
    let section = "accuracy: {tasks: [{task: hellaswag, data: items.jsonl, when: {model: tiny}}]}\n";
    let matrix = good(&format!("{HEAD}{section}"));
    assert!(find(&matrix, "tiny-").categories.contains(&Category::Accuracy));
    assert!(!find(&matrix, "large-").categories.contains(&Category::Accuracy));
    assert_eq!(matrix.without_tasks.len(), 8);

    let matrix = good(&format!("{HEAD}{section}categories: accuracy\n"));
    assert!(matrix.without_tasks.is_empty() && matrix.cells.len() == 8);
    assert!(matrix.excluded[0].reason.contains("nothing but accuracy"));
}

#[test]
fn what_stands_behind_the_limit_is_not_looked_at_and_chats_need_no_model() {
    let text = format!("{HEAD}{SECTION}").replace("items", "wrong").replace("500", "4").replace("200", "4");
    good(&text);
}

#[test]
fn programs_run_only_where_the_section_allows_it() {
    let section = "accuracy: {run_code: true, tasks: [{task: humaneval, data: code.jsonl, max_tokens: 48}]}\n";
    let matrix = good(&format!("{HEAD}{section}"));
    let plan = matrix.cells[0].accuracy.as_ref().unwrap();
    assert_eq!((plan.run_code, plan.tasks[0].max_tokens), (true, Some(48)));
}

#[test]
fn a_chosen_cell_brings_its_reference() {
    let matrix = good(&format!("{HEAD}{SECTION}")).only("tiny-int4-fused-ov-t2-b4").unwrap();
    let [cell, reference] = &matrix.cells[..] else { panic!("{:?}", matrix.cells) };
    assert_eq!(cell.accuracy.as_ref().unwrap().reference.as_ref(), Some(&reference.id));
    assert_eq!((cell.categories.len(), &reference.categories[..]), (4, &[Category::Accuracy][..]));
}

#[test]
fn mistakes_have_places_and_remedies() {
    let text = format!("{HEAD}{SECTION}");
    let cases = [
        ("no section", format!("{HEAD}categories: [speed, accuracy]\n")),
        (
            "no section for a rule",
            format!("{HEAD}overrides: [{{when: {{batch: 1}}, set: {{categories: accuracy}}}}]\n"),
        ),
        ("nothing asked", format!("{HEAD}accuracy: {{seed: 1}}\n")),
        ("unknown key", text.replace("fewshot", "fewshots")),
        ("unknown key of the section", text.replace("  seed: 7", "  sead: 7")),
        ("no description", text.replace("- task: hellaswag\n      data", "- data")),
        ("an answer's length where none is written", text.replace("max_length", "max_tokens")),
        ("an answer of no tokens", text.replace("max_length: 2048", "max_tokens: 0")),
        ("unknown scoring", text.replace("  seed: 7", "  scoring: bached")),
        ("a limit below zero", text.replace("limit: 500", "limit: -3")),
        ("a limit of a task that is a text", text.replace("limit: 200", "limit: all # of them")),
        ("a seed below zero", text.replace("seed: 7", "seed: -1")),
        ("no truth value", text.replace("seed: 7", "run_code: 1")),
        ("a value within braces", text.replace("window: 64", "window: 6.5, context: 1")),
        ("limit of zero", text.replace("limit: 500", "limit: 0")),
        (
            "missing files",
            text.replace("recall", "recal")
                .replace("items", "itens")
                .replace("train", "trian")
                .replace("text.txt", "txt.txt"),
        ),
        ("missing for one model", text.replace("{model}/recall", "{model}/../tiny/{model}/../recall")),
        ("items that do not fit", text.replace("items", "wrong").replace("limit: 500", "limit: 5").replace("200", "5")),
        ("examples that do not fit", text.replace("train", "wrong").replace("fewshot: 3", "fewshot: 5")),
        ("too few examples", text.replace("fewshot: 3", "fewshot: 9")),
        (
            "too few examples for the items' own file",
            text.replace("fewshot: 3", "fewshot: 4").replace("      examples: train.jsonl\n", ""),
        ),
        ("a folder for data", text.replace("items.jsonl", "data")),
        ("code that nothing allows", format!("{HEAD}accuracy: {{tasks: [{{task: humaneval, data: code.jsonl}}]}}\n")),
        ("unknown placeholder", text.replace("tasks/{model}", "tasks/{modle}")),
        ("name twice", text.replace("hellaswag-3shot", "recall")),
        ("unsafe name", text.replace("hellaswag-3shot", "../x")),
        ("unsafe default name", text.replace("tasks/{model}/recall.yaml", "odd name.yaml")),
        ("`when` that matches nothing", text.replace("when: {model: tiny}", "when: {batch: 9}")),
        ("floor without a reference", text.replace("  reference: {backend: cpu, precision: fp32}\n", "")),
        ("floor without a section", format!("{HEAD}accuracy_floor: 0.99 of reference\n")),
        (
            "floor without tasks",
            format!(
                "{HEAD}accuracy: {{reference: {{backend: cpu}}, fidelity: {{random_tokens: {{seed: 0}}}}}}\n\
                 accuracy_floor: 0.9 of reference\n"
            ),
        ),
        (
            "floor of a cell without tasks",
            format!(
                "{HEAD}accuracy: {{tasks: [{{task: tasks/tiny/recall.yaml, when: {{model: tiny}}}}], \
                 reference: {{backend: cpu}}, fidelity: {{random_tokens: {{seed: 0}}}}}}\n\
                 accuracy_floor: 0.9 of reference\n"
            ),
        ),
        ("floor as a number", text.replace("0.99 of reference", "0.99")),
        ("floor above 1", text.replace("0.99 of", "99 of")),
        ("several references", text.replace("precision: fp32}", "precision: [fp32, int4]}")),
        ("reference of nothing", text.replace("{backend: cpu, precision: fp32}", "{}")),
        ("unknown axis value", text.replace("precision: fp32}", "precision: fp33}")),
        ("reference that is not there", text.replace("precision: fp32}", "precision: fp16}")),
        ("excluded reference", format!("{text}exclude: [{{precision: fp32, backend: cpu, reason: too slow}}]\n")),
        (
            "reference without accuracy",
            format!("{text}overrides: [{{when: {{precision: fp32}}, set: {{categories: speed}}}}]\n"),
        ),
        ("task that the reference lacks", text.replace("when: {model: tiny}", "when: {model: tiny, precision: int4}")),
        ("context as long as the window", text.replace("window: 64", "window: 64, context: 64")),
        (
            "rule that asks for nothing",
            format!(
                "{HEAD}accuracy: {{tasks: [{{task: hellaswag, data: items.jsonl, when: {{model: tiny}}}}]}}\n\
                 overrides: [{{when: {{model: large}}, set: {{categories: [speed, accuracy]}}}}]\n"
            ),
        ),
    ];
    let texts: Vec<_> = cases
        .iter()
        .map(|(name, text)| {
            let (folder, matrix) = with_files(text);
            let error = matrix.expect_err(name).to_string();
            format!("## {name}\n{}\n", error.replace(&folder.path().display().to_string(), "FOLDER"))
        })
        .collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn ids_do_not_depend_on_accuracy() {
    let ids = |text: &str| good(text).cells.into_iter().map(|cell| cell.id).collect::<BTreeSet<_>>();
    assert_eq!(ids(HEAD), ids(&format!("{HEAD}{SECTION}")));
}

proptest! {
    #[test]
    fn no_mutation_panics(at in 0..SECTION.len(), with in "[-:\\[\\]{}\"'#&*!|>%@` \n\ta-z0-9]{0,4}", cut in 0..12_usize) {
        let end = (at + cut).min(SECTION.len());
        let _ = load_text(&format!("{HEAD}{}{with}{}", &SECTION[..at], &SECTION[end..]));
    }

    /// Whatever the file's order, a reference is a cell of the matrix, is its own reference, and has every task.
    #[test]
    fn a_reference_is_its_own(axes in prop::sample::subsequence(vec!["backend: cpu", "precision: fp32", "batch: 4"], 1..=3)) {
        let section = SECTION.replace("backend: cpu, precision: fp32", &axes.join(", "));
        let matrix = good(&format!("{HEAD}{section}"));
        for cell in &matrix.cells {
            let plan = cell.accuracy.as_ref().unwrap();
            let reference = matrix.cells.iter().find(|other| Some(&other.id) == plan.reference.as_ref()).unwrap();
            prop_assert_eq!(reference.accuracy.as_ref().unwrap().reference.as_ref(), Some(&reference.id));
            prop_assert_eq!(&reference.accuracy.as_ref().unwrap().tasks, &plan.tasks);
        }
    }
}
