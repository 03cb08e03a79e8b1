//! `tasks.csv`: a row for each task of each cell whose accuracy was measured.

use std::sync::LazyLock;

use crate::error::{Context, Error, Result};
use crate::metrics::{self, Better, TASK_FIGURES};
use crate::protocol::TaskResult;
use crate::results::columns::{Kind, SCHEMA_VERSION};
use crate::results::summary::BYTE_ORDER_MARK;
use crate::results::{Outcome, Value};

/// One column.
#[derive(Debug)]
pub struct TaskColumn {
    /// Unique in the table.
    pub name: &'static str,
    /// Unit in words, empty where there is none.
    pub unit: &'static str,
    /// What its fields hold.
    pub kind: Kind,
    /// Definition in one sentence.
    pub description: &'static str,
    source: Source,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Row(fn(&Row) -> Option<Value>),
    Figure(&'static str),
}

/// A row before it is written.
struct Row<'a> {
    run_id: &'a str,
    outcome: &'a Outcome,
    result: &'a TaskResult,
}

impl TaskColumn {
    fn field(&self, row: &Row) -> String {
        let value = match self.source {
            Source::Row(get) => get(row),
            Source::Figure(name) => row.result.figures.get(name).map(|value| match self.kind {
                Kind::Integer if *value >= 0.0 => Value::Integer(*value as u64),
                _ => Value::Float(*value),
            }),
        };
        value.map(|value| value.field()).unwrap_or_default()
    }
}

/// Every column, in the order of the table.
pub fn columns() -> &'static [TaskColumn] {
    static COLUMNS: LazyLock<Vec<TaskColumn>> = LazyLock::new(|| {
        let mut columns = identity();
        columns.extend(result());
        columns.extend(TASK_FIGURES.iter().map(|figure| TaskColumn {
            name: figure.name,
            // `acc_bytes` is no number of bytes: of the figures, only ratios end in their unit.
            unit: if figure.name.ends_with("_ratio") { "ratio" } else { "" },
            kind: if is_count(figure.name) { Kind::Integer } else { Kind::Float },
            description: figure.description,
            source: Source::Figure(figure.name),
        }));
        columns.push(column(
            "task_hash",
            Kind::Text,
            "First digits of the SHA-256 over description, items and settings: equal ones asked the same.",
            |row| Some(row.result.hash.as_str().into()),
        ));
        columns
    });
    &COLUMNS
}

/// Figures travel as floating-point numbers; these count items.
fn is_count(figure: &str) -> bool {
    figure == "answers_changed" || figure.starts_with("flips")
}

fn identity() -> Vec<TaskColumn> {
    vec![
        column("schema_version", Kind::Integer, "Version of this table's columns.", |_| Some(SCHEMA_VERSION.into())),
        column("run_id", Kind::Text, "The run: the name of its folder.", |row| Some(row.run_id.into())),
        column("cell_id", Kind::Text, "The cell, as in summary.csv.", |row| {
            Some(row.outcome.cell.id.0.as_str().into())
        }),
        column("model", Kind::Text, "The model's name in the matrix.", |row| {
            Some(row.outcome.cell.model.name.as_str().into())
        }),
        column("backend", Kind::Text, "The backend's name in the matrix.", |row| {
            Some(row.outcome.cell.backend.name.as_str().into())
        }),
        column("precision", Kind::Text, "What the weights of the matrix products are stored in.", |row| {
            Some(row.outcome.cell.precision.name().into())
        }),
        column("flavour", Kind::Text, "The graph's operators: `fused` or `plain`.", |row| {
            Some(row.outcome.cell.flavour.name().into())
        }),
        column("threads", Kind::Integer, "Threads of one operator (intra-op).", |row| {
            Some(row.outcome.cell.threads.into())
        }),
    ]
}

fn result() -> Vec<TaskColumn> {
    vec![
        column("task", Kind::Text, "The task's name in the matrix.", |row| Some(row.result.task.as_str().into())),
        column("kind", Kind::Text, "`choice`, `continuation`, `perplexity`, `generation` or `code`.", |row| {
            Some(row.result.kind.as_str().into())
        }),
        column("metric", Kind::Text, "The figure that stands for the task.", |row| {
            Some(row.result.metric.as_str().into())
        }),
        column("score", Kind::Float, "Its value.", |row| row.result.score().map(Value::Float)),
        column(
            "higher_is_better",
            Kind::Bool,
            "Whether a larger `score` is the better one: true of shares, false of perplexities.",
            |row| match metrics::find_task_figure(&row.result.metric)?.better {
                Better::Higher => Some(true.into()),
                Better::Lower => Some(false.into()),
                Better::Neither => None,
            },
        ),
        column("score_stderr", Kind::Float, "Its standard error, where it has one.", |row| {
            row.result.score_stderr().map(Value::Float)
        }),
        column("items", Kind::Integer, "Items that were scored.", |row| Some(row.result.items.into())),
        column("fewshot", Kind::Integer, "Examples before each item.", |row| Some(row.result.fewshot.into())),
        column("chat", Kind::Bool, "Whether prompts went through the model's chat template.", |row| {
            Some(row.result.chat.into())
        }),
        column("truncated_items", Kind::Integer, "Items of which a request was cut from the left to fit.", |row| {
            Some(row.result.truncated_items.into())
        }),
        column(
            "truncated_requests",
            Kind::Integer,
            "Requests that were cut (an item has one for each choice).",
            |row| Some(row.result.truncated.into()),
        ),
        column(
            "seconds",
            Kind::Float,
            "Wall time of scoring, tokenization and the model's runs, without loading.",
            |row| Some(row.result.seconds.into()),
        ),
        column("items_per_second", Kind::Float, "`items` ÷ `seconds`.", |row| {
            Some(Value::Float(row.result.items as f64 / row.result.seconds))
        }),
    ]
}

fn column(name: &'static str, kind: Kind, description: &'static str, get: fn(&Row) -> Option<Value>) -> TaskColumn {
    let unit = match name {
        "seconds" => "s",
        "items_per_second" => "items/s",
        _ => "",
    };
    TaskColumn { name, unit, kind, description, source: Source::Row(get) }
}

/// The whole file, as `summary.csv` is written.
///
/// # Errors
/// None that a row can cause; the CSV writer's signature has one.
pub fn render<'a>(
    run_id: &str,
    outcomes: impl IntoIterator<Item = &'a Outcome>,
    byte_order_mark: bool,
) -> Result<Vec<u8>> {
    let start = if byte_order_mark { BYTE_ORDER_MARK.to_vec() } else { Vec::new() };
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(start);
    let header = columns().iter().map(|column| column.name);
    writer.write_record(header).context("cannot express the header as CSV")?;
    for outcome in outcomes {
        for result in &outcome.tasks {
            let row = Row { run_id, outcome, result };
            let fields = columns().iter().map(|column| column.field(&row));
            writer.write_record(fields).context("cannot express a row as CSV")?;
        }
    }
    writer.into_inner().map_err(|error| Error::new("cannot express rows as CSV").because(error.into_error()))
}
