//! `tasks.csv`: a row for each task of each cell whose accuracy was measured.

use std::sync::LazyLock;

use crate::cell::Category;
use crate::metrics::{self, Better, TASK_FIGURES};
use crate::protocol::TaskResult;
use crate::results::Value;
use crate::results::columns::Kind;
use crate::results::folder::TASKS;
use crate::results::side::{self, Row, SideColumn, SideTable};

/// The table.
pub const TABLE: SideTable<TaskResult> = SideTable {
    file: TASKS,
    category: Category::Accuracy,
    key: "task_columns",
    rows: "A row for each cell and task, in runs that measure accuracy.",
    columns,
    parts: |outcome| &outcome.tasks,
};

/// Every column, in the order of the table.
pub fn columns() -> &'static [SideColumn<TaskResult>] {
    static COLUMNS: LazyLock<Vec<SideColumn<TaskResult>>> = LazyLock::new(|| {
        let mut columns: Vec<_> = side::identity().into_iter().chain(result()).collect();
        columns.extend(TASK_FIGURES.iter().map(|figure| {
            // `acc_bytes` is no number of bytes: of the figures, only ratios end in their unit.
            let unit = if figure.name.ends_with("_ratio") { "ratio" } else { "" };
            let kind = if is_count(figure.name) { Kind::Integer } else { Kind::Float };
            let value = |result: &TaskResult, name: &str| result.figures.get(name).copied();
            SideColumn::of_figure(figure.name, unit, kind, figure.description, value)
        }));
        columns.push(column(
            "task_hash",
            Kind::Text,
            "First digits of the SHA-256 over description, items and settings: equal ones asked the same.",
            |row| Some(row.part.hash.as_str().into()),
        ));
        columns
    });
    &COLUMNS
}

/// Figures travel as floating-point numbers; these count items.
fn is_count(figure: &str) -> bool {
    figure == "answers_changed" || figure.starts_with("flips")
}

fn result() -> Vec<SideColumn<TaskResult>> {
    vec![
        column("task", Kind::Text, "The task's name in the matrix.", |row| Some(row.part.task.as_str().into())),
        column("kind", Kind::Text, "`choice`, `continuation`, `perplexity`, `generation` or `code`.", |row| {
            Some(row.part.kind.as_str().into())
        }),
        column("metric", Kind::Text, "The figure that stands for the task.", |row| {
            Some(row.part.metric.as_str().into())
        }),
        column("score", Kind::Float, "Its value.", |row| row.part.score().map(Value::Float)),
        column(
            "higher_is_better",
            Kind::Bool,
            "Whether a larger `score` is the better one: true of shares, false of perplexities.",
            |row| match metrics::find_task_figure(&row.part.metric)?.better {
                Better::Higher => Some(true.into()),
                Better::Lower => Some(false.into()),
                Better::Neither => None,
            },
        ),
        column("score_stderr", Kind::Float, "Its standard error, where it has one.", |row| {
            row.part.score_stderr().map(Value::Float)
        }),
        column("items", Kind::Integer, "Items that were scored.", |row| Some(row.part.items.into())),
        column("fewshot", Kind::Integer, "Examples before each item.", |row| Some(row.part.fewshot.into())),
        column("chat", Kind::Bool, "Whether prompts went through the model's chat template.", |row| {
            Some(row.part.chat.into())
        }),
        column("truncated_items", Kind::Integer, "Items of which a request was cut from the left to fit.", |row| {
            Some(row.part.truncated_items.into())
        }),
        column(
            "truncated_requests",
            Kind::Integer,
            "Requests that were cut (an item has one for each choice).",
            |row| Some(row.part.truncated.into()),
        ),
        column(
            "seconds",
            Kind::Float,
            "Wall time of scoring, tokenization and the model's runs, without loading.",
            |row| Some(row.part.seconds.into()),
        ),
        column("items_per_second", Kind::Float, "`items` ÷ `seconds`.", |row| {
            Some(Value::Float(row.part.items as f64 / row.part.seconds))
        }),
    ]
}

fn column(
    name: &'static str,
    kind: Kind,
    description: &'static str,
    get: fn(&Row<TaskResult>) -> Option<Value>,
) -> SideColumn<TaskResult> {
    let unit = match name {
        "seconds" => "s",
        "items_per_second" => "items/s",
        _ => "",
    };
    SideColumn::new(name, unit, kind, description, get)
}
