//! The columns of `summary.csv`: one registry, from which the file, its dictionary and its documentation are made.
//!
//! The order is for people who open the file: who and how it ended, every setting, the median of every series, what is
//! derived from them, facts, and only then spread and environment.
//!
//! A series `STEM_UNIT` becomes `STEM_STATISTIC_UNIT`, so that the unit stays at the end: `ttft_seconds` becomes
//! `ttft_median_seconds`, `decode_tokens_per_second` becomes `decode_median_tokens_per_second`. Counts are
//! `ttft_seconds_samples` and `ttft_seconds_outliers`.

mod axes;
mod derived;
mod dictionary;
mod environment;
mod impact;
mod series;

use std::fmt;
use std::sync::LazyLock;

pub use derived::remarks;
pub use dictionary::{csv, json, markdown};
use series::Statistic;

use crate::cell::Category;
use crate::metrics::{CEILINGS, FACTS, Fact, FactKind, SERIES, Series};
use crate::protocol::FactValue;
use crate::results::{Outcome, Value};

/// Raised when a column is renamed, removed or changes its meaning; added columns do not raise it.
pub const SCHEMA_VERSION: u32 = 1;

/// What a column's fields hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// An ISO 8601 time in UTC.
    Time,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Float => "number",
            Self::Bool => "boolean",
            Self::Time => "time",
        })
    }
}

/// A part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Who the row is and how it ended.
    Identity,
    /// What was set.
    Axes,
    /// The centre of every series.
    Medians,
    /// Quotients of measured figures.
    Derived,
    /// What a process gave once.
    Facts,
    /// What the machine can do at most.
    Ceilings,
    /// Count, spread and interval of every series.
    Spread,
    /// The machine and this program.
    Environment,
}

impl Group {
    /// Every group, in the order of the table.
    pub const ALL: &'static [Self] = &[
        Self::Identity,
        Self::Axes,
        Self::Medians,
        Self::Derived,
        Self::Facts,
        Self::Ceilings,
        Self::Spread,
        Self::Environment,
    ];

    /// Heading and first sentence in the documentation.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Identity => ("Identity", "Who the row is and how it ended."),
            Self::Axes => ("Settings", "Every setting of the cell in a column of its own."),
            Self::Medians => ("Medians", "The centre of every series; empty where its category was not measured."),
            Self::Derived => ("Derived figures", "Quotients of figures in the same row."),
            Self::Facts => ("Facts", "What a worker's process says once."),
            Self::Ceilings => {
                ("Ceilings", "What this machine can do at most with the cell's threads, measured before the run.")
            }
            Self::Spread => ("Spread", "Count, spread and interval of every series."),
            Self::Environment => {
                ("Environment", "The machine and this program, as they were when the cell's last process started.")
            }
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Identity => "identity",
            Self::Axes => "axes",
            Self::Medians => "medians",
            Self::Derived => "derived",
            Self::Facts => "facts",
            Self::Ceilings => "ceilings",
            Self::Spread => "spread",
            Self::Environment => "environment",
        })
    }
}

/// One column.
#[derive(Debug)]
pub struct Column {
    /// Unique, with the unit at its end.
    pub name: String,
    /// Unit in words, empty where there is none.
    pub unit: &'static str,
    /// What its fields hold.
    pub kind: Kind,
    /// The part of the table.
    pub group: Group,
    /// The category that fills it; `None` when every row has it.
    pub category: Option<Category>,
    /// Definition in one sentence.
    pub description: String,
    source: Source,
}

/// A row before it is written: a finished cell in its run.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The run's name, that of its folder.
    pub run_id: &'a str,
    /// The cell.
    pub outcome: &'a Outcome,
}

/// Where a column's values come from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Row(fn(&Row) -> Option<Value>),
    Series(&'static Series, Statistic),
    Fact(&'static str),
    Ceiling(&'static str),
    /// A JSON pointer into the environment.
    Environment(&'static str),
}

impl Column {
    /// The row's value; `None` becomes an empty field.
    pub fn value(&self, row: &Row) -> Option<Value> {
        let outcome = row.outcome;
        match self.source {
            Source::Row(get) => get(row),
            Source::Series(series, statistic) => statistic.of(outcome.summary(series)?),
            Source::Fact(name) => outcome.facts.get(name).map(|value| self.fact(value)),
            Source::Ceiling(name) => outcome.ceilings.get(name).map(|value| Value::Float(*value)),
            Source::Environment(pointer) => environment::value(outcome.environment.pointer(pointer)?, self.kind),
        }
    }

    /// A worker may say `2` where a quantity is meant; the column's kind decides how it is written.
    fn fact(&self, value: &FactValue) -> Value {
        match (self.kind, value) {
            (Kind::Float, FactValue::Integer(value)) => Value::Float(*value as f64),
            (_, FactValue::Integer(value)) => Value::Integer(*value),
            (_, FactValue::Float(value)) => Value::Float(*value),
            (_, FactValue::Bool(value)) => Value::Bool(*value),
            (_, FactValue::Text(value)) => Value::Text(value.clone()),
        }
    }
}

/// Every column, in the order of the table.
pub fn all() -> &'static [Column] {
    static COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
        let mut columns = axes::columns();
        columns.extend(SERIES.iter().map(series::median));
        columns.extend(derived::columns());
        columns.extend(impact::columns());
        let facts = FACTS.iter().filter(|fact| fact.name != axes::GATE);
        columns.extend(facts.map(|fact| fact_column(fact, Group::Facts, Source::Fact(fact.name))));
        columns.extend(CEILINGS.iter().map(|fact| fact_column(fact, Group::Ceilings, Source::Ceiling(fact.name))));
        columns.extend(SERIES.iter().flat_map(series::spread));
        columns.extend(environment::columns());
        columns
    });
    &COLUMNS
}

fn fact_column(fact: &Fact, group: Group, source: Source) -> Column {
    let kind = match fact.kind {
        FactKind::Bool => Kind::Bool,
        FactKind::Integer => Kind::Integer,
        FactKind::Float | FactKind::Score => Kind::Float,
        FactKind::Text => Kind::Text,
    };
    Column {
        name: fact.name.to_owned(),
        unit: unit_of(fact.name),
        kind,
        group,
        category: fact.category,
        description: fact.description.to_owned(),
        source,
    }
}

/// The unit of an item's figure, a `metric` of `samples.csv`; most have none.
pub fn item_unit(figure: &str) -> &'static str {
    if figure == "item_log_likelihood" { NATS } else { "" }
}

/// Natural logarithms. Names that say what is measured so well do not end in it.
const NATS: &str = "nats";

/// The unit that a name ends with.
fn unit_of(name: &str) -> &'static str {
    if name.starts_with("kl_divergence_") {
        return NATS;
    }
    const ENDINGS: [(&str, &str); 14] = [
        ("_joules_per_token", "J/token"),
        ("_joules_per_run", "J/run"),
        ("_watts", "W"),
        ("_seconds_per_token", "s/token"),
        ("_bytes_per_token", "bytes/token"),
        ("bytes_read_per_token", "bytes/token"),
        ("_tokens_per_second", "tokens/s"),
        ("_bytes_per_second", "bytes/s"),
        ("_flops_per_second", "FLOP/s"),
        ("_seconds", "s"),
        ("_bytes", "bytes"),
        ("_hertz", "Hz"),
        ("_celsius", "°C"),
        ("_ratio", "ratio"),
    ];
    ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map_or("", |(_, unit)| unit)
}

#[cfg(test)]
mod tests;
