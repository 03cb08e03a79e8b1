//! Accuracy: scores of tasks, and how far a cell's answers are from its reference's (`docs/accuracy.md`).

mod answers;
mod ask;
mod fidelity;
mod gate;
mod reference;

use crate::categories::{Context, Measure, common};
use crate::cell::{AccuracyPlan, CellId};
use crate::engine::{Model, Plan};
use crate::error::{Error, Result};
use crate::metrics::{self, Better};
use crate::package::Package;
use crate::protocol::TaskResult;
use crate::sandbox::Sandbox;
use crate::tasks::{self, Kind, TaskSet};
use crate::units;

pub use answers::Answers;
use ask::{Asked, Asker};
use fidelity::Windows;
use gate::{Compared, Gate};
use reference::{Reference, ReferenceTask};

/// The category.
pub struct Accuracy;

/// What a cell does with the reference's folder.
enum Role {
    /// It is the reference, and leaves its answers.
    Leaves(Box<Reference>),
    /// It is compared with these answers.
    Compares(Box<Reference>),
    /// There is no reference.
    Alone,
}

impl Measure for Accuracy {
    fn measure(&self, context: &Context) -> Result<()> {
        let (cell, report) = (context.cell, context.report);
        let plan = cell.accuracy.as_ref().ok_or_else(|| Error::new("the cell has no plan for accuracy"))?;
        let package = common::open_package(context)?;
        // Before the model is loaded: a slip in a file costs no load.
        report.phase("tasks")?;
        let sets = task_sets(plan, &package)?;
        let sandbox = sandbox(plan, &sets)?;
        let windows = plan.fidelity.as_ref().map(|plan| Windows::open(&package, plan)).transpose()?;
        if let (Some(windows), Some(plan)) = (&windows, &plan.fidelity)
            && windows.scored() < plan.tokens as usize
        {
            let (found, asked) = (windows.scored(), plan.tokens);
            report.warning(format!("the fidelity text is short: {found} of {asked} tokens are scored"))?;
        }
        let mut role = role(context, plan, &package)?;

        let images = sets.iter().any(|set| set.items.iter().any(|item| !item.images.is_empty()));
        let images = images || cell.workload.image.is_some();
        let knobs = Plan { images, any_shape: true, ..context.plan() };
        let mut model = common::load_model(context, &package, &knobs)?;
        common::first_prefill(context, &package, &mut model)?;

        let mut results = Vec::with_capacity(sets.len());
        let mut compared = Vec::new();
        for set in &sets {
            let asker = Asker {
                package: &package,
                model: &mut model,
                scoring: plan.scoring,
                sandbox: sandbox.as_ref(),
                report,
            };
            let asked = asker.ask(set)?;
            let mut result = result(set, &asked);
            if let Some(comparison) = weigh(&mut role, set, &asked, &mut result)? {
                compared.push(comparison);
            }
            if asked.truncated.items > 0 {
                let (cut, all) = (asked.truncated.items, set.items.len());
                report.warning(format!("{}: {cut} of {all} items were cut from the left to fit", set.name))?;
            }
            asked.scored.items.into_iter().try_for_each(|items| report.items(items))?;
            report.task(result.clone())?;
            results.push(result);
        }
        summarize(context, &results)?;
        if let (Some(windows), Some(plan)) = (&windows, &plan.fidelity) {
            report.phase("fidelity")?;
            fidelity(context, &mut model, windows, plan, &mut role)?;
        }
        judge(context, plan, &role, &results, &compared)?;
        match (&role, context.reference) {
            // Last: the file says that all of it is there.
            (Role::Leaves(reference), Some(folder)) => reference.write(folder),
            _ => Ok(()),
        }
    }
}

fn task_sets(plan: &AccuracyPlan, package: &Package) -> Result<Vec<TaskSet>> {
    plan.tasks.iter().map(|task| TaskSet::load(task, plan.seed, || package.chat_template())).collect()
}

/// The sandbox, where a task has programs that may be run.
fn sandbox(plan: &AccuracyPlan, sets: &[TaskSet]) -> Result<Option<Sandbox>> {
    let Some(set) = sets.iter().find(|set| set.kind == Kind::Code) else { return Ok(None) };
    if !plan.run_code {
        return Err(Error::unsupported(format!("the task `{}` runs programs that the model writes", set.name))
            .hint("allow it with `accuracy: run_code: true`; they run without network and within limits"));
    }
    let sandbox = Sandbox::this_program()?;
    for set in sets {
        if let Some(run) = &set.run {
            sandbox.check(&run.command)?;
        }
    }
    Ok(Some(sandbox))
}

fn role(context: &Context, plan: &AccuracyPlan, package: &Package) -> Result<Role> {
    let (Some(reference), Some(folder)) = (&plan.reference, context.reference) else { return Ok(Role::Alone) };
    if *reference == context.cell.id {
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::new(format!("cannot make `{}`", folder.display())).because(error))?;
        return Ok(Role::Leaves(Box::new(Reference::of(reference.clone(), package.hash.clone()))));
    }
    Ok(match Reference::read(folder)? {
        Some(answers) => Role::Compares(Box::new(answers)),
        None => {
            context.report.warning(format!("the reference `{reference}` has no answers to compare with"))?;
            Role::Alone
        }
    })
}

fn result(set: &TaskSet, asked: &Asked) -> TaskResult {
    TaskResult {
        task: set.name.clone(),
        kind: set.kind.name().to_owned(),
        items: set.items.len() as u64,
        fewshot: set.fewshot as u64,
        chat: set.chat,
        truncated: asked.truncated.requests,
        truncated_items: asked.truncated.items,
        metric: asked.scored.metric.to_owned(),
        figures: asked.scored.figures.clone(),
        seconds: asked.seconds,
        hash: set.hash.clone(),
    }
}

/// Leaves a task's answers for others, or compares them with the reference's.
fn weigh(role: &mut Role, set: &TaskSet, asked: &Asked, result: &mut TaskResult) -> Result<Option<Compared>> {
    let score = result.figures.get(&result.metric).copied().unwrap_or(f64::NAN);
    match role {
        Role::Alone => Ok(None),
        Role::Leaves(reference) => {
            let task = ReferenceTask {
                hash: set.hash.clone(),
                metric: result.metric.clone(),
                score,
                outcomes: asked.scored.outcomes.clone(),
            };
            reference.tasks.insert(set.name.clone(), task);
            Ok(None)
        }
        Role::Compares(reference) => {
            let theirs = reference.tasks.get(&set.name).ok_or_else(|| {
                Error::unsupported(format!("the reference `{}` was not asked the task `{}`", reference.cell, set.name))
                    .hint("start a new run")
            })?;
            if theirs.hash != set.hash {
                return Err(Error::unsupported(format!(
                    "the reference `{}` was asked another task `{}`",
                    reference.cell, set.name
                ))
                .hint("a file changed during the run, or the models' chat templates differ; start a new run"));
            }
            let flips = tasks::compare(&asked.scored.outcomes, &theirs.outcomes)?;
            let compared = Compared {
                task: set.name.clone(),
                metric: result.metric.clone(),
                score,
                reference: theirs.score,
                difference: flips.difference(),
            };
            let figures = &mut result.figures;
            figures.insert("reference_score".to_owned(), theirs.score);
            if let Some(ratio) = compared.ratio() {
                figures.insert("of_reference_ratio".to_owned(), ratio);
            }
            if flips.items > 0 {
                figures.insert("flips".to_owned(), flips.flips() as f64);
                figures.insert("flips_to_right".to_owned(), flips.to_right as f64);
                figures.insert("flips_to_wrong".to_owned(), flips.to_wrong as f64);
                figures.insert("answers_changed".to_owned(), flips.changed as f64);
            }
            Ok(Some(compared))
        }
    }
}

/// The row's own figures: sums and means over the tasks.
fn summarize(context: &Context, results: &[TaskResult]) -> Result<()> {
    let report = context.report;
    if results.is_empty() {
        return Ok(());
    }
    let figure = |result: &TaskResult, name: &str| result.figures.get(name).copied();
    let stderr = |result: &TaskResult| figure(result, &format!("{}_stderr", result.metric));
    let shares: Vec<&TaskResult> = results
        .iter()
        .filter(|result| metrics::find_task_figure(&result.metric).is_some_and(|f| f.better == Better::Higher))
        .collect();
    if !shares.is_empty() {
        let count = shares.len() as f64;
        let scores = shares.iter().filter_map(|result| figure(result, &result.metric));
        report.fact("accuracy_score", scores.sum::<f64>() / count)?;
        if let Some(errors) = shares.iter().map(|result| stderr(result)).collect::<Option<Vec<f64>>>() {
            let squares: f64 = errors.iter().map(|error| error * error).sum();
            report.fact("accuracy_score_stderr", squares.sqrt() / count)?;
        }
    }
    let words: Vec<String> = results
        .iter()
        .map(|result| {
            let score = figure(result, &result.metric).unwrap_or(f64::NAN);
            let error = stderr(result).map_or(String::new(), |error| format!(" ±{}", units::significant(error, 2)));
            format!("{} {} {}{error} ({})", result.task, result.metric, units::significant(score, 4), result.items)
        })
        .collect();
    report.fact("accuracy_tasks", words.join("; "))?;
    report.fact("accuracy_items", results.iter().map(|result| result.items).sum::<u64>())?;
    report.fact("accuracy_truncated_items", results.iter().map(|result| result.truncated_items).sum::<u64>())?;
    report.fact("accuracy_scoring_seconds", results.iter().map(|result| result.seconds).sum::<f64>())
}

fn fidelity(
    context: &Context,
    model: &mut Model,
    windows: &Windows,
    plan: &crate::cell::FidelityPlan,
    role: &mut Role,
) -> Result<()> {
    let report = context.report;
    let lacks = |reference: &CellId| report.warning(format!("the reference `{reference}` did not read the text"));
    match (role, context.reference) {
        (Role::Leaves(reference), Some(folder)) => {
            reference.text = Some(fidelity::record(model, windows, plan, folder, report)?);
            Ok(())
        }
        (Role::Compares(reference), Some(folder)) => match &reference.text {
            Some(text) => fidelity::compare(model, windows, plan, text, folder, report),
            None => lacks(&reference.cell),
        },
        _ => fidelity::read_alone(model, windows, report),
    }
}

/// Reports flips, the smallest ratio, and the gate's outcome.
fn judge(
    context: &Context,
    plan: &AccuracyPlan,
    role: &Role,
    results: &[TaskResult],
    compared: &[Compared],
) -> Result<()> {
    let report = context.report;
    let reference = match role {
        Role::Alone => return Ok(()),
        Role::Leaves(reference) | Role::Compares(reference) => reference,
    };
    report.fact("reference_cell", reference.cell.0.as_str())?;
    let sum = |name: &str| results.iter().filter_map(|result| result.figures.get(name)).sum::<f64>() as u64;
    if results.iter().any(|result| result.figures.contains_key("flips")) {
        report.fact("answer_flips", sum("flips"))?;
        report.fact("answer_flips_to_right", sum("flips_to_right"))?;
        report.fact("answer_flips_to_wrong", sum("flips_to_wrong"))?;
        report.fact("answers_changed", sum("answers_changed"))?;
        let can_flip = results.iter().filter(|result| result.figures.contains_key("flips"));
        report.fact("flip_items", can_flip.map(|result| result.items).sum::<u64>())?;
    }
    let Some(gate) = Gate::of(compared, plan.floor.unwrap_or(0.0)) else { return Ok(()) };
    if let Some(ratio) = gate.ratio {
        report.fact("accuracy_of_reference_ratio", ratio)?;
    }
    if plan.floor.is_some() {
        report.fact("accuracy_gate", if gate.passes { "pass" } else { "fail" })?;
        report.fact("accuracy_gate_detail", gate.detail)?;
    }
    Ok(())
}
