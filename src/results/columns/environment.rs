//! Columns of the environment: what a comparison of two rows from two machines needs. The whole is in
//! `environment.json`; a value that this machine does not tell is an empty field.

use serde_json::Value as Json;

use super::{Column, Group, Kind, Source, unit_of};
use crate::results::Value;

/// Name, kind, where in the environment it is, and what it means.
const COLUMNS: &[(&str, Kind, &str, &str)] = &[
    ("program_version", Kind::Text, "/program/version", "Version of ortbench."),
    ("program_commit", Kind::Text, "/program/commit", "Commit that ortbench was built from."),
    ("program_profile", Kind::Text, "/program/profile", "`release` or `debug`: how ortbench was built."),
    ("cpu_model", Kind::Text, "/cpu/model", "The processor's name."),
    ("cpu_cores_online", Kind::Integer, "/cpu/cores_online", "Logical processors of the machine."),
    ("cpu_cores_allowed", Kind::Integer, "/cpu/cores_allowed", "Logical processors that this process may use."),
    ("cpu_governor", Kind::Text, "/cpu/governor", "Frequency governor."),
    ("memory_bytes", Kind::Integer, "/memory/total_bytes", "Memory of the machine."),
    ("memory_limit_bytes", Kind::Integer, "/memory/limit_bytes", "Limit of the control group; empty without one."),
    ("swap_bytes", Kind::Integer, "/memory/swap_bytes", "Swap of the machine."),
    ("kernel", Kind::Text, "/os/kernel", "Kernel name and release."),
    ("gpu", Kind::Text, "/gpu/name", "The graphics processor's name."),
    ("load_average", Kind::Float, "/load_average", "Load average over one minute when the run started."),
];

pub(super) fn columns() -> impl Iterator<Item = Column> {
    COLUMNS.iter().map(|(name, kind, pointer, description)| Column {
        name: (*name).to_owned(),
        unit: unit_of(name),
        kind: *kind,
        group: Group::Environment,
        category: None,
        description: (*description).to_owned(),
        source: Source::Environment(pointer),
    })
}

/// What is null, or of another kind than the column promises, is not there.
pub(super) fn value(json: &Json, kind: Kind) -> Option<Value> {
    match kind {
        Kind::Integer => json.as_u64().map(Value::Integer),
        Kind::Float => json.as_f64().map(Value::Float),
        Kind::Bool => json.as_bool().map(Value::Bool),
        Kind::Text | Kind::Time => json.as_str().map(Value::from),
    }
}
