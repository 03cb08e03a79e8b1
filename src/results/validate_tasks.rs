//! What cannot be true of tasks' results is not published either.

use std::collections::BTreeMap;

use crate::cell::{AccuracyPlan, Category, Cell};
use crate::metrics;
use crate::protocol::{FactValue, ItemResults, TaskResult};

/// Checks what a job that says it measured `category` reported of tasks: each task of the cell's plan once, with
/// figures that are known and finite, and a verdict where there is a floor. `alone` says that the cell's reference was
/// missing, so that there can be no verdict.
///
/// # Errors
/// The sentence that becomes the `invalid` cell's reason.
pub fn check(
    cell: &Cell,
    category: Category,
    alone: bool,
    facts: &BTreeMap<String, FactValue>,
    tasks: &[TaskResult],
    items: &[ItemResults],
) -> Result<(), String> {
    let plan = cell.accuracy.as_deref().filter(|_| category == Category::Accuracy);
    let asked = || plan.iter().flat_map(|plan| &plan.tasks).map(|task| task.name.as_str());
    for (index, task) in tasks.iter().enumerate() {
        if !asked().any(|name| name == task.task) {
            return Err(format!("the worker reported a task `{}` that the cell does not have", task.task));
        }
        if tasks[..index].iter().any(|earlier| earlier.task == task.task) {
            return Err(format!("the worker reported the task `{}` twice", task.task));
        }
        check_task(task)?;
    }
    if let Some(missing) = asked().find(|name| tasks.iter().all(|task| task.task != *name)) {
        return Err(format!("the task `{missing}` has no result"));
    }
    items.iter().try_for_each(|of| check_items(of, tasks))?;
    plan.map_or(Ok(()), |plan| check_gate(cell, plan, alone, facts))
}

/// A cell with a floor that nobody looked at would pass for one that keeps it. References have none: they are it.
fn check_gate(
    cell: &Cell,
    plan: &AccuracyPlan,
    alone: bool,
    facts: &BTreeMap<String, FactValue>,
) -> Result<(), String> {
    let compared = !alone && plan.reference.as_ref().is_some_and(|reference| *reference != cell.id);
    match facts.get("accuracy_gate") {
        // Outputs of a graph may be held against files too.
        Some(_) if alone && cell.graph.is_none() => {
            Err("`accuracy_gate` was reported, and there was no reference".to_owned())
        }
        Some(FactValue::Text(word)) if word == "pass" || word == "fail" => Ok(()),
        Some(other) => Err(format!("`accuracy_gate` is {other:?}, neither `pass` nor `fail`")),
        None if compared && plan.floor.is_some() && !plan.tasks.is_empty() => {
            Err("whether the cell keeps the accuracy floor was not reported".to_owned())
        }
        None => Ok(()),
    }
}

fn check_task(task: &TaskResult) -> Result<(), String> {
    let name = &task.task;
    for (figure, value) in &task.figures {
        if metrics::find_task_figure(figure).is_none() {
            return Err(format!("the task `{name}` has a figure `{figure}` that this program does not know"));
        }
        if !value.is_finite() {
            return Err(format!("`{figure}` of the task `{name}` is not finite"));
        }
    }
    if !task.figures.contains_key(&task.metric) {
        return Err(format!("the task `{name}` lacks `{}`, the figure that stands for it", task.metric));
    }
    if task.items == 0 {
        return Err(format!("no item of the task `{name}` was scored"));
    }
    if !task.seconds.is_finite() || task.seconds <= 0.0 {
        return Err(format!("the task `{name}` took {} s", task.seconds));
    }
    Ok(())
}

fn check_items(of: &ItemResults, tasks: &[TaskResult]) -> Result<(), String> {
    let (name, metric) = (&of.task, &of.metric);
    if metrics::find_item_figure(metric).is_none() {
        return Err(format!("items of the task `{name}` have a figure `{metric}` that this program does not know"));
    }
    let Some(task) = tasks.iter().find(|task| task.task == *name) else {
        return Err(format!("the worker reported items of a task `{name}` of which it reported no result"));
    };
    if of.ids.len() != of.values.len() || of.ids.len() as u64 != task.items {
        return Err(format!(
            "`{metric}` of the task `{name}` has {} values for {} ids of {} items",
            of.values.len(),
            of.ids.len(),
            task.items
        ));
    }
    match of.ids.iter().zip(&of.values).find(|(_, value)| !value.is_finite()) {
        Some((id, _)) => Err(format!("`{metric}` of the item `{id}` of the task `{name}` is not finite")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake;

    fn reason(edit: impl FnOnce(&mut Vec<TaskResult>, &mut Vec<ItemResults>)) -> String {
        let cell = fake::cell_with_accuracy("a", "cpu", None);
        let (mut tasks, mut items) = fake::tasks(&cell);
        edit(&mut tasks, &mut items);
        check(&cell, Category::Accuracy, false, &fake::facts(&cell), &tasks, &items).expect_err("should be invalid")
    }

    #[test]
    fn plausible_results_pass() {
        let cell = fake::cell_with_accuracy("a", "cpu", None);
        let (tasks, items) = fake::tasks(&cell);
        let facts = fake::facts(&cell);
        assert_eq!(check(&cell, Category::Accuracy, false, &facts, &tasks, &items), Ok(()));
        assert_eq!(check(&cell, Category::Speed, false, &facts, &[], &[]), Ok(()));
        assert!(check(&cell, Category::Speed, false, &facts, &tasks, &items).is_err());
    }

    #[test]
    fn a_floor_has_a_verdict() {
        let checked = |alone: bool, cell: &Cell, facts: &BTreeMap<String, FactValue>| {
            let (tasks, items) = fake::tasks(cell);
            check(cell, Category::Accuracy, alone, facts, &tasks, &items)
        };
        let judged = |cell: &Cell, facts: &BTreeMap<String, FactValue>| checked(false, cell, facts);
        let alone = |cell: &Cell, facts: &BTreeMap<String, FactValue>| checked(true, cell, facts);
        let reference = fake::cell("a", "cpu").id;
        let cell = fake::cell_with_accuracy("a", "openvino", Some(&reference));
        let mut facts = fake::facts(&cell);
        assert_eq!(judged(&cell, &facts), Ok(()));
        assert!(alone(&cell, &facts).unwrap_err().contains("there was no reference"));
        facts.insert("accuracy_gate".into(), "perhaps".into());
        assert!(judged(&cell, &facts).unwrap_err().contains("neither `pass` nor `fail`"));
        facts.remove("accuracy_gate");
        assert!(judged(&cell, &facts).unwrap_err().contains("was not reported"));
        assert_eq!(alone(&cell, &facts), Ok(()), "no reference, no verdict");
        assert_eq!(judged(&fake::cell_with_accuracy("a", "cpu", Some(&reference)), &facts), Ok(()), "the reference");
        assert_eq!(judged(&fake::cell_with_accuracy("a", "openvino", None), &facts), Ok(()), "no floor");
    }

    #[test]
    fn what_cannot_be_true_is_named() {
        let cases = [
            (reason(|tasks, _| drop(tasks.pop())), "the task `wiki` has no result"),
            (reason(|tasks, _| tasks[0].task = "other".into()), "`other` that the cell does not have"),
            (reason(|tasks, _| tasks[1] = tasks[0].clone()), "`recall` twice"),
            (
                reason(|tasks, _| {
                    tasks[0].figures.insert("luck".into(), 7.0);
                }),
                "figure `luck`",
            ),
            (
                reason(|tasks, _| {
                    tasks[0].figures.insert("acc".into(), f64::NAN);
                }),
                "`acc` of the task `recall`",
            ),
            (
                reason(|tasks, _| {
                    tasks[0].figures.remove("acc");
                }),
                "lacks `acc`",
            ),
            (reason(|tasks, _| tasks[0].items = 0), "no item"),
            (reason(|tasks, _| tasks[0].seconds = 0.0), "took 0 s"),
            (reason(|_, items| items[0].metric = "luck".into()), "figure `luck`"),
            (reason(|_, items| items[0].task = "other".into()), "reported no result"),
            (reason(|_, items| drop(items[0].ids.pop())), "has 4 values for 3 ids of 4 items"),
            (reason(|_, items| items[0].values[1] = f64::INFINITY), "`item_acc` of the item `q1`"),
        ];
        for (reason, expected) in cases {
            assert!(reason.contains(expected), "{reason:?} should contain {expected:?}");
        }
    }
}
