//! A cell's accuracy in words and in rows of the comparison. A figure and its standard error end at the same digit.

use crate::cell::{Category, Cell, CellId};
use crate::protocol::TaskResult;
use crate::results::Outcome;
use crate::units::significant;

/// Tasks that a comparison shows; of more it says how many.
const SHOWN_TASKS: usize = 6;

/// What to say of a cell that is below the matrix's accuracy floor; `None` where it is not, or there is no floor.
pub fn gate_failure(outcome: &Outcome) -> Option<String> {
    let fails = was_measured(outcome) && outcome.text("accuracy_gate") == Some("fail");
    fails.then(|| match outcome.text("accuracy_gate_detail") {
        Some(detail) if outcome.cell.graph.is_some() => format!("FAILS accuracy: {detail}"),
        Some(detail) => format!("FAILS the accuracy floor: {detail}"),
        None => "FAILS the accuracy floor".to_owned(),
    })
}

/// True where a floor was asked for and there is no verdict, because the cell's answers or the reference's were not
/// measured: no one knows whether it keeps it.
pub(super) fn is_unjudged(outcome: &Outcome) -> bool {
    let cell = &outcome.cell;
    let plan = cell.accuracy.as_deref().filter(|plan| plan.floor.is_some());
    plan.filter(|_| cell.categories.contains(&Category::Accuracy)).is_some_and(|plan| {
        let compared = !is_reference(outcome) && !plan.tasks.is_empty();
        !was_measured(outcome) || (compared && outcome.text("accuracy_gate").is_none())
    })
}

/// The mean over tasks, `0.421 ±0.022`; `None` where none was measured.
pub fn score(outcome: &Outcome) -> Option<String> {
    figure(outcome, "accuracy_score", "accuracy_score_stderr")
}

/// Rows of a comparison that at least one of the arms has something to say in: a heading, and a field an arm.
pub(super) fn rows(arms: &[&Outcome]) -> Vec<(String, Vec<String>)> {
    let row = |heading: &str, field: &dyn Fn(&Outcome) -> Option<String>| {
        (heading.to_owned(), arms.iter().map(|arm| field(arm).unwrap_or_default()).collect::<Vec<_>>())
    };
    let mut rows = vec![row("accuracy, unweighted mean of tasks", &score)];
    let tasks = tasks(arms);
    for (task, metric) in tasks.iter().take(SHOWN_TASKS) {
        let mut items: Vec<_> =
            arms.iter().filter_map(|arm| Some(result_of(arm, task, metric)?.items.to_string())).collect();
        items.dedup();
        rows.push(row(&format!("  {task}, {metric} ({})", items.join(", ")), &|arm| {
            let result = result_of(arm, task, metric)?;
            Some(with_error(result.score()?, result.score_stderr()))
        }));
    }
    if tasks.len() > SHOWN_TASKS {
        let count = |arm: &Outcome| arm.tasks.len().checked_sub(SHOWN_TASKS).filter(|more| *more > 0);
        rows.push(row("  further tasks", &|arm| count(arm).map(|more| format!("{more} in tasks.csv"))));
    }
    rows.push(row("reference", &|arm| is_reference(arm).then(|| "(this one)".to_owned())));
    rows.push(row("KL to the reference, mean (nats)", &|arm| {
        compared(arm).then(|| figure(arm, "kl_divergence_mean", "kl_divergence_mean_stderr")).flatten()
    }));
    rows.push(row("  same top token", &|arm| {
        compared(arm).then(|| figure(arm, "top1_agreement_share", "top1_agreement_stderr")).flatten()
    }));
    rows.push(row("  perplexity ÷ reference's", &|arm| {
        compared(arm).then(|| figure(arm, "perplexity_ratio", "perplexity_ratio_stderr")).flatten()
    }));
    // Where the text was compared, the ratio says more, and only that of an arm that has none is worth a row.
    let ratio = |arm: &&&Outcome| compared(arm) && number(arm, "perplexity_ratio").is_some();
    let uncompared = |arm: &&&Outcome| !ratio(arm) && number(arm, "perplexity").is_some();
    if arms.iter().filter(uncompared).any(|arm| !is_reference(arm)) || !arms.iter().any(|arm| ratio(&arm)) {
        rows.push(row("perplexity of the text", &|arm| Some(significant(number(arm, "perplexity")?, 3))));
    }
    let outputs = |arm: &Outcome, fact| number(arm, fact).filter(|_| compared(arm) && arm.cell.graph.is_some());
    rows.push(row("largest difference of outputs", &|arm| {
        outputs(arm, "output_max_absolute_difference").map(|value| format!("{value:.1e}"))
    }));
    rows.push(row("  beyond the tolerance", &|arm| {
        let (beyond, elements) = (outputs(arm, "output_mismatches")?, outputs(arm, "output_elements")?);
        Some(format!("{beyond} of {elements}"))
    }));
    rows.push(row("answers flipped", &|arm| {
        let flips = Flips::of(arm)?;
        let (right, wrong) = (flips.to_right, flips.to_wrong);
        Some(format!("{} of {} ({right} to right, {wrong} to wrong)", right + wrong, flips.items))
    }));
    rows.push(row("  changed and still wrong", &|arm| {
        Flips::of(arm)?.still_wrong.filter(|count| *count > 0.0).map(|count| count.to_string())
    }));
    rows.retain(|(_, fields)| fields.iter().any(|field| !field.is_empty()));
    rows
}

/// What the reader of the rows should know.
pub(super) fn remarks(arms: &[&Outcome]) -> Vec<String> {
    let results = |name: &str| -> Vec<&TaskResult> {
        arms.iter().flat_map(|arm| &arm.tasks).filter(|result| result.task == name).collect()
    };
    let mut names: Vec<_> = tasks(arms).into_iter().map(|(name, _)| name).collect();
    names.dedup();
    let differs = |name: &&str| results(name).windows(2).any(|pair| pair[0].hash != pair[1].hash);
    let remark =
        |name| format!("note: the task `{name}` did not ask the same of all arms, so its scores do not compare");
    names.into_iter().filter(differs).map(remark).collect()
}

/// Answers that are not the reference's.
struct Flips {
    to_right: f64,
    to_wrong: f64,
    /// Other answers that are as wrong as the reference's.
    still_wrong: Option<f64>,
    /// Items that can flip. Those of perplexities are neither right nor wrong.
    items: f64,
}

impl Flips {
    fn of(arm: &Outcome) -> Option<Self> {
        let fact = |name| number(arm, name).filter(|_| compared(arm));
        let (to_right, to_wrong) = (fact("answer_flips_to_right")?, fact("answer_flips_to_wrong")?);
        // Rows of earlier versions count every changed answer as a flip, and do not count what can flip.
        let changed = fact("answers_changed").or_else(|| fact("answer_flips"));
        let still_wrong = changed.map(|changed| changed - to_right - to_wrong);
        let can_flip = arm.tasks.iter().filter(|result| result.kind != "perplexity").map(|result| result.items);
        let items = fact("flip_items").unwrap_or_else(|| can_flip.sum::<u64>() as f64);
        Some(Self { to_right, to_wrong, still_wrong, items })
    }
}

/// True where one of the rows has a standard error.
pub(super) fn shows_errors(arms: &[&Outcome]) -> bool {
    rows(arms).iter().flat_map(|(_, fields)| fields).any(|field| field.contains('±'))
}

/// Which cells the arms are compared with, where those are no arms themselves; `all` are the outcomes of the run.
pub(super) fn references(arms: &[&Outcome], all: &[Outcome]) -> Vec<String> {
    let mut references: Vec<(&CellId, &Cell)> = Vec::new();
    for arm in arms.iter().filter(|arm| was_measured(arm)) {
        let id = arm.cell.accuracy.as_deref().and_then(|plan| plan.reference.as_ref());
        let Some(id) = id.filter(|id| arms.iter().all(|arm| arm.cell.id != **id)) else { continue };
        if references.iter().all(|(known, _)| *known != id) {
            references.push((id, &arm.cell));
        }
    }
    let name = |(id, arm): (&CellId, &Cell)| match all.iter().find(|outcome| outcome.cell.id == *id) {
        Some(Outcome { cell, .. }) => {
            let threads =
                if cell.threads == arm.threads { String::new() } else { format!(", threads {}", cell.threads) };
            let model = &cell.model.name;
            if cell.graph.is_some() {
                return format!("reference: {model} on {}{threads}", cell.backend.name);
            }
            format!("reference: {model} {} {} on {}{threads}", cell.precision, cell.flavour, cell.backend.name)
        }
        None => format!("reference: `{id}`, which is not finished"),
    };
    references.into_iter().map(name).collect()
}

/// Every task of the arms and the figure that stands for it, in the order in which they come.
fn tasks<'a>(arms: &[&'a Outcome]) -> Vec<(&'a str, &'a str)> {
    let mut tasks = Vec::new();
    for result in arms.iter().flat_map(|arm| &arm.tasks) {
        let task = (result.task.as_str(), result.metric.as_str());
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    tasks
}

fn result_of<'a>(arm: &'a Outcome, task: &str, metric: &str) -> Option<&'a TaskResult> {
    arm.tasks.iter().find(|result| result.task == task && result.metric == metric)
}

fn was_measured(outcome: &Outcome) -> bool {
    outcome.measured.contains(&Category::Accuracy)
}

fn is_reference(outcome: &Outcome) -> bool {
    let plan = outcome.cell.accuracy.as_deref();
    was_measured(outcome) && plan.is_some_and(|plan| plan.reference.as_ref() == Some(&outcome.cell.id))
}

/// A reference is at no distance from itself, whatever its row may say.
fn compared(outcome: &Outcome) -> bool {
    was_measured(outcome) && !is_reference(outcome)
}

fn number(outcome: &Outcome, fact: &str) -> Option<f64> {
    outcome.number(fact).filter(|_| was_measured(outcome))
}

fn figure(outcome: &Outcome, fact: &str, stderr: &str) -> Option<String> {
    Some(with_error(number(outcome, fact)?, number(outcome, stderr)))
}

/// More decimals than this are no longer read.
const MOST_DECIMALS: i32 = 6;

/// Two significant digits of the error decide how many of the value are worth reading. An error of 0 is left out: it
/// comes of items that all ended alike (a share of 0 or 1), and would claim a certainty that no sample gives.
fn with_error(value: f64, stderr: Option<f64>) -> String {
    let Some(stderr) = stderr.filter(|stderr| stderr.is_finite() && *stderr > 0.0) else {
        return significant(value, 3);
    };
    match 1 - stderr.log10().floor() as i32 {
        decimals @ ..=MOST_DECIMALS => {
            let decimals = decimals.max(0) as usize;
            format!("{value:.decimals$} ±{stderr:.decimals$}")
        }
        _ if value.abs() < 1e-4 => format!("{value:.1e} ±{stderr:.1e}"),
        _ => format!("{value:.6} ±{stderr:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_the_digits_that_its_error_leaves() {
        assert_eq!(with_error(0.42134, Some(0.0223)), "0.421 ±0.022");
        assert_eq!(with_error(1.0, Some(0.0)), "1.00");
        assert_eq!(with_error(0.0, Some(0.0)), "0");
        assert_eq!(with_error(20.5, Some(35.0)), "20 ±35");
        assert_eq!(with_error(20.5, None), "20.5");
        assert_eq!(with_error(1.000_000_31, Some(1.6e-7)), "1.000000 ±1.6e-7");
        assert_eq!(with_error(3.2e-12, Some(4.5e-13)), "3.2e-12 ±4.5e-13");
    }
}
