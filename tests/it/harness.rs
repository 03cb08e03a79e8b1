//! Every score of `tests/data/harness/golden.json`, which lm-evaluation-harness measured through transformers, measured
//! again: by our reading of task sets, our tokenizing, our kernels, our batches, our judging (`docs/harness.md`).
//!
//! `tests/data/harness/ours/` has the harness's tasks in our format, one description a filter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ortbench::categories::Answers;
use ortbench::cell::{Scoring, TaskRef, TaskSource};
use ortbench::engine::Model;
use ortbench::engine::scoring::Likelihood;
use ortbench::package::Package;
use ortbench::tasks::{Ask, Encoder, Kind, Outcome, Scored, Scores, TaskSet};
use serde::Deserialize;

use crate::differences::Differences;
use crate::measuring::{only_run, rows};
use crate::real::{load, ortbench, package, root};

/// Cases and items of the golden file by kind. Fewer would be a test that shrank.
const CASES: [(&str, usize, usize); 3] =
    [("multiple_choice", 16, 1438), ("loglikelihood_rolling", 3, 96), ("generate_until", 5, 400)];

/// What another kernel's order of summing may change of a log-likelihood: this much, and a share of it.
const ABSOLUTE: f64 = 2e-4;
const RELATIVE: f64 = 1e-5;

/// What it may change of a perplexity, relatively; other figures are shares of items and the golden file's last decimal.
const OF_PERPLEXITY: f64 = 1e-4;
const OF_SHARE: f64 = 1e-6;

/// What stands for an answer that no filter found, where the harness's task has a word of its own for that.
const FALLBACK: (&str, &str) = ("[odd]", "[invalid]");

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

/// A run of a task by the harness.
#[derive(Deserialize)]
struct Case {
    name: String,
    task: String,
    kind: String,
    few_shot: u32,
    chat: bool,
    multi_turn: Option<bool>,
    max_length: u32,
    limit: Option<u32>,
    filters: Option<Vec<Filter>>,
    results: BTreeMap<String, Option<f64>>,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Filter {
    name: String,
}

/// An item; which fields there are depends on the kind.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Item {
    id: String,
    loglikelihoods: Vec<f64>,
    greedy: Vec<u8>,
    tokens: Vec<(Vec<u32>, Vec<u32>)>,
    acc: u8,
    loglikelihood: f64,
    words: usize,
    bytes: usize,
    text: String,
    answers: BTreeMap<String, String>,
    exact_match: BTreeMap<String, u8>,
}

/// A case as one task of ours: a filter of the harness is a description here.
struct Task<'a> {
    case: &'a Case,
    filter: Option<&'a str>,
}

fn golden() -> Golden {
    let text = std::fs::read_to_string(root().join("tests/data/harness/golden.json")).expect("the golden file");
    serde_json::from_str(&text).expect("JSON")
}

impl Golden {
    /// A task for each case and filter.
    fn tasks(&self) -> Vec<Task<'_>> {
        self.cases
            .iter()
            .flat_map(|case| match &case.filters {
                None => vec![Task { case, filter: None }],
                Some(filters) => {
                    filters.iter().map(|filter| Task { case, filter: Some(filter.name.as_str()) }).collect()
                }
            })
            .collect()
    }
}

impl Case {
    /// Whether examples stand in the same turn of a chat as the item.
    fn in_one_turn(&self) -> bool {
        self.few_shot > 0 && self.multi_turn == Some(false)
    }
}

impl Task<'_> {
    /// The filter's part of a name; what is taken as it stands is called `none`.
    fn suffix(&self) -> String {
        self.filter.filter(|filter| *filter != "none").map_or_else(String::new, |filter| format!(".{filter}"))
    }

    fn name(&self) -> String {
        format!("{}{}", self.case.name, self.suffix())
    }

    fn description(&self) -> PathBuf {
        let task = self.case.task.trim_end_matches(".yaml");
        let task = if self.case.in_one_turn() { format!("{task}_in_one_turn") } else { task.to_owned() };
        root().join("tests/data/harness/ours").join(format!("{task}{}.yaml", self.suffix()))
    }

    fn set(&self, package: &Package) -> TaskSet {
        let case = self.case;
        let task = TaskRef {
            limit: case.limit,
            fewshot: Some(case.few_shot),
            chat: Some(case.chat),
            max_length: Some(case.max_length),
            ..TaskRef::new(self.name(), TaskSource::File(self.description()))
        };
        let set =
            TaskSet::load(&task, 0, || package.chat_template()).unwrap_or_else(|error| panic!("{}", error.chain()));
        let ids: Vec<&str> = set.items.iter().map(|item| item.id.as_str()).collect();
        let golden: Vec<&str> = case.items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, golden, "{}", task.name);
        set
    }

    /// The figure of a name among the harness's results.
    fn figure(&self, name: &str) -> Option<f64> {
        let key = format!("{name}{}", self.suffix().replace('.', ","));
        *self.case.results.get(&key).unwrap_or_else(|| panic!("{}: no `{key}`", self.name()))
    }

    /// Compares the figures that both have.
    fn compare_figures(&self, differences: &mut Differences, found: impl Fn(&str) -> Option<f64>) {
        for name in self.figures() {
            let (what, golden) = (format!("{} {name}", self.name()), self.figure(name).expect("a figure"));
            let found = found(name).unwrap_or_else(|| panic!("{what} is missing"));
            let of_perplexity = self.case.kind == "loglikelihood_rolling";
            differences.near(&what, found, golden, if of_perplexity { OF_PERPLEXITY * golden } else { OF_SHARE });
        }
    }

    /// Names of the figures that both have.
    fn figures(&self) -> &'static [&'static str] {
        match self.case.kind.as_str() {
            // With several contexts, only `acc` means anything.
            "multiple_choice" if self.case.task == "pairs.yaml" => &["acc", "acc_stderr"],
            "multiple_choice" => &["acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "acc_bytes", "acc_bytes_stderr"],
            // Their standard errors are ours alone.
            "loglikelihood_rolling" => &["word_perplexity", "byte_perplexity", "bits_per_byte"],
            _ => &["exact_match", "exact_match_stderr"],
        }
    }
}

impl Differences {
    /// Counts log-likelihoods, which must be as near as kernels are.
    fn log_likelihood(&mut self, what: &str, found: f64, golden: f64) {
        self.near(what, found, golden, ABSOLUTE + RELATIVE * golden.abs());
    }
}

#[test]
fn the_golden_file_is_whole() {
    let golden = golden();
    for (kind, cases, items) in CASES {
        let of_kind: Vec<&Case> = golden.cases.iter().filter(|case| case.kind == kind).collect();
        let count = of_kind.iter().map(|case| case.items.len()).sum::<usize>();
        assert!(of_kind.len() >= cases && count >= items, "{kind}: {} cases, {count} items", of_kind.len());
    }
    let asked = golden.tasks().iter().map(|task| task.name()).collect::<Vec<_>>();
    assert!(asked.len() >= 32, "{asked:?}");
    // Windows roll where texts are longer than they are.
    let long = golden.cases.iter().filter(|case| case.kind == "loglikelihood_rolling").flat_map(|case| {
        case.items.iter().map(|item| item.bytes).filter(|bytes| *bytes > 2 * case.max_length as usize)
    });
    assert!(long.count() > 10);
}

#[test]
fn fused_graphs_give_the_harnesss_scores() {
    every_case("fp32-fused");
}

#[test]
fn plain_graphs_give_the_harnesss_scores() {
    every_case("fp32-plain");
}

fn every_case(kind: &str) {
    let package = Package::open(&package(kind)).expect("a package");
    let mut model = load(&package);
    let golden = golden();
    let mut differences = Differences::default();
    for task in golden.tasks() {
        let set = task.set(&package);
        if !task.case.items[0].tokens.is_empty() {
            tokens(&task, &set, &package, &mut differences);
        }
        let scored = match set.kind {
            Kind::Choice | Kind::Continuation | Kind::Perplexity => {
                likelihoods(&task, &set, &package, &mut model, &mut differences)
            }
            Kind::Generation | Kind::Code => texts(&task, &set, &package, &mut model, &mut differences),
        };
        task.compare_figures(&mut differences, |name| scored.figures.get(name).copied());
    }
    differences.assert_none(kind);
}

/// Each request's tokens, where they are among the golden things.
fn tokens(task: &Task, set: &TaskSet, package: &Package, differences: &mut Differences) {
    let encoder = Encoder::open(package, set.max_length).expect("a tokenizer");
    for (item, golden) in set.items.iter().zip(&task.case.items) {
        let Ask::Choice { pairs, .. } = &item.ask else { panic!("no choice") };
        for (pair, golden) in pairs.iter().zip(&golden.tokens) {
            let found = encoder.split(&pair.0, &pair.1).expect("tokens");
            differences.equal(&format!("{} {}", task.name(), item.id), &found, golden);
        }
    }
}

/// Log-likelihoods of every choice and every document, judged.
fn likelihoods(
    task: &Task,
    set: &TaskSet,
    package: &Package,
    model: &mut Model,
    differences: &mut Differences,
) -> Scored {
    let mut answers = Answers::new(set, package, model, Scoring::Batched).expect("a task");
    let found = answers.likelihoods(&mut |_| Ok(())).unwrap_or_else(|error| panic!("{}", error.chain()));
    let mut scores = Scores::new(set);
    for (index, (found, golden)) in found.iter().zip(&task.case.items).enumerate() {
        let what = format!("{} {}", task.name(), golden.id);
        let values: Vec<f64> = found.iter().map(|likelihood| likelihood.log_likelihood).collect();
        if let Ask::Perplexity { words, bytes, .. } = &set.items[index].ask {
            differences.equal(&what, &(*words, *bytes), &(golden.words, golden.bytes));
            differences.log_likelihood(&what, values.iter().sum(), golden.loglikelihood);
            scores.perplexity(index, values.iter().sum()).expect("a document");
            continue;
        }
        assert_eq!(found.len(), golden.loglikelihoods.len(), "{what}");
        for (choice, (found, golden)) in found.iter().zip(golden.loglikelihoods.iter().zip(&golden.greedy)).enumerate()
        {
            let (Likelihood { log_likelihood, greedy }, what) = (found, format!("{what}, choice {choice}"));
            differences.log_likelihood(&what, *log_likelihood, *golden.0);
            differences.equal(&format!("{what}, greedy"), greedy, &(*golden.1 == 1));
        }
        let outcome = scores.choice(index, &values).expect("a choice");
        differences.equal(&what, &outcome.right, &Some(golden.acc == 1));
    }
    scores.finish().expect("scores")
}

/// What is written, up to its stop; what is taken from it; whether that is right.
fn texts(task: &Task, set: &TaskSet, package: &Package, model: &mut Model, differences: &mut Differences) -> Scored {
    let filter = task.filter.expect("a filter");
    let mut scores = Scores::new(set);
    let mut answers = Answers::new(set, package, model, Scoring::Batched).expect("a task");
    let mut visit = |index: usize, text: &str| {
        let golden = &task.case.items[index];
        let what = format!("{} {}", task.name(), golden.id);
        differences.equal(&what, &set.stops.apply(text), &golden.text.as_str());
        let Outcome { chosen, right, .. } = scores.generation(index, text)?;
        let answer = &golden.answers[filter];
        let answer = if answer == FALLBACK.0 { FALLBACK.1 } else { answer };
        differences.equal(&format!("{what}, answer"), &chosen.as_deref(), &Some(answer));
        differences.equal(&format!("{what}, exact match"), right, &Some(golden.exact_match[filter] == 1));
        Ok(())
    };
    answers.texts(&mut visit).unwrap_or_else(|error| panic!("{}", error.chain()));
    scores.finish().expect("scores")
}

/// All of it once more as tasks of one cell, through the program: what the tables say is what the harness says.
#[test]
fn the_tables_of_a_run_have_the_harnesss_scores() {
    let golden = golden();
    let folder = tempfile::tempdir().expect("a folder");
    let run = run(folder.path(), &golden.tasks());
    let tables = rows(&run.join("tasks.csv"));
    let samples = rows(&run.join("samples.csv"));
    let opened = Package::open(&package("fp32-fused")).expect("a package");
    let mut differences = Differences::default();
    let mut by_task: BTreeMap<(&str, &str), Vec<&BTreeMap<String, String>>> = BTreeMap::new();
    for row in samples.iter().filter(|row| !row["task"].is_empty()) {
        by_task.entry((&row["task"], &row["metric"])).or_default().push(row);
    }
    assert_eq!(tables.len(), golden.tasks().len());
    for (task, row) in golden.tasks().iter().zip(&tables) {
        let name = task.name();
        assert_eq!((&row["task"], &row["items"]), (&name, &task.case.items.len().to_string()));
        task.compare_figures(&mut differences, |figure| row[figure].parse().ok());
        let set = task.set(&opened);
        let mut items = |metric: &str, value: &mut dyn FnMut(usize, &Item, f64, &mut Differences)| {
            let found = &by_task[&(name.as_str(), metric)];
            assert_eq!(found.len(), task.case.items.len(), "{name} {metric}");
            for (index, (row, golden)) in found.iter().zip(&task.case.items).enumerate() {
                assert_eq!(row["item"], golden.id, "{name} {metric}");
                value(index, golden, row["value"].parse().expect("a number"), &mut differences);
            }
        };
        match set.kind {
            Kind::Choice => {
                items("item_acc", &mut |_, golden, value, differences| {
                    differences.equal(&format!("{name} {}", golden.id), &value, &f64::from(golden.acc));
                });
                items("item_log_likelihood", &mut |index, golden, value, differences| {
                    let Ask::Choice { answer, .. } = set.items[index].ask else { panic!("no choice") };
                    let of_answer = golden.loglikelihoods[answer];
                    differences.log_likelihood(&format!("{name} {}", golden.id), value, of_answer);
                });
            }
            Kind::Perplexity | Kind::Continuation => {
                items("item_log_likelihood", &mut |_, golden, value, differences| {
                    differences.log_likelihood(&format!("{name} {}", golden.id), value, golden.loglikelihood);
                })
            }
            Kind::Generation | Kind::Code => items("item_exact_match", &mut |_, golden, value, differences| {
                let right = f64::from(golden.exact_match[task.filter.expect("a filter")]);
                differences.equal(&format!("{name} {}", golden.id), &value, &right);
            }),
        }
    }
    differences.assert_none("the tables");
}

/// Runs a matrix of one cell with these tasks; the folder of its results.
fn run(folder: &Path, tasks: &[Task]) -> PathBuf {
    let mut text = format!(
        "version: 1\nname: harness\nmodels: [{{name: qwen3-tiny, package: '{}'}}]\n\
         backends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
         matrix: {{model: qwen3-tiny, backend: cpu, precision: fp32, flavour: fused, threads: 2, batch: 1, \
         prompt_tokens: 16, generate_tokens: 4}}\ncategories: accuracy\nmeasurement: {{profile: quick}}\naccuracy:\n  tasks:\n",
        root().join("models/packages/qwen3-tiny/{precision}-{flavour}").display()
    );
    for task in tasks {
        let case = task.case;
        let limit = case.limit.map_or_else(String::new, |limit| format!(", limit: {limit}"));
        let (name, description) = (task.name(), task.description());
        let (shots, chat, most) = (case.few_shot, case.chat, case.max_length);
        let _ = writeln!(
            text,
            "    - {{task: '{}', name: {name}, fewshot: {shots}, chat: {chat}, max_length: {most}{limit}}}",
            description.display()
        );
    }
    let matrix = folder.join("matrix.yaml");
    std::fs::write(&matrix, text).expect("the matrix is written");
    let results = folder.join("results");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let output = ortbench(&["run", &path(&matrix), "--results", &path(&results), "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    only_run(&results)
}
