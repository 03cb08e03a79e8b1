//! Tasks on the trained miniatures, from a matrix to `tasks.csv`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::real::{json, ortbench, package_of, root};

/// Runs one task on a miniature's fp32 package; returns the row of `summary.csv` and that of `tasks.csv`, if any.
fn accuracy(model: &str, folder: &Path, task: &str) -> (BTreeMap<String, String>, Option<BTreeMap<String, String>>) {
    let package = package_of(model, "fp32-fused");
    let matrix = format!(
        "version: 1\nname: it\nmodels: [{{name: tiny, package: '{}'}}]\n\
         backends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
         matrix: {{model: tiny, backend: cpu, precision: fp32, flavour: fused, threads: 2, batch: 1, \
         prompt_tokens: 8, generate_tokens: 4}}\n\
         categories: accuracy\naccuracy: {{tasks: [{task}]}}\n",
        package.display()
    );
    let results = tempfile::tempdir_in(folder).expect("a folder");
    let (file, results) = (folder.join("matrix.yaml"), results.path());
    fs::write(&file, matrix).expect("a matrix");
    let arguments = ["run", file.to_str().expect("UTF-8"), "--results", results.to_str().expect("UTF-8"), "--quiet"];
    let output = ortbench(&arguments);
    let mut runs = fs::read_dir(results)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
        .map(|entry| entry.expect("an entry").path());
    let run = runs.next().expect("a run");
    let first = |name: &str| {
        let mut reader = csv::Reader::from_path(run.join(name)).ok()?;
        reader.deserialize().next().map(|row| row.expect("a row"))
    };
    (first("summary.csv").expect("a cell"), first("tasks.csv"))
}

#[test]
fn given_continuations_are_scored_as_the_harness_scores_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let description = "version: 1\nname: last\nkind: continuation\ncontext: \"{{ context }}\"\n\
                       continuation: \"{{ choices[answer] }}\"\ndelimiter: \"\"\n";
    fs::write(folder.path().join("last.yaml"), description).expect("a description");
    let data = "models/qwen3-tiny/tasks/recall.jsonl";
    let task = format!("{{task: ./last.yaml, data: '{}'}}", root().join(data).display());
    let (row, task) = accuracy("qwen3-tiny", folder.path(), &task);
    assert_eq!(row["status"], "measured", "{}", row["reason"]);
    let task = task.expect("a task");

    // The right choice of each item of the harness's run with choices, as the one continuation.
    let text = fs::read_to_string(root().join(data)).expect("items");
    let answers = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("an item")["answer"].as_u64());
    let golden = json("tests/data/harness/golden.json");
    let mut cases = golden["cases"].as_array().expect("cases").iter();
    let items = cases.find(|case| case["name"] == "recall").expect("the case")["items"].as_array().expect("items");
    let found: Vec<(f64, f64)> = items
        .iter()
        .zip(answers)
        .map(|(item, answer)| {
            let of = |key: &str| item[key][answer.expect("an index") as usize].as_f64().expect("a number");
            (of("greedy"), of("loglikelihoods"))
        })
        .collect();
    let n = found.len() as f64;
    let number = |name: &str| task[name].parse::<f64>().unwrap_or_else(|_| panic!("`{name}` is `{}`", task[name]));
    assert_eq!((number("items"), task["metric"].as_str()), (n, "acc"));
    assert!((number("acc") - found.iter().map(|item| item.0).sum::<f64>() / n).abs() < 1e-9, "{task:?}");
    let perplexity = (-found.iter().map(|item| item.1).sum::<f64>() / n).exp();
    assert!((number("perplexity") / perplexity - 1.0).abs() < 1e-4, "{} {perplexity}", number("perplexity"));
}

#[test]
fn an_item_whose_images_do_not_fit_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(root().join("tests/data/images/landscape.png"), folder.path().join("a.png")).expect("a picture");
    let item = "{\"id\": \"first\", \"image\": \"a.png\", \"question\": \"Red?\", \"choices\": [\"no\", \"yes\"], \
                \"answer\": 0}\n";
    fs::write(folder.path().join("items.jsonl"), item).expect("items");
    let generation = "version: 1\nname: says\nkind: generation\ncontext: \"{{ question }}\"\nanswer: choices[answer]\n\
                      images: image\nmax_tokens: 4\nchat: true\n";
    fs::write(folder.path().join("says.yaml"), generation).expect("a description");
    // Without the picture the question fits into 24 tokens, into 8 it does not.
    for (task, length) in [("image_choice", 8), ("./says.yaml", 24)] {
        let task = format!("{{task: {task}, data: items.jsonl, max_length: {length}}}");
        let (row, _) = accuracy("qwen3-vl-tiny", folder.path(), &task);
        let reason = &row["reason"];
        assert_eq!(row["status"], "failed", "{reason}");
        let said = format!("with its images it has more than the {length} tokens that fit");
        assert!(reason.contains("the item `first`") && reason.contains(&said), "{task}: {reason}");
    }
    let (row, task) = accuracy("qwen3-vl-tiny", folder.path(), "{task: ./says.yaml, data: items.jsonl}");
    assert_eq!((row["status"].as_str(), task.expect("a task")["truncated_items"].as_str()), ("measured", "0"));
}
