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
    ("cpu_flags", Kind::Text, "/cpu/flags", "Instruction sets by which kernels are chosen."),
    ("cpu_cores_online", Kind::Integer, "/cpu/online", "Logical processors of the machine."),
    ("cpu_cores_allowed", Kind::Integer, "/cpu/allowed", "Logical processors that this process may use."),
    ("cpu_governor", Kind::Text, "/cpu/governor", "Frequency governor of the first processor."),
    ("cpu_frequency_mhz", Kind::Float, "/cpu/frequency_mhz", "Frequency of the first processor when the run started."),
    ("gpu_models", Kind::Text, "/gpu/models", "NVIDIA's GPUs, as `2 × NVIDIA L4`; empty without any."),
    ("gpu_driver", Kind::Text, "/gpu/driver", "Version of NVIDIA's driver."),
    ("gpu_memory_bytes", Kind::Integer, "/gpu/memory_bytes", "Memory of the first GPU."),
    ("memory_bytes", Kind::Integer, "/memory/machine_bytes", "Memory of the machine."),
    ("memory_limit_bytes", Kind::Integer, "/memory/cgroup_bytes", "Limit of the control group; empty without one."),
    ("swap_bytes", Kind::Integer, "/memory/swap_bytes", "Swap of the machine."),
    ("huge_pages", Kind::Text, "/system/huge_pages", "Setting of transparent huge pages."),
    ("os", Kind::Text, "/system/name", "Name and version of the system."),
    ("kernel", Kind::Text, "/system/kernel", "Release of the kernel."),
    ("disk_filesystem", Kind::Text, "/disk/filesystem", "Filesystem of the results' folder."),
    ("disk_model", Kind::Text, "/disk/model", "Model of the disk below it."),
    ("load_average", Kind::Float, "/system/load_average_1m", "Load average over one minute when the run started."),
    (
        "temperature_celsius",
        Kind::Float,
        "/system/temperature_celsius",
        "The hottest thermal zone when the run started.",
    ),
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
