//! `operators.csv`: a row for each node of each cell whose operators were profiled.

use crate::cell::Category;
use crate::protocol::OperatorTime;
use crate::results::Value;
use crate::results::columns::Kind;
use crate::results::folder::OPERATORS;
use crate::results::side::{self, SideColumn, SideTable};

/// The table.
pub const TABLE: SideTable<OperatorTime> = SideTable {
    file: OPERATORS,
    category: Category::Operators,
    key: "operator_columns",
    rows: "A row for each node of each cell, in runs that profile operators.",
    columns: || COLUMNS,
    parts: |outcome| &outcome.operators,
};

/// Every column, in the order of the table.
pub const COLUMNS: &[SideColumn<OperatorTime>] = &[
    side::schema_version(),
    side::run_id(),
    side::cell_id(),
    side::model(),
    side::backend(),
    side::threads(),
    SideColumn::new("dimensions", "", Kind::Text, "Sizes of the graph's free dimensions.", |row| {
        let graph = row.outcome.cell.graph.as_ref();
        Some(Value::Text(graph.map(|graph| graph.dimensions.to_string()).unwrap_or_default()))
    }),
    SideColumn::new("rank", "", Kind::Integer, "Place of the node by its time, from 1.", |row| Some(row.place.into())),
    SideColumn::new(
        "provider",
        "",
        Kind::Text,
        "ONNX Runtime's name of the execution provider that ran the node.",
        |row| Some(row.part.provider.as_str().into()),
    ),
    SideColumn::new("operator", "", Kind::Text, "The node's operator, in the graph as optimized.", |row| {
        Some(row.part.operator.as_str().into())
    }),
    SideColumn::new("node", "", Kind::Text, "The node's name, in the graph as optimized.", |row| {
        Some(row.part.node.as_str().into())
    }),
    SideColumn::new("calls", "count", Kind::Integer, "Times that it ran in all profiled runs.", |row| {
        Some(row.part.calls.into())
    }),
    SideColumn::new(
        "microseconds_per_run",
        "µs",
        Kind::Float,
        "Its time in a mean profiled run, which is a little slower than others; ONNX Runtime counts whole microseconds a call.",
        |row| Some(row.part.microseconds_per_run.into()),
    ),
    SideColumn::new("share", "", Kind::Float, "Its time ÷ that of all nodes.", |row| Some(row.part.share.into())),
];
