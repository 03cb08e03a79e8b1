//! Texts that a cell, or whoever calls, names for calibration and for the vocabulary.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spec::Texts;
use crate::cell::{Cell, PromptSource};
use crate::error::{Context, Error, Result};
use crate::package::Package;
use crate::tasks::{Ask, TaskSet};

/// The texts that `trim_vocabulary` names, and the text of the cell's prompts, which the model is to read as well.
///
/// # Errors
/// A cell without tasks where its tasks are named, files that cannot be read.
pub fn of_vocabulary(cell: &Cell, option: &str) -> Result<Option<Texts>> {
    let named = match option {
        "none" => return Ok(None),
        "tasks" => of_tasks(cell)?.ok_or_else(|| {
            Error::unsupported("`trim_vocabulary` is `tasks`, and the cell has none")
                .hint("give the model tasks under `accuracy`, or name a file")
        })?,
        path => of_files(&[PathBuf::from(path)])?,
    };
    let PromptSource::TextFile { path } = &cell.workload.prompt else { return Ok(Some(named)) };
    let prompt = of_files(std::slice::from_ref(path))?;
    let source = format!("{}, {}", named.source, prompt.source);
    Ok(Some(Texts { source, texts: Arc::new([&named.texts[..], &prompt.texts[..]].concat()) }))
}

/// The texts that `calibration_text` names; `None` for random tokens.
///
/// # Errors
/// Files that cannot be read.
pub fn of_calibration(cell: &Cell, option: &str) -> Result<Option<Texts>> {
    match option {
        "random" => Ok(None),
        "auto" => match (of_tasks(cell)?, &cell.workload.prompt) {
            (Some(texts), _) => Ok(Some(texts)),
            (None, PromptSource::TextFile { path }) => of_files(std::slice::from_ref(path)).map(Some),
            (None, PromptSource::RandomTokens { .. }) => Ok(None),
        },
        path => of_files(&[PathBuf::from(path)]).map(Some),
    }
}

/// The texts of files.
///
/// # Errors
/// Files that cannot be read.
pub fn of_files(paths: &[PathBuf]) -> Result<Texts> {
    let names: Vec<String> = paths.iter().map(|path| file_name(path)).collect();
    let texts = paths.iter().map(|path| {
        std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the text `{}`", path.display()))
            .map_err(|error| error.hint("name a file of UTF-8 text"))
    });
    Ok(Texts { source: names.join(", "), texts: Arc::new(texts.collect::<Result<_>>()?) })
}

/// Everything that a cell's tasks ask and accept as answers, and the text on which its fidelity is measured.
fn of_tasks(cell: &Cell) -> Result<Option<Texts>> {
    let Some(plan) = cell.accuracy.as_ref().filter(|plan| !plan.tasks.is_empty()) else { return Ok(None) };
    let package = Package::open(&cell.model.package)?;
    let mut texts = Vec::new();
    for task in &plan.tasks {
        let set = TaskSet::load(task, plan.seed, || package.chat_template())
            .with_context(|| format!("cannot read the task `{}`", task.name))?;
        set.items.iter().for_each(|item| of_item(&item.ask, &mut texts));
    }
    if let Some(PromptSource::TextFile { path }) = plan.fidelity.as_ref().map(|fidelity| &fidelity.source) {
        texts.extend(of_files(std::slice::from_ref(path))?.texts.iter().cloned());
    }
    let names: Vec<&str> = plan.tasks.iter().map(|task| task.name.as_str()).collect();
    Ok(Some(Texts { source: format!("tasks {}", names.join(", ")), texts: Arc::new(texts) }))
}

/// The texts of an item as they are tokenized: a context alone, and with what stands behind it.
fn of_item(ask: &Ask, texts: &mut Vec<String>) {
    let mut add = |context: &str, behind: &str| {
        texts.push(context.trim_end().to_owned());
        texts.push(format!("{context}{behind}"));
    };
    match ask {
        Ask::Choice { pairs, .. } => pairs.iter().for_each(|(context, choice)| add(context, choice)),
        Ask::Continuation { context, continuation } => add(context, continuation),
        Ask::Perplexity { text, .. } => texts.push(text.clone()),
        Ask::Generation { context, answers } => {
            add(context, "");
            // What the model writes may begin with a space.
            answers.iter().for_each(|answer| {
                add(context, answer);
                add(context, &format!(" {answer}"));
            });
        }
        Ask::Code { context, record } => {
            add(context, "");
            strings(record, &mut |text| add(context, text));
        }
    }
}

/// Every text of a record.
fn strings(record: &serde_json::Value, visit: &mut impl FnMut(&str)) {
    match record {
        serde_json::Value::String(text) => visit(text),
        serde_json::Value::Array(values) => values.iter().for_each(|value| strings(value, visit)),
        serde_json::Value::Object(fields) => fields.values().for_each(|value| strings(value, visit)),
        _ => {}
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
