//! `ortbench plan`: prints the expanded matrix without running anything.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cell::{AccuracyPlan, Cell, PromptSource, Status, TaskSource};
use crate::config::{self, Matrix, Ready, Skip};
use crate::error::{Context, Result};
use crate::results::record;
use crate::{probe, units};

/// The options of `ortbench plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The matrix file.
    #[arg(default_value = "benchmarks.yaml")]
    file: PathBuf,
    /// Only cells whose id contains PATTERN (`*` stands for anything).
    #[arg(long, value_name = "PATTERN")]
    cell: Option<String>,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut matrix = config::load(&args.file)?;
    if let Some(pattern) = &args.cell {
        matrix = matrix.only(pattern)?;
    }
    let limit = probe::usable_memory_bytes();
    let planned: Vec<_> = matrix.cells.iter().map(|cell| (cell, config::preflight(cell, limit))).collect();
    if args.json {
        println!("{}", as_json(&matrix, &planned)?);
    } else {
        print!("{}", as_text(&matrix, &planned, limit));
    }
    Ok(ExitCode::SUCCESS)
}

type Planned<'a> = (&'a Cell, Result<Ready, Skip>);

fn as_text(matrix: &Matrix, planned: &[Planned], limit: Option<u64>) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let runnable = planned.iter().filter(|(_, plan)| plan.is_ok()).count();
    let width = planned.iter().map(|(cell, _)| cell.id.0.len()).max().unwrap_or(4);
    let _ = writeln!(text, "{:width$}  {:>10}  {:>9}  {:>9}  categories", "cell", "memory", "weights", "cache");
    for (cell, plan) in planned {
        let Ok(ready) = plan else { continue };
        let _ = writeln!(
            text,
            "{:width$}  {:>10}  {:>9}  {:>9}  {}",
            cell.id,
            units::bytes(ready.memory.total()),
            units::bytes(ready.memory.weights),
            units::bytes(ready.memory.cache),
            categories(cell),
        );
    }
    text.push_str(&accuracy(planned));
    if !matrix.without_tasks.is_empty() {
        let _ = writeln!(text, "\nWithout accuracy, because none of its tasks is for them:");
        for cell in &matrix.without_tasks {
            let _ = writeln!(text, "{cell}");
        }
    }
    let skipped: Vec<_> = planned.iter().filter_map(|(cell, plan)| Some((cell, plan.as_ref().err()?))).collect();
    if !skipped.is_empty() {
        let _ = writeln!(text, "\nCannot run here:");
        for (cell, skip) in &skipped {
            let _ = writeln!(text, "{}  {}: {}", cell.id, skip.status, skip.reason);
            if let Some(hint) = &skip.hint {
                let _ = writeln!(text, "  hint: {hint}");
            }
        }
    }
    if !matrix.excluded.is_empty() {
        let _ = writeln!(text, "\nExcluded by the file's rules:");
        for cell in &matrix.excluded {
            let _ = writeln!(text, "{}  {}", cell.id, cell.reason);
        }
    }
    let processes: u32 = planned.iter().filter(|(_, plan)| plan.is_ok()).map(|(cell, _)| processes(cell)).sum();
    let _ = writeln!(
        text,
        "\n{} to run in {}, {} that cannot run here, {} excluded{}",
        counted(runnable, "cell", "s"),
        counted(processes as usize, "process", "es"),
        skipped.len(),
        matrix.excluded.len(),
        limit.map_or(String::new(), |limit| format!("; a process may use {} now", units::bytes(limit))),
    );
    text
}

fn as_json(matrix: &Matrix, planned: &[Planned]) -> Result<String> {
    let cells: Vec<_> = planned
        .iter()
        .map(|(cell, plan)| {
            let (status, reason, hint) = match plan {
                Ok(_) => (None::<Status>, None, None),
                Err(skip) => (Some(skip.status), Some(&skip.reason), skip.hint.as_ref()),
            };
            json!({
                "cell": cell,
                "skipped": status.map(|status| json!({"status": status, "reason": reason, "hint": hint})),
                "memory_estimate_bytes": plan.as_ref().ok().map(|ready| ready.memory.total()),
            })
        })
        .collect();
    let excluded: Vec<_> = matrix.excluded.iter().map(|cell| json!({"id": cell.id, "reason": cell.reason})).collect();
    serde_json::to_string_pretty(&json!({
        "name": matrix.name, "cells": cells, "excluded": excluded, "without_tasks": matrix.without_tasks,
    }))
    .context("cannot print the plan")
}

/// What each cell is asked, cells of one answer together.
fn accuracy(planned: &[Planned]) -> String {
    let mut plans: Vec<(String, Vec<&str>)> = Vec::new();
    for (cell, _) in planned {
        let Some(plan) = cell.accuracy.as_deref() else { continue };
        let plan = describe(plan);
        match plans.iter_mut().find(|(known, _)| *known == plan) {
            Some((_, cells)) => cells.push(&cell.id.0),
            None => plans.push((plan, vec![&cell.id.0])),
        }
    }
    let lines = plans.iter().map(|(plan, cells)| format!("{}\n{plan}", cells.join("\n")));
    let text = lines.collect::<Vec<_>>().join("\n");
    if text.is_empty() { text } else { format!("\nAccuracy:\n{text}\n") }
}

/// A plan in indented lines.
fn describe(plan: &AccuracyPlan) -> String {
    let mut lines = Vec::new();
    for task in &plan.tasks {
        let mut words = vec![match &task.description {
            TaskSource::Ready(name) => format!("  task {} (ready description {name})", task.name),
            TaskSource::File(path) => format!("  task {} ({})", task.name, path.display()),
        }];
        words.extend(task.data.as_ref().map(|data| format!("data {}", data.display())));
        words.extend(task.examples.as_ref().map(|path| format!("examples {}", path.display())));
        words.extend(task.limit.map(|limit| format!("{} at most", counted(limit as usize, "item", "s"))));
        words.extend(task.fewshot.map(|fewshot| counted(fewshot as usize, "example", "s")));
        words.extend(task.chat.map(|chat| if chat { "chat template" } else { "no chat template" }.to_owned()));
        words.extend(task.max_length.map(|length| format!("{} at most", counted(length as usize, "token", "s"))));
        words.extend(
            task.max_tokens.map(|tokens| format!("answers of {} at most", counted(tokens as usize, "token", "s"))),
        );
        lines.push(words.join(", "));
    }
    if let Some(fidelity) = &plan.fidelity {
        lines.push(format!(
            "  fidelity over {} of {}, {}",
            counted(fidelity.tokens as usize, "token", "s"),
            match &fidelity.source {
                PromptSource::TextFile { path } => path.display().to_string(),
                PromptSource::RandomTokens { seed } => format!("random ids of seed {seed}"),
            },
            counted(fidelity.generations as usize, "continuation", "s")
        ));
    }
    if let Some(reference) = &plan.reference {
        let floor = plan.floor.map_or(String::new(), |floor| format!(", at least {floor} of its scores"));
        lines.push(format!("  reference {reference}{floor}"));
    }
    lines.join("\n")
}

/// A count with its noun, which has the ending where there is not one of it.
fn counted(count: usize, noun: &str, ending: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { ending })
}

fn categories(cell: &Cell) -> String {
    let names: Vec<_> = cell.categories.iter().map(|category| category.name()).collect();
    names.join(" ")
}

/// Processes that the cell starts, but for those that derive packages.
fn processes(cell: &Cell) -> u32 {
    record::jobs(cell).count() as u32
}
