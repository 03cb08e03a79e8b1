//! `operators.csv`: a row for each node of each cell whose operators were profiled.

use crate::error::{Context, Error, Result};
use crate::protocol::OperatorTime;
use crate::results::columns::{Kind, SCHEMA_VERSION};
use crate::results::summary::BYTE_ORDER_MARK;
use crate::results::{Outcome, Value};

/// One column.
#[derive(Debug)]
pub struct OperatorColumn {
    /// Unique in the table.
    pub name: &'static str,
    /// Unit in words, empty where there is none.
    pub unit: &'static str,
    /// What its fields hold.
    pub kind: Kind,
    /// Definition in one sentence.
    pub description: &'static str,
    get: fn(&Row) -> Value,
}

struct Row<'a> {
    run_id: &'a str,
    outcome: &'a Outcome,
    rank: u64,
    node: &'a OperatorTime,
}

/// Every column, in the order of the table.
pub const COLUMNS: &[OperatorColumn] = &[
    column("schema_version", "", Kind::Integer, "Version of this table's columns.", |_| SCHEMA_VERSION.into()),
    column("run_id", "", Kind::Text, "The run: the name of its folder.", |row| row.run_id.into()),
    column("cell_id", "", Kind::Text, "The cell, as in summary.csv.", |row| row.outcome.cell.id.0.as_str().into()),
    column("model", "", Kind::Text, "The model's name in the matrix.", |row| {
        row.outcome.cell.model.name.as_str().into()
    }),
    column("backend", "", Kind::Text, "The backend's name in the matrix.", |row| {
        row.outcome.cell.backend.name.as_str().into()
    }),
    column("threads", "", Kind::Integer, "Threads of one operator (intra-op).", |row| row.outcome.cell.threads.into()),
    column("dimensions", "", Kind::Text, "Sizes of the graph's free dimensions.", |row| {
        let graph = row.outcome.cell.graph.as_ref();
        Value::Text(graph.map(|graph| graph.dimensions.to_string()).unwrap_or_default())
    }),
    column("rank", "", Kind::Integer, "Place of the node by its time, from 1.", |row| row.rank.into()),
    column("provider", "", Kind::Text, "ONNX Runtime's name of the execution provider that ran the node.", |row| {
        row.node.provider.as_str().into()
    }),
    column("operator", "", Kind::Text, "The node's operator, in the graph as optimized.", |row| {
        row.node.operator.as_str().into()
    }),
    column("node", "", Kind::Text, "The node's name, in the graph as optimized.", |row| row.node.node.as_str().into()),
    column("calls", "count", Kind::Integer, "Times that it ran in all profiled runs.", |row| row.node.calls.into()),
    column(
        "microseconds_per_run",
        "µs",
        Kind::Float,
        "Its time in a mean profiled run, which is a little slower than others; ONNX Runtime counts whole microseconds a call.",
        |row| row.node.microseconds_per_run.into(),
    ),
    column("share", "", Kind::Float, "Its time ÷ that of all nodes.", |row| row.node.share.into()),
];

const fn column(
    name: &'static str,
    unit: &'static str,
    kind: Kind,
    description: &'static str,
    get: fn(&Row) -> Value,
) -> OperatorColumn {
    OperatorColumn { name, unit, kind, description, get }
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
    let header = COLUMNS.iter().map(|column| column.name);
    writer.write_record(header).context("cannot express the header as CSV")?;
    for outcome in outcomes {
        for (node, rank) in outcome.operators.iter().zip(1..) {
            let row = Row { run_id, outcome, rank, node };
            let fields = COLUMNS.iter().map(|column| (column.get)(&row).field());
            writer.write_record(fields).context("cannot express a row as CSV")?;
        }
    }
    writer.into_inner().map_err(|error| Error::new("cannot express rows as CSV").because(error.into_error()))
}
