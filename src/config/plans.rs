//! Each cell's plan for its accuracy: tasks with their paths filled in, the text for fidelity, the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_yaml::Location;

use super::Excluded;
use super::accuracy::{Accuracy, FidelitySource, Reference, Task, Written};
use super::axes::{Axes, Axis, NOTHING, Point};
use super::check::{Checked, Override};
use super::paths;
use super::problem::Problem;
use crate::cell::{AccuracyPlan, Category, Cell, CellId, FidelityPlan, ModelKind, PromptSource, TaskRef, TaskSource};
use crate::error::Error;
use crate::tasks::{Description, Kind, TaskSet};

/// Axes on which answers do not depend: a reference serves all their values.
const FREE: [Axis; 11] = [
    Axis::Residency,
    Axis::MemoryBudget,
    Axis::MemoryLimit,
    Axis::MicroBatch,
    Axis::Offload,
    Axis::Guess,
    Axis::Optimizations,
    Axis::Batch,
    Axis::Image,
    Axis::PromptTokens,
    Axis::GenerateTokens,
];

/// Gives every cell with the category its plan. A cell that no task is for loses the category, and is excluded where it
/// has no other; returned are the cells that lost it and stay.
pub fn add(
    file: &Checked,
    cells: &mut Vec<(Point, Cell)>,
    excluded: &mut Vec<Excluded>,
    problems: &mut Vec<Problem>,
) -> Vec<CellId> {
    let Some(accuracy) = &file.accuracy else { return Vec::new() };
    for task in &accuracy.tasks {
        if !cells.iter().any(|(point, _)| task.when.matches(point)) {
            problems.push(Problem::at(task.at, "the `when` of this task matches no cell"));
        }
    }
    let mut planner = Planner { file, accuracy, problems, told: BTreeSet::new(), looked_at: Vec::new() };
    let mut without_tasks = Vec::new();
    for (point, cell) in cells.iter_mut().filter(|(_, cell)| cell.categories.contains(&Category::Accuracy)) {
        let plan = planner.plan(point);
        if file.models[point.model()].kind == ModelKind::Graph {
            // Its outputs are compared with a reference's, or with those that its entry names.
            if accuracy.reference.is_some() || file.models[point.model()].expects() {
                cell.accuracy = Some(Box::new(plan));
            } else {
                planner.tell_the_rule_that_asked(point, cell);
                cell.categories.retain(|category| *category != Category::Accuracy);
                without_tasks.push(cell.id.clone());
            }
            continue;
        }
        if plan.tasks.is_empty() && plan.fidelity.is_none() {
            planner.tell_the_rule_that_asked(point, cell);
            cell.categories.retain(|category| *category != Category::Accuracy);
            without_tasks.push(cell.id.clone());
        } else {
            if plan.tasks.is_empty() && plan.floor.is_some() && !accuracy.tasks.is_empty() {
                planner.tell_once(accuracy.tasks[0].at, || {
                    format!("`accuracy_floor` asks nothing of `{}`, which none of the tasks is for", cell.id)
                });
            }
            cell.accuracy = Some(Box::new(plan));
        }
    }
    if let Some(reference) = &accuracy.reference {
        planner.refer(reference, cells, excluded);
    }
    let idle = |cell: &Cell| cell.categories.is_empty();
    let reason = "none of the tasks is for this cell, and nothing but accuracy is asked of it".to_owned();
    let dropped = cells.iter().filter(|(_, cell)| idle(cell));
    excluded.extend(dropped.map(|(_, cell)| Excluded { id: cell.id.clone(), reason: reason.clone() }));
    cells.retain(|(_, cell)| !idle(cell));
    without_tasks.retain(|id| excluded.iter().all(|cell| cell.id != *id));
    without_tasks
}

impl Checked {
    /// Of the axes that name a reference, those that say something to models of this kind. A model of the other kind is
    /// none's reference: each has its own then.
    fn reference_axes(&self, axes: &Axes, kind: ModelKind) -> Axes {
        let named = axes.on(Axis::Model).and_then(|models| models.first());
        let other = named.is_some_and(|model| self.models[*model as usize].kind != kind);
        axes.only(|axis| axis.applies_to(kind) && !(axis == Axis::Model && other))
    }
}

struct Planner<'a> {
    file: &'a Checked,
    accuracy: &'a Accuracy,
    problems: &'a mut Vec<Problem>,
    /// What was said already: many cells may have the same mistake.
    told: BTreeSet<(u64, u64, String)>,
    /// Tasks that were looked into already: many cells have the same ones, and their items are read once.
    looked_at: Vec<TaskRef>,
}

impl Planner<'_> {
    fn tell(&mut self, at: Location, message: String) {
        if self.told.insert((at.line(), at.column(), message.clone())) {
            self.problems.push(Problem::at(at, message));
        }
    }

    /// Of mistakes that each of many cells would tell in its own words, the first.
    fn tell_once(&mut self, at: Location, message: impl FnOnce() -> String) {
        if self.told.insert((at.line(), at.column(), String::new())) {
            self.problems.push(Problem::at(at, message()));
        }
    }

    fn plan(&mut self, point: &Point) -> AccuracyPlan {
        let accuracy = self.accuracy;
        let mut tasks: Vec<TaskRef> = Vec::new();
        let package = self.file.models[point.model()].kind == ModelKind::Package;
        for task in accuracy.tasks.iter().filter(|task| package && task.when.matches(point)) {
            let resolved = self.task(task, point);
            if tasks.iter().any(|other| other.name == resolved.name) {
                let message = format!("a cell has two tasks of the name `{}`; give one a `name`", resolved.name);
                self.tell(task.at, message);
            }
            tasks.push(resolved);
        }
        let fidelity = accuracy.fidelity.as_ref().filter(|_| package).map(|fidelity| FidelityPlan {
            source: self.fidelity_source(&fidelity.source, point),
            tokens: fidelity.tokens,
            window: fidelity.window,
            context: fidelity.context,
            generations: fidelity.generations,
            generate_tokens: fidelity.generate_tokens,
        });
        AccuracyPlan {
            tasks,
            seed: accuracy.seed,
            scoring: accuracy.scoring,
            run_code: accuracy.run_code,
            fidelity,
            reference: None,
            floor: accuracy.floor.filter(|_| package),
        }
    }

    fn fidelity_source(&mut self, source: &FidelitySource, point: &Point) -> PromptSource {
        match source {
            FidelitySource::RandomTokens { seed } => PromptSource::RandomTokens { seed: *seed },
            FidelitySource::Text(written) => {
                let path = paths::resolve(&self.file.folder, &self.fill(written, point));
                if !path.is_file() {
                    self.tell(written.at, format!("the fidelity text `{}` does not exist", path.display()));
                }
                PromptSource::TextFile { path }
            }
        }
    }

    fn task(&mut self, task: &Task, point: &Point) -> TaskRef {
        let folder = &self.file.folder;
        let written = self.fill(&task.description, point);
        let is_file = written.contains('/') || written.ends_with(".yaml") || written.ends_with(".yml");
        let (default_name, description) = if is_file {
            let stem = Path::new(&written).file_stem().map(|stem| stem.to_string_lossy().into_owned());
            (stem.unwrap_or_default(), TaskSource::File(paths::resolve(folder, &written)))
        } else {
            (written.clone(), TaskSource::Ready(written.clone()))
        };
        let path = |written: &Written| paths::resolve(folder, &self.fill(written, point));
        let (data, examples) = (task.data.as_ref().map(path), task.examples.as_ref().map(path));
        let name = task.name.clone().unwrap_or(default_name);
        if task.name.is_none() && !is_name(&name) {
            self.tell(task.at, format!("`{name}` cannot be a task's name in results; give the task a `name`"));
        }
        let resolved = TaskRef {
            name,
            description,
            data,
            examples,
            limit: task.limit,
            fewshot: task.fewshot,
            chat: task.chat,
            max_length: task.max_length,
            max_tokens: task.max_tokens,
        };
        if self.looked_at.contains(&resolved) {
            return resolved;
        }
        for (part, message) in mistakes(&resolved, self.accuracy) {
            let place = match part {
                Part::Description => None,
                Part::Data => task.data.as_ref(),
                Part::Examples => task.examples.as_ref(),
            };
            self.tell(place.unwrap_or(&task.description).at, message);
        }
        self.looked_at.push(resolved.clone());
        resolved
    }

    fn fill(&self, written: &Written, point: &Point) -> String {
        paths::fill(&written.text, &self.file.models[point.model()], point)
    }

    /// A rule of `overrides` that asks for the accuracy of a cell by name means it.
    fn tell_the_rule_that_asked(&mut self, point: &Point, cell: &Cell) {
        let decides = |rule: &&Override| rule.when.matches(point) && rule.set.categories.is_some();
        let last = self.file.overrides.iter().rfind(decides);
        if let Some(rule) = last {
            self.tell_once(rule.at, || {
                format!("this rule asks for the accuracy of `{}`, which none of the tasks is for", cell.id)
            });
        }
    }

    /// Finds every cell's reference.
    fn refer(&mut self, reference: &Reference, cells: &mut [(Point, Cell)], excluded: &[Excluded]) {
        // A point with the free axes at one value: cells of equal ones have the same reference.
        let representative = |point: &Point| {
            let free = FREE.into_iter().filter(|axis| reference.axes.on(*axis).is_none());
            free.fold(*point, |point, axis| point.with(axis, 0))
        };
        let mut references: BTreeMap<Point, (CellId, Vec<String>)> = BTreeMap::new();
        let axes_for = |kind: ModelKind| self.file.reference_axes(&reference.axes, kind);
        let (of_packages, of_graphs) = (axes_for(ModelKind::Package), axes_for(ModelKind::Graph));
        let axes = |point: &Point| match self.file.models[point.model()].kind {
            ModelKind::Package => &of_packages,
            ModelKind::Graph => &of_graphs,
        };
        for (point, cell) in cells.iter().filter(|(point, _)| axes(point).matches(point)) {
            // What an optimization does to answers is what a reference without it shows.
            let optimized = ![0, NOTHING].contains(&point.on(Axis::Optimizations))
                && reference.axes.on(Axis::Optimizations).is_none();
            if let (Some(plan), false) = (&cell.accuracy, optimized) {
                let tasks = || plan.tasks.iter().map(|task| task.name.clone()).collect();
                references.entry(representative(point)).or_insert_with(|| (cell.id.clone(), tasks()));
            }
        }
        let mut missing: BTreeMap<Point, (CellId, CellId, u32)> = BTreeMap::new();
        for (point, cell) in cells.iter_mut() {
            let Some(plan) = &mut cell.accuracy else { continue };
            let axes = axes(point);
            let named = Axis::ALL.into_iter().filter_map(|axis| Some((axis, *axes.on(axis)?.first()?)));
            let sought = named.fold(*point, |point, (axis, value)| point.with(axis, value));
            let representative = representative(&sought);
            let Some((id_of_reference, tasks)) = references.get(&representative) else {
                let sought = self.file.id(&sought);
                missing.entry(representative).or_insert_with(|| (sought, cell.id.clone(), 0)).2 += 1;
                continue;
            };
            let mut written = self.accuracy.tasks.iter().filter(|task| task.when.matches(point));
            if let Some(index) = plan.tasks.iter().position(|task| !tasks.contains(&task.name)) {
                self.tell_once(written.nth(index).map_or(reference.at, |task| task.at), || {
                    format!(
                        "the task `{}` of `{}` is not one of its reference `{id_of_reference}`: let `when` match both, \
                         or neither",
                        plan.tasks[index].name, cell.id
                    )
                });
            }
            plan.reference = Some(id_of_reference.clone());
        }
        for (sought, first, count) in missing.into_values() {
            let more = if count > 1 { format!(" (and of {} more)", count - 1) } else { String::new() };
            let why = match (excluded.iter().find(|cell| cell.id == sought), cells.iter().find(|c| c.1.id == sought)) {
                (Some(excluded), _) => format!("is excluded ({})", excluded.reason),
                (None, Some(_)) => "does not measure `accuracy`".to_owned(),
                (None, None) => "is not in the matrix".to_owned(),
            };
            let message = format!(
                "the reference of `{first}`{more} would be `{sought}`, which {why}: bring it in (`include`, \
                 `categories`), or take `accuracy` from those cells (`overrides`)"
            );
            self.tell(reference.at, message);
        }
    }
}

/// What of a task's settings is at fault.
#[derive(Clone, Copy)]
enum Part {
    Description,
    Data,
    Examples,
}

/// What is wrong with a task that can be seen before anything runs. The one place where the matrix looks into tasks.
fn mistakes(task: &TaskRef, accuracy: &Accuracy) -> Vec<(Part, String)> {
    let opened = Description::open(&task.description)
        .and_then(|description| description.settings(task).map(|settings| (description, settings)));
    let (description, settings) = match opened {
        Ok(opened) => opened,
        Err(error) => return vec![(Part::Description, told(&error))],
    };
    let mut mistakes = Vec::new();
    if description.kind == Kind::Code && !accuracy.run_code {
        let message = format!(
            "the task `{}` runs programs that the model writes (allow it with `accuracy: run_code: true`; they run \
             without network and within limits)",
            task.name
        );
        mistakes.push((Part::Description, message));
    }
    let of_data = if task.data.is_some() { Part::Data } else { Part::Description };
    let data_exist = settings.data.exists();
    if !data_exist {
        mistakes.push((of_data, format!("the task's data `{}` do not exist", settings.data.display())));
    }
    let missing = task.examples.as_ref().filter(|path| !path.exists());
    if let Some(path) = missing {
        mistakes.push((Part::Examples, format!("the task's examples `{}` do not exist", path.display())));
    }
    if data_exist && missing.is_none() {
        // Items are as right or wrong without a chat around them, and its template is the package's.
        let plain = TaskRef { chat: Some(false), ..task.clone() };
        if let Err(error) = TaskSet::of(description, &plain, accuracy.seed, || Err(Error::new("no chat"))) {
            let message = told(&error);
            let names = |path: &Path| message.contains(&format!("`{}`", path.display()));
            let of_examples = task.examples.as_ref().is_some_and(|path| names(path) && !names(&settings.data));
            mistakes.push((if of_examples { Part::Examples } else { of_data }, message));
        }
    }
    mistakes
}

/// An error and its remedy in one line.
fn told(error: &Error) -> String {
    let hint = error.find_hint().map_or(String::new(), |hint| format!(" ({hint})"));
    format!("{}{hint}", error.chain())
}

/// As `name` of a task may be written.
fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}
