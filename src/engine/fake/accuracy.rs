//! The fake worker's accuracy: results of tasks, and the files that a reference leaves.

use std::fs;
use std::path::Path;

use super::Behaviour;
use crate::cell::{AccuracyPlan, Category, Cell, CellId, FidelityPlan, PromptSource, Scoring, TaskRef, TaskSource};
use crate::protocol::{FactValue, ItemResults, Message, TaskResult};

/// A cell that the fake measures, its accuracy among the rest: a choice, a perplexity, and a text.
pub fn cell_with_accuracy(name: &str, backend: &str, reference: Option<&CellId>) -> Cell {
    let task = |name: &str| TaskRef::new(name, TaskSource::Ready(name.to_owned()));
    let mut cell = super::cell(name, backend);
    cell.categories.push(Category::Accuracy);
    cell.accuracy = Some(Box::new(AccuracyPlan {
        tasks: vec![task("recall"), task("wiki")],
        seed: 0,
        scoring: Scoring::Batched,
        run_code: false,
        fidelity: Some(FidelityPlan {
            source: PromptSource::TextFile { path: "/fake/text.txt".into() },
            tokens: 64,
            window: 16,
            context: 8,
            generations: 1,
            generate_tokens: 4,
        }),
        reference: reference.cloned(),
        floor: reference.map(|_| 0.99),
    }));
    cell
}

/// Results of the cell's tasks and of their items. A task named `wiki` is one of perplexity.
pub fn tasks(cell: &Cell) -> (Vec<TaskResult>, Vec<ItemResults>) {
    let plan = cell.accuracy.as_deref();
    let names = plan.iter().flat_map(|plan| &plan.tasks).map(|task| task.name.as_str());
    names.map(|name| if name == "wiki" { perplexity(name) } else { choice(name) }).unzip()
}

fn choice(name: &str) -> (TaskResult, ItemResults) {
    let figures = [("acc", 0.75), ("acc_stderr", 0.25), ("flips", 1.0)];
    let ids = (0..4).map(|index| format!("q{index}")).collect();
    let items =
        ItemResults { task: name.to_owned(), metric: "item_acc".to_owned(), ids, values: vec![1.0, 1.0, 0.0, 1.0] };
    (result(name, "choice", "acc", 4, &figures), items)
}

fn perplexity(name: &str) -> (TaskResult, ItemResults) {
    let figures = [("word_perplexity", 20.5), ("bits_per_byte", 1.25)];
    let metric = "item_log_likelihood".to_owned();
    let items = ItemResults { task: name.to_owned(), metric, ids: vec!["=d0".to_owned()], values: vec![-12.5] };
    (result(name, "perplexity", "word_perplexity", 1, &figures), items)
}

fn result(name: &str, kind: &str, metric: &str, items: u64, figures: &[(&str, f64)]) -> TaskResult {
    TaskResult {
        task: name.to_owned(),
        kind: kind.to_owned(),
        items,
        fewshot: 0,
        chat: false,
        truncated: 0,
        truncated_items: 0,
        metric: metric.to_owned(),
        figures: figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        seconds: 0.5,
        hash: "0123456789abcdef".to_owned(),
    }
}

/// Facts of a cell whose answers are too far from its reference's.
pub fn below_the_floor(fact: &str) -> Option<FactValue> {
    match fact {
        "accuracy_gate" => Some("fail".into()),
        "accuracy_gate_detail" => Some("recall 0.31 of 0.42 (floor 0.99)".into()),
        _ => None,
    }
}

/// True of facts and figures of tasks that only a comparison with a reference gives.
pub fn compares(figure: &str) -> bool {
    const STARTS: [&str; 17] = [
        "output_m",
        "worst_",
        "accuracy_gate",
        "accuracy_of_reference",
        "answer_flips",
        "answers_changed",
        "flip",
        "reference_",
        "of_reference_",
        "kl_divergence_",
        "top1_",
        "top5_",
        "rms_probability_difference",
        "max_logit_difference",
        "perplexity_ratio",
        "greedy_",
        "first_divergent_token",
    ];
    STARTS.iter().any(|start| figure.starts_with(start))
}

/// Sends the results, but for what the behaviour changes.
pub fn measure(cell: &Cell, compared: bool, behaviour: &Behaviour, emit: &mut dyn FnMut(Message)) {
    let (results, items) = tasks(cell);
    for (mut result, mut items) in results.into_iter().zip(items) {
        result.figures.retain(|figure, _| compared || !compares(figure));
        match behaviour {
            Behaviour::Lack(task) if *task == result.task => continue,
            Behaviour::Value(figure, value) => {
                let value = value.parse().unwrap_or(f64::NAN);
                result.figures.entry(figure.clone()).and_modify(|figure| *figure = value);
                if items.metric == *figure {
                    items.values[0] = value;
                }
            }
            Behaviour::Unknown => drop(result.figures.insert("luck".to_owned(), 7.0)),
            _ => {}
        }
        emit(Message::Task { result: Box::new(result) });
        emit(Message::Items { items });
    }
}

/// A reference leaves its answers in the folder; who has one looks for them there.
pub fn visit_reference(
    cell: &Cell,
    category: Category,
    folder: Option<&Path>,
    behaviour: &Behaviour,
) -> Result<(), String> {
    let plan = cell.accuracy.as_deref().filter(|_| category == Category::Accuracy);
    let (Some(plan), Some(folder)) = (plan, folder) else { return Ok(()) };
    if plan.reference.as_ref() != Some(&cell.id) {
        let found = ["reference.json", "logits.bin"].into_iter().find(|name| !folder.join(name).is_file());
        return found.map_or(Ok(()), |name| Err(format!("the reference has no {name}")));
    }
    fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    for name in ["reference.json", "logits.bin"] {
        if *behaviour != Behaviour::Lack(name.to_owned()) {
            fs::write(folder.join(name), "{}").map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
