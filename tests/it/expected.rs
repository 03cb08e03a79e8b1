//! The miniatures' own scores on their task sets, through `ortbench run`: those that `training.json`, transformers and
//! lm-evaluation-harness have for the same items, and for the rest those that were measured once.
//!
//! `UPDATE_EXPECTED=1 cargo test --test it expected` writes `models/tasks/expected.json` anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use ortbench::categories::Answers;
use ortbench::cell::{Scoring, TaskRef, TaskSource};
use ortbench::package::Package;
use ortbench::tasks::TaskSet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::measuring::{only_run, rows};
use crate::real::{json, load, ortbench, package_of, root};

const FILE: &str = "models/tasks/expected.json";
const OF_TEXT: [&str; 3] = ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny"];
const OF_PICTURES: &str = "qwen3-vl-tiny";

/// Description in `models/tasks/`, items in `models/*/tasks/`, name of the same figure in `training.json`, name of
/// the same case of the harness.
const TASKS: [(&str, &str, Option<&str>, Option<&str>); 11] = [
    ("arithmetic", "arithmetic", Some("arithmetic_choice_accuracy"), Some("arithmetic")),
    ("arithmetic_exact", "arithmetic", Some("arithmetic_exact"), None),
    ("arithmetic_chat_exact", "arithmetic", Some("arithmetic_chat_exact"), None),
    ("recall", "recall", None, Some("recall")),
    ("recall_plain_exact", "recall", Some("recall_plain_exact"), None),
    ("recall_question_exact", "recall", Some("recall_question_exact"), None),
    ("recall_chat_exact", "recall", Some("recall_chat_exact"), None),
    ("pairs", "pairs", None, Some("pairs")),
    ("documents", "documents", None, Some("documents-128")),
    ("sums", "sums", None, Some("sums.stripped")),
    ("steps", "steps", None, None),
];

/// What transformers makes of the questions about pictures.
const CHOICES: &str = "models/qwen3-vl-tiny/golden/choices.json";
/// Nats between two kernels' sums of a vision tower and a decoder in single precision.
const OF_PICTURE: f64 = 2e-4;
const PICTURES: [&str; 4] = ["colour", "shape", "count", "place"];

#[derive(Debug, Serialize, Deserialize)]
struct Expected {
    about: String,
    scores: Vec<Score>,
}

/// A figure of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Score {
    model: String,
    task: String,
    items: u64,
    metric: String,
    value: f64,
    /// The file and the name there, or how it was measured.
    from: String,
}

/// What others say of a task of a model: the value, how far rounding may be off, and where it stands.
fn said(model: &str, task: &str) -> Option<(f64, f64, String)> {
    if model == OF_PICTURES {
        let value = json(CHOICES)[task]["acc"].as_f64().expect("a figure of transformers");
        return Some((value, 1e-6, format!("{CHOICES}: {task}.acc")));
    }
    let (.., training, harness) = TASKS.iter().find(|(name, ..)| *name == task)?;
    if let Some(key) = training {
        let file = format!("models/{model}/training.json");
        let value = json(&file)["held_out"][*key].as_f64().expect("a figure of training");
        return Some((value, 0.5e-4, format!("{file}: held_out.{key}")));
    }
    let (case, filter) =
        harness.filter(|_| model == "qwen3-tiny").map(|name| name.split_once('.').unwrap_or((name, "")))?;
    let file = "tests/data/harness/golden.json";
    let golden = json(file);
    let case = golden["cases"].as_array().expect("cases").iter().find(|found| found["name"] == case).expect("the case");
    let figure = match case["kind"].as_str() {
        Some("multiple_choice") => "acc".to_owned(),
        Some("loglikelihood_rolling") => "bits_per_byte".to_owned(),
        _ => format!("exact_match,{filter}"),
    };
    let value = case["results"][&figure].as_f64().expect("a figure of the harness");
    let tolerance = if figure == "bits_per_byte" { 1e-4 * value } else { 1e-6 };
    Some((value, tolerance, format!("{file}: {}, {figure}", case["name"].as_str().expect("a name"))))
}

/// Rows of `tasks.csv` of one run of all miniatures, by model and task.
fn measured(folder: &Path) -> BTreeMap<(String, String), Score> {
    let models: Vec<&str> = OF_TEXT.into_iter().chain([OF_PICTURES]).collect();
    let folder_of = |model: &&str| package_of(model, "fp32-fused");
    assert!(models.iter().map(folder_of).all(|folder| folder.is_dir()));
    let root = root().display();
    let mut text = format!(
        "version: 1\nname: expected\nmodels:\n{}backends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
         matrix: {{model: [{}], backend: cpu, precision: fp32, flavour: fused, threads: 2, batch: 1, prompt_tokens: 16, \
         generate_tokens: 4}}\ncategories: accuracy\nmeasurement: {{profile: quick}}\naccuracy:\n  tasks:\n",
        models.iter().fold(String::new(), |mut text, model| {
            let _ = writeln!(
                text,
                "  - {{name: {model}, package: '{root}/models/packages/{model}/{{precision}}-{{flavour}}'}}"
            );
            text
        }),
        models.join(", ")
    );
    for (task, items, ..) in TASKS {
        let window = if task == "documents" { ", max_length: 128" } else { "" };
        let _ = writeln!(
            text,
            "    - {{task: '{root}/models/tasks/{task}.yaml', data: '{root}/models/{{model}}/tasks/{items}.jsonl'{window}, \
             when: {{model: [{}]}}}}",
            OF_TEXT.join(", ")
        );
    }
    for kind in PICTURES {
        let _ = writeln!(
            text,
            "    - {{task: image_choice, name: {kind}, data: '{root}/models/{{model}}/tasks/{kind}.jsonl', \
             when: {{model: {OF_PICTURES}}}}}"
        );
    }
    let matrix = folder.join("matrix.yaml");
    fs::write(&matrix, text).expect("the matrix is written");
    let results = folder.join("results");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let output = ortbench(&["run", &path(&matrix), "--results", &path(&results), "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&only_run(&results).join("tasks.csv"));
    rows.iter()
        .map(|row| {
            let score = Score {
                model: row["model"].clone(),
                task: row["task"].clone(),
                items: row["items"].parse().expect("a number"),
                metric: row["metric"].clone(),
                value: row["score"].parse().expect("a score"),
                from: "measured by this program: fp32 fused, CPU provider".to_owned(),
            };
            ((score.model.clone(), score.task.clone()), score)
        })
        .collect()
}

#[test]
fn miniatures_score_what_they_did() {
    let folder = tempfile::tempdir().expect("a folder");
    let measured = measured(folder.path());
    assert_eq!(measured.len(), OF_TEXT.len() * TASKS.len() + PICTURES.len());
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        write(measured.values());
    }
    let expected: Expected = serde_json::from_value(json(FILE)).expect("expected scores");
    assert_eq!(expected.scores.len(), measured.len(), "a score for each task of each model");
    let mut wrong = String::new();
    for score in &expected.scores {
        let found = &measured[&(score.model.clone(), score.task.clone())];
        assert_eq!((found.items, &found.metric), (score.items, &score.metric), "{score:?}");
        // The file repeats what others say, and no more than that.
        let (value, tolerance) = match said(&score.model, &score.task) {
            Some((value, tolerance, from)) => {
                assert_eq!((score.value, &score.from), (value, &from));
                (value, tolerance)
            }
            None if score.metric == "bits_per_byte" => (score.value, 1e-4 * score.value),
            None => (score.value, 1e-6),
        };
        if (found.value - value).abs() > tolerance {
            let _ = writeln!(wrong, "{} {}: {} and not {value} ({})", score.model, score.task, found.value, score.from);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Each choice of each question about a picture, from file to log-likelihood.
#[test]
fn choices_about_pictures_are_as_likely_as_in_transformers() {
    let golden = json(CHOICES);
    for kind in ["fp32-fused", "fp32-plain"] {
        let package = Package::open(&package_of(OF_PICTURES, kind)).expect("a package");
        let mut model = load(&package);
        let (mut farthest, mut compared) = (0.0_f64, 0);
        for name in PICTURES {
            let task = TaskRef {
                data: Some(root().join(format!("models/{OF_PICTURES}/tasks/{name}.jsonl"))),
                ..TaskRef::new(name, TaskSource::Ready("image_choice".to_owned()))
            };
            let set = TaskSet::load(&task, 0, || package.chat_template()).expect("a task");
            let mut answers = Answers::new(&set, &package, &mut model, Scoring::Batched).expect("a task");
            let found = answers.likelihoods(&mut |_| Ok(())).expect("likelihoods");
            let items = golden[name]["items"].as_array().expect("items");
            assert_eq!((found.len(), set.items.len()), (items.len(), items.len()));
            for ((item, found), golden) in set.items.iter().zip(&found).zip(items) {
                assert_eq!(golden["id"], item.id.as_str());
                let golden: Vec<f64> = serde_json::from_value(golden["loglikelihoods"].clone()).expect("numbers");
                assert_eq!(found.len(), golden.len());
                for (found, golden) in found.iter().zip(golden) {
                    let difference = (found.log_likelihood - golden).abs();
                    farthest = farthest.max(difference);
                    compared += 1;
                    assert!(difference < OF_PICTURE, "{kind}, {}: {found:?} and {golden}", item.id);
                }
            }
        }
        eprintln!("{kind}: {compared} choices, at most {farthest:.1e} apart");
        assert!(compared >= 600, "{compared}");
    }
}

/// What is long enough to fill windows, and to roll them.
#[test]
fn texts_are_as_long_as_they_should_be() {
    for model in OF_TEXT.into_iter().chain([OF_PICTURES]) {
        let tokenizer = Package::open(&package_of(model, "fp32-fused")).and_then(|package| package.tokenizer());
        let tokenizer = tokenizer.expect("a tokenizer");
        let tokens = |text: &str| tokenizer.encode_fast(text, false).expect("tokens").len();
        let folder = root().join("models").join(model).join("tasks");
        let text = fs::read_to_string(folder.join("text.txt")).expect("a text");
        assert!(tokens(&text) >= 6000, "{model}: {}", tokens(&text));
        if model == OF_PICTURES {
            continue;
        }
        let documents = fs::read_to_string(folder.join("documents.jsonl")).expect("documents");
        let lengths: BTreeSet<usize> = documents
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
            .map(|document| tokens(document["text"].as_str().expect("a text")))
            .collect();
        let longer = |than: usize| lengths.range(than + 1..).count();
        assert!(documents.lines().count() == 32 && lengths.len() > 25, "{model}: {lengths:?}");
        assert!(longer(128) >= 10 && longer(400) >= 5 && longer(1024) >= 1, "{model}: {lengths:?}");
    }
}

/// Writes the file: what others say, and for the rest what was measured just now.
fn write<'s>(measured: impl Iterator<Item = &'s Score>) {
    let scores = measured.map(|score| match said(&score.model, &score.task) {
        Some((value, _, from)) => Score { value, from, ..score.clone() },
        None => score.clone(),
    });
    let scores: Vec<String> =
        scores.map(|score| format!("    {}", serde_json::to_string(&score).expect("JSON"))).collect();
    let about = "Scores of the miniatures on models/*/tasks/, asked as models/tasks/*.yaml say (pictures: the ready \
                 description image_choice). `from` is where a value stands that others measured on the same items; \
                 tests/it/expected.rs checks and writes this file.";
    let about = serde_json::to_string(&Value::from(about)).expect("JSON");
    let text = format!("{{\n  \"about\": {about},\n  \"scores\": [\n{}\n  ]\n}}\n", scores.join(",\n"));
    fs::write(root().join(FILE), text).expect("the file is written");
}
