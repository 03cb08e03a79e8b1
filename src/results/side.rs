//! What the tables beside `summary.csv` have in common: several rows a cell, each of a part of its outcome.

use crate::cell::Category;
use crate::error::Result;
use crate::results::columns::{Kind, SCHEMA_VERSION};
use crate::results::{Outcome, Value, impact, operators, summary, tasks};

/// A row before it is written.
pub struct Row<'a, T> {
    /// The run: the name of its folder.
    pub run_id: &'a str,
    /// The cell.
    pub outcome: &'a Outcome,
    /// The part that the row is of, …
    pub part: &'a T,
    /// … and its place among the cell's, from 1.
    pub place: u64,
}

/// One column.
#[derive(Debug)]
pub struct SideColumn<T: 'static> {
    /// Unique in the table.
    pub name: &'static str,
    /// Unit in words, empty where there is none.
    pub unit: &'static str,
    /// What its fields hold.
    pub kind: Kind,
    /// Definition in one sentence.
    pub description: &'static str,
    source: Source<T>,
}

/// Where a column's values come from.
#[derive(Debug)]
enum Source<T: 'static> {
    Row(fn(&Row<T>) -> Option<Value>),
    /// A figure of the part, of the column's name.
    Figure(fn(&T, &str) -> Option<f64>),
}

impl<T> SideColumn<T> {
    /// A column whose values the row knows.
    pub const fn new(
        name: &'static str,
        unit: &'static str,
        kind: Kind,
        description: &'static str,
        get: fn(&Row<T>) -> Option<Value>,
    ) -> Self {
        Self { name, unit, kind, description, source: Source::Row(get) }
    }

    /// A column of a figure that parts have by name.
    pub const fn of_figure(
        name: &'static str,
        unit: &'static str,
        kind: Kind,
        description: &'static str,
        get: fn(&T, &str) -> Option<f64>,
    ) -> Self {
        Self { name, unit, kind, description, source: Source::Figure(get) }
    }

    fn field(&self, row: &Row<T>) -> String {
        let value = match self.source {
            Source::Row(get) => get(row),
            Source::Figure(get) => get(row.part, self.name).map(|value| match self.kind {
                Kind::Integer if value >= 0.0 => Value::Integer(value as u64),
                _ => Value::Float(value),
            }),
        };
        value.map(|value| value.field()).unwrap_or_default()
    }
}

// Columns that say whose row it is.

/// The schema's version.
pub const fn schema_version<T>() -> SideColumn<T> {
    SideColumn::new("schema_version", "", Kind::Integer, "Version of this table's columns.", |_| {
        Some(SCHEMA_VERSION.into())
    })
}

/// The run.
pub const fn run_id<T>() -> SideColumn<T> {
    SideColumn::new("run_id", "", Kind::Text, "The run: the name of its folder.", |row| Some(row.run_id.into()))
}

/// The cell.
pub const fn cell_id<T>() -> SideColumn<T> {
    SideColumn::new("cell_id", "", Kind::Text, "The cell, as in summary.csv.", |row| {
        Some(row.outcome.cell.id.0.as_str().into())
    })
}

/// The model.
pub const fn model<T>() -> SideColumn<T> {
    SideColumn::new("model", "", Kind::Text, "The model's name in the matrix.", |row| {
        Some(row.outcome.cell.model.name.as_str().into())
    })
}

/// The backend.
pub const fn backend<T>() -> SideColumn<T> {
    SideColumn::new("backend", "", Kind::Text, "The backend's name in the matrix.", |row| {
        Some(row.outcome.cell.backend.name.as_str().into())
    })
}

/// The precision.
pub const fn precision<T>() -> SideColumn<T> {
    SideColumn::new("precision", "", Kind::Text, "What the weights of the matrix products are stored in.", |row| {
        Some(row.outcome.cell.precision.name().into())
    })
}

/// The flavour.
pub const fn flavour<T>() -> SideColumn<T> {
    SideColumn::new("flavour", "", Kind::Text, "The graph's operators: `fused` or `plain`.", |row| {
        Some(row.outcome.cell.flavour.name().into())
    })
}

/// The threads.
pub const fn threads<T>() -> SideColumn<T> {
    SideColumn::new("threads", "", Kind::Integer, "Threads of one operator (intra-op).", |row| {
        Some(row.outcome.cell.threads.into())
    })
}

/// All of them, in the order in which tables about language models begin.
pub const fn identity<T>() -> [SideColumn<T>; 8] {
    [schema_version(), run_id(), cell_id(), model(), backend(), precision(), flavour(), threads()]
}

/// A table.
pub struct SideTable<T: 'static> {
    /// Its file's name.
    pub file: &'static str,
    /// The category that fills it.
    pub category: Category,
    /// Its key in the dictionary as JSON.
    pub key: &'static str,
    /// What its rows are, in one sentence.
    pub rows: &'static str,
    /// Its columns, in order.
    pub columns: fn() -> &'static [SideColumn<T>],
    /// The parts of an outcome that have a row.
    pub parts: fn(&Outcome) -> &[T],
}

impl<T> SideTable<T> {
    /// The whole file, as `summary.csv` is written.
    ///
    /// # Errors
    /// None that a row can cause; the CSV writer's signature has one.
    pub fn render<'a>(
        &self,
        run_id: &str,
        outcomes: impl IntoIterator<Item = &'a Outcome>,
        byte_order_mark: bool,
    ) -> Result<Vec<u8>> {
        let columns = (self.columns)();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for outcome in outcomes {
            for (part, place) in (self.parts)(outcome).iter().zip(1..) {
                let row = Row { run_id, outcome, part, place };
                rows.push(columns.iter().map(|column| column.field(&row)).collect());
            }
        }
        summary::write(columns.iter().map(|column| column.name), rows, byte_order_mark)
    }
}

/// A table for the dictionary, whatever its rows are of.
pub trait Described: Sync {
    /// Its file's name.
    fn file(&self) -> &'static str;
    /// The category that fills it.
    fn category(&self) -> Category;
    /// Its key in the dictionary as JSON.
    fn key(&self) -> &'static str;
    /// What its rows are, in one sentence.
    fn rows(&self) -> &'static str;
    /// Name, unit, kind and description of each column.
    fn columns(&self) -> Vec<(&'static str, &'static str, Kind, &'static str)>;
}

impl<T> Described for SideTable<T> {
    fn file(&self) -> &'static str {
        self.file
    }

    fn category(&self) -> Category {
        self.category
    }

    fn key(&self) -> &'static str {
        self.key
    }

    fn rows(&self) -> &'static str {
        self.rows
    }

    fn columns(&self) -> Vec<(&'static str, &'static str, Kind, &'static str)> {
        (self.columns)().iter().map(|column| (column.name, column.unit, column.kind, column.description)).collect()
    }
}

/// Every table beside `summary.csv`, in the order of the dictionary.
pub const TABLES: [&dyn Described; 3] = [&tasks::TABLE, &operators::TABLE, &impact::TABLE];
