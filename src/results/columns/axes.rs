//! Identity and settings: the columns that every row fills.

use super::{Column, Group, Kind, Row, SCHEMA_VERSION, Source, fact_column, unit_of};
use crate::cell::{Category, Cell, ModelKind, PromptSource, Residency};
use crate::metrics;
use crate::results::Value;

/// A fact that stands beside how the row ended: a fast cell with wrong answers is to be seen at once.
pub(super) const GATE: &str = "accuracy_gate";

pub(super) fn columns() -> Vec<Column> {
    let mut columns = identity();
    let after_reason = columns.iter().position(|column| column.name == "reason").map_or(0, |place| place + 1);
    let gate = metrics::find_fact(GATE).map(|fact| fact_column(fact, Group::Identity, Source::Fact(GATE)));
    columns.splice(after_reason..after_reason, gate);
    columns.extend(settings());
    columns
}

fn identity() -> Vec<Column> {
    let column = |name, kind, description, get| column(Group::Identity, name, kind, description, get);
    vec![
        column("schema_version", Kind::Integer, "Version of this table's columns.", |_| Some(SCHEMA_VERSION.into())),
        column("run_id", Kind::Text, "The run: the name of its folder.", |row| Some(row.run_id.into())),
        column(
            "cell_id",
            Kind::Text,
            "The cell: readable axes and a short hash of all of them; the same axes have the same id in every run.",
            |row| Some(row.outcome.cell.id.0.as_str().into()),
        ),
        column(
            "status",
            Kind::Text,
            "`measured`, `unsupported`, `invalid`, `timed_out`, `out_of_memory` or `failed`: the worst outcome of the categories.",
            |row| Some(row.outcome.status.name().into()),
        ),
        column("reason", Kind::Text, "Why the cell is not `measured`, with the category concerned.", |row| {
            row.outcome.reason.as_deref().map(Value::from)
        }),
        column("hint", Kind::Text, "What can be done about it.", |row| row.outcome.hint.as_deref().map(Value::from)),
        column("warnings", Kind::Text, "What the reader of the row should know, separated by ` | `.", warnings),
        column("started_at", Kind::Time, "When the cell's first process started; empty when none did.", |row| {
            text(&row.outcome.started)
        }),
        column(
            "wall_seconds",
            Kind::Float,
            "Time of all the cell's processes, starting and warming up included.",
            |row| (row.outcome.seconds > 0.0).then_some(Value::Float(row.outcome.seconds)),
        ),
    ]
}

fn settings() -> Vec<Column> {
    let column = |name, kind, description, get| column(Group::Axes, name, kind, description, get);
    vec![
        column("model", Kind::Text, "The model's name in the matrix.", |row| {
            Some(row.outcome.cell.model.name.as_str().into())
        }),
        column("kind", Kind::Text, "`package` (a language model) or `graph` (any ONNX file).", |row| {
            Some(row.outcome.cell.kind().name().into())
        }),
        column(
            "package",
            Kind::Text,
            "The model package's folder, or the graph's file, as the matrix file writes it.",
            |row| Some(row.outcome.cell.model.written.as_str().into()),
        ),
        column("backend", Kind::Text, "The backend's name in the matrix.", |row| {
            Some(row.outcome.cell.backend.name.as_str().into())
        }),
        column("runtime", Kind::Text, "The build of ONNX Runtime: an installed one's name, or a path.", |row| {
            Some(row.outcome.cell.backend.runtime.to_string().into())
        }),
        column(
            "provider",
            Kind::Text,
            "The execution provider asked for; of a plugin its name and its library's file.",
            |row| {
                let backend = &row.outcome.cell.backend;
                Some(backend.plugin.as_ref().map_or_else(|| backend.provider.to_string(), ToString::to_string).into())
            },
        ),
        column(
            "provider_options",
            Kind::Text,
            "The provider's options as `key=value`, separated by `;`.",
            provider_options,
        ),
        column(
            "precision",
            Kind::Text,
            "What the weights of the matrix products are stored in; of a graph, the matrix file's own word for it.",
            |row| match &row.outcome.cell.graph {
                Some(graph) => graph.precision.as_deref().map(Value::from),
                None => Some(row.outcome.cell.precision.name().into()),
            },
        ),
        column(
            "flavour",
            Kind::Text,
            "A package's operators: `fused` (contrib operators) or `plain` (standard operators alone).",
            |row| of_package(row, |cell| cell.flavour.name().into()),
        ),
        column("threads", Kind::Integer, "Threads of one operator (intra-op).", |row| {
            Some(row.outcome.cell.threads.into())
        }),
        column(
            "residency",
            Kind::Text,
            "Where the weights of a pack live: `resident`, `mapped`, `stream` or `experts`; empty for an ordinary package.",
            |row| Some(row.outcome.cell.memory.residency?.name().into()),
        ),
        column(
            "memory_budget_bytes",
            Kind::Integer,
            "What the process of a pack may hold in all, by the loader's own account; empty without a budget.",
            |row| Some(row.outcome.cell.memory.budget_bytes?.into()),
        ),
        column(
            "process_memory_limit_bytes",
            Kind::Integer,
            "What the kernel lets the process hold, page cache included and without swap; empty without a limit.",
            |row| Some(row.outcome.cell.memory.limit_bytes?.into()),
        ),
        column(
            "micro_batch",
            Kind::Integer,
            "Sequences that go through a layer of a pack together, before the next layer's weights are read; empty where the graph runs in one piece.",
            |row| row.outcome.cell.memory.micro_batch.map(Value::from),
        ),
        column(
            "offload",
            Kind::Text,
            "`disk` where key/value caches wait on disk while other layers run; empty where they stay in memory.",
            |row| row.outcome.cell.memory.offload.then(|| "disk".into()),
        ),
        column(
            "guess",
            Kind::Integer,
            "Experts of the next layer that are read on a guess, of a cell with the residency `experts`; empty elsewhere.",
            |row| {
                let memory = row.outcome.cell.memory;
                (memory.residency == Some(Residency::Experts)).then(|| memory.guess.into())
            },
        ),
        column(
            "optimizations",
            Kind::Text,
            "Optimizations that the cell switches on, with what they are told, joined by `+`; `none` or empty without one.",
            |row| Some(Value::Text(row.outcome.cell.optimizations.as_ref()?.to_string())),
        ),
        column(
            "dimensions",
            Kind::Text,
            "Sizes of a graph's free dimensions as `name=size`, separated by a space; empty where it has none.",
            |row| text(&row.outcome.cell.graph.as_ref()?.dimensions.to_string()),
        ),
        column(
            "batch",
            Kind::Integer,
            "Sequences in one batch; of a graph, items of a run, empty where the matrix does not say how many.",
            |row| match &row.outcome.cell.graph {
                Some(graph) => graph.items.map(Value::from),
                None => Some(row.outcome.cell.workload.batch.into()),
            },
        ),
        column(
            "image",
            Kind::Text,
            "Width and height in pixels of the generated image at the start of each prompt; empty for a prompt of text.",
            |row| Some(row.outcome.cell.workload.image?.to_string().into()),
        ),
        column(
            "prompt_tokens",
            Kind::Integer,
            "Tokens of each prompt, exactly, those of an image among them.",
            |row| of_package(row, |cell| cell.workload.prompt_tokens.into()),
        ),
        column("generate_tokens", Kind::Integer, "Tokens generated after each prompt, exactly.", |row| {
            of_package(row, |cell| cell.workload.generate_tokens.into())
        }),
        column(
            "prompt_source",
            Kind::Text,
            "`random_tokens seed=N`, or the text file that was tokenized.",
            prompt_source,
        ),
        column("categories_requested", Kind::Text, "Categories asked for, separated by a space.", |row| {
            names(&row.outcome.cell.categories)
        }),
        column("categories_measured", Kind::Text, "Categories that were measured whole.", |row| {
            names(&row.outcome.measured)
        }),
        column("warmup", Kind::Integer, "Unmeasured runs asked for before the first measured one.", |row| {
            Some(row.outcome.cell.measurement.warmup.into())
        }),
        column("repetitions", Kind::Integer, "Measured runs asked for, at least.", |row| {
            Some(row.outcome.cell.measurement.repetitions.into())
        }),
        column("min_seconds", Kind::Float, "Measured seconds asked for, at least.", |row| {
            Some(row.outcome.cell.measurement.min_seconds.into())
        }),
        column("processes", Kind::Integer, "Fresh processes over which memory was measured.", |row| {
            Some(row.outcome.cell.measurement.processes.into())
        }),
        column("timeout_seconds", Kind::Float, "Longest time that one process was given.", |row| {
            Some(row.outcome.cell.measurement.timeout_seconds.into())
        }),
        column("profile", Kind::Text, "`quick` for the shortened measurement, else `full`.", |row| {
            Some(if row.outcome.cell.measurement.quick { "quick" } else { "full" }.into())
        }),
        column(
            "strict_placement",
            Kind::Bool,
            "True when a node on another provider makes the cell `unsupported`.",
            |row| Some(row.outcome.cell.strict_placement.into()),
        ),
    ]
}

fn column(group: Group, name: &str, kind: Kind, description: &str, get: fn(&Row) -> Option<Value>) -> Column {
    Column {
        name: name.to_owned(),
        unit: unit_of(&format!("_{name}")),
        kind,
        group,
        category: None,
        description: description.to_owned(),
        source: Source::Row(get),
    }
}

/// What only a language model has.
fn of_package(row: &Row, get: impl Fn(&Cell) -> Value) -> Option<Value> {
    (row.outcome.cell.kind() == ModelKind::Package).then(|| get(&row.outcome.cell))
}

fn text(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| text.into())
}

fn warnings(row: &Row) -> Option<Value> {
    text(&row.outcome.all_warnings().join(" | "))
}

fn provider_options(row: &Row) -> Option<Value> {
    let options: Vec<_> =
        row.outcome.cell.backend.options.iter().map(|(key, value)| format!("{key}={value}")).collect();
    text(&options.join(";"))
}

fn prompt_source(row: &Row) -> Option<Value> {
    of_package(row, |cell| match &cell.workload.prompt {
        PromptSource::RandomTokens { seed } => format!("random_tokens seed={seed}").into(),
        PromptSource::TextFile { path } => path.display().to_string().into(),
    })
}

fn names(categories: &[Category]) -> Option<Value> {
    text(&categories.iter().map(|category| category.name()).collect::<Vec<_>>().join(" "))
}
