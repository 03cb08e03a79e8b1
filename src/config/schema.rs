//! The JSON Schema of the matrix file, so that editors complete and check it.

use serde_json::{Value, json};

use super::axes::{Axis, Values};
use super::power;
use crate::cell::{Category, Flavour, ModelKind, ProviderKind, Scoring, Technique};
use crate::optimizations;

/// A value or a list of such values.
fn axis(item: Value, description: &str) -> Value {
    json!({
        "description": description,
        "oneOf": [item, {"type": "array", "items": item, "minItems": 1, "uniqueItems": true}],
    })
}

/// What may stand on an axis.
fn item(axis: Axis) -> Value {
    match axis.values() {
        Values::Models | Values::Backends => json!({"type": "string"}),
        Values::Words(words) => json!({"enum": words}),
        Values::Counts(maximum) => json!({"type": "integer", "minimum": 1, "maximum": maximum}),
        // Where the word is a number, it is one of the counts.
        Values::CountsOr("0", maximum) => json!({"type": "integer", "minimum": 0, "maximum": maximum}),
        Values::CountsOr(word, maximum) => {
            json!({"oneOf": [{"const": word}, {"type": "integer", "minimum": 1, "maximum": maximum}]})
        }
        Values::Optimizations => optimizations(),
        Values::Dimensions => json!({
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 0},
        }),
        Values::Images => json!({"type": "string", "pattern": "^(none|[1-9][0-9]*x[1-9][0-9]*)$"}),
        Values::Budgets => json!({"type": "string", "pattern": "^(none|[0-9.]+ *([KMGT]iB|%))$"}),
        Values::Limits => json!({"type": "string", "pattern": "^(none|budget|[0-9.]+ *[KMGT]iB)$"}),
    }
}

/// A value of the axis `optimizations`: words, or techniques with their options.
fn optimizations() -> Value {
    let techniques: Value = Technique::ALL
        .iter()
        .map(|technique| {
            let optimization = optimizations::of(*technique);
            let options: Value = optimization
                .options()
                .iter()
                .map(|option| {
                    let description = format!(
                        "{} One of: {}. Default: {}.",
                        option.description,
                        option.kind.describe(),
                        option.default
                    );
                    (
                        option.name.to_owned(),
                        json!({"type": ["string", "number", "boolean"], "description": description}),
                    )
                })
                .collect();
            let mut schema = object(optimization.summary(), &[], options);
            schema["type"] = json!(["object", "null"]);
            (technique.name().to_owned(), schema)
        })
        .collect();
    let names = Technique::NAMES.join("|");
    json!({"oneOf": [
        {"type": "string", "pattern": format!("^(none|all|({names})( *\\+ *({names}))*)$")},
        {"type": "object", "additionalProperties": false, "minProperties": 1, "properties": techniques},
    ]})
}

fn object(description: &str, required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object",
        "description": description,
        "additionalProperties": false,
        "required": required,
        "properties": properties,
    })
}

fn accuracy(axes: &Value) -> Value {
    let single: Value = Axis::ALL.map(|each| (each.name().to_owned(), item(each))).into_iter().collect();
    let count =
        |minimum: u32, description: &str| json!({"type": "integer", "minimum": minimum, "description": description});
    let text = |description: &str| json!({"type": "string", "description": description});
    let task = object(
        "A task set with settings.",
        &["task"],
        json!({
            "task": text("A description: a YAML file, or the name of a ready one."),
            "data": text("The items' file, where it is not the description's."),
            "examples": text("The file that examples come from, where it is not the description's."),
            "name": text("The name in results. Default: the description's file or ready name."),
            "limit": count(1, "Items, at most: the first ones."),
            "fewshot": count(0, "Examples before each item."),
            "chat": {"type": "boolean", "description": "Whether prompts go through the model's chat template."},
            "max_length": count(1, "Longest sequence in tokens. Default: the model's context."),
            "max_tokens": count(1, "Longest generated answer in tokens, where it is not the description's."),
            "when": object("Only for cells that match.", &[], axes.clone()),
        }),
    );
    let tasks = json!({
        "type": "array",
        "description": "Task sets (docs/tasks.md). `{model}`, `{precision}` and `{flavour}` are filled in in their paths.",
        "items": {"oneOf": [text("A description: a YAML file, or the name of a ready one."), task]},
    });
    let fidelity = object(
        "Tokens over which each cell's distributions are compared with its reference's: of a text, or drawn.",
        &[],
        json!({
            "text": text("A UTF-8 file."),
            "random_tokens": object("Uniform token ids, for models without tokenizer.", &[], json!({"seed": count(0, "Default 0.")})),
            "tokens": count(1, "Tokens to score, at most. Default 2048."),
            "window": count(2, "Tokens of a window. Default 256."),
            "context": count(1, "Tokens at the start of a window that are not scored. Default: half of it."),
            "generations": count(0, "Greedy continuations to compare. Default 8."),
            "generate_tokens": count(1, "Tokens of each continuation. Default 32."),
        }),
    );
    object(
        "What is asked of each cell for the category `accuracy`: tasks, a text, or both.",
        &[],
        json!({
            "tasks": tasks,
            "limit": count(1, "Items of every task that has no `limit` of its own."),
            "seed": count(0, "Seed of what is drawn. Default 0."),
            "scoring": {"enum": Scoring::NAMES, "description": "How items are run; the results are the same. Default batched."},
            "run_code": {"type": "boolean", "description": "Allows tasks of kind code to run programs that the model wrote. Default false."},
            "reference": object("One value on some axes: a cell's reference has these and is otherwise the same.", &[], single),
            "fidelity": fidelity,
        }),
    )
}

fn power() -> Value {
    let seconds =
        |minimum: f64, description: &str| json!({"type": "number", "minimum": minimum, "description": description});
    object(
        "How energy is measured for the category `power` (docs/power.md).",
        &[],
        json!({
            "source": {"enum": power::sources(), "description": "Where the figures come from. Default `auto`: the best that the machine has, and the estimate where it has none and a wattage is stated."},
            "rails": {"type": "array", "uniqueItems": true, "description": "Of `source: hwmon`: the sensors that are added up.", "items": {"type": "string", "pattern": "/", "description": "As `driver/label`."}},
            "estimate_watts_per_cpu": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000, "description": "Watts of one busy logical processor. Where no meter serves, figures are estimated from it, in columns of their own."},
            "idle_seconds": seconds(power::MIN_IDLE_SECONDS, "Seconds over which idle power is measured before each block. Default 5 (quick: 1)."),
            "blocks": {"type": "integer", "minimum": 1, "description": "Blocks of prefill and of decode. Default 5 (quick: 3)."},
            "min_block_seconds": seconds(0.1, "The shortest block; a slow meter makes it longer. Default 1 (quick: 0.5)."),
            "max_block_seconds": seconds(0.1, "The longest that a slow meter may make a block; a cell that would need longer ones is `invalid`. Default 60."),
        }),
    )
}

/// Keys of the writer's own choice.
fn named(description: &str, value: Value) -> Value {
    json!({"type": "object", "description": description, "additionalProperties": value})
}

fn graph_input() -> Value {
    let size = json!({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]});
    object(
        "An input of a graph.",
        &[],
        json!({
            "shape": {"type": "array", "items": size, "description": "Sizes, or names of free dimensions. Default: the graph's own."},
            "fill": {"type": ["string", "number", "boolean"], "description": "`random`, `zeros`, `ones`, `range`, a number, or a `.npy` or `.npz` file."},
            "array": {"type": "string", "description": "Which array of a `.npz` file. Default: the input's name."},
            "text": {"type": "string", "description": "Of strings: the text that all of them are."},
            "low": {"type": "number", "description": "Smallest random value. Default 0."},
            "high": {"type": "number", "description": "Largest random value; of floats it is left out. Default 1 for floats; whole numbers need it."},
            "seed": {"type": "integer", "minimum": 0, "description": "Of random values. Default 0."},
        }),
    )
}

fn graph_output() -> Value {
    let tolerance = |description: &str| json!({"type": "number", "minimum": 0, "description": description});
    object(
        "An output of a graph.",
        &[],
        json!({
            "rtol": tolerance("Relative tolerance: an element may differ by atol + rtol × |expected|. Default 0.001."),
            "atol": tolerance("Absolute tolerance. Default 0.00001."),
            "expected": {"type": "string", "description": "A `.npy` or `.npz` file of what it should be, instead of a reference cell."},
            "array": {"type": "string", "description": "Which array of a `.npz` file. Default: the output's name."},
        }),
    )
}

/// The schema (draft 2020-12).
pub fn schema() -> Value {
    let flavour = json!({"enum": Flavour::NAMES});
    let axes: Value =
        Axis::ALL.map(|each| (each.name().to_owned(), axis(item(each), each.description()))).into_iter().collect();
    let mut excluded = axes.clone();
    excluded["reason"] =
        json!({"type": "string", "description": "Why these cells are left out; `ortbench plan` shows it."});
    let categories = axis(
        json!({"enum": Category::NAMES}),
        "What is measured, each in a fresh process. Default: all; `accuracy` and `power` only where the file has the section of that name.",
    );
    let measurement = json!({
        "warmup": {"type": "integer", "minimum": 0, "description": "Unmeasured runs before the first measured one. Default 1."},
        "repetitions": {"type": "integer", "minimum": 1, "description": "Measured runs, at least. Default 5 (quick: 3)."},
        "min_seconds": {"type": "number", "minimum": 0, "description": "Measured seconds, at least. Default 1 (quick: 0.2)."},
        "processes": {"type": "integer", "minimum": 1, "description": "Fresh processes over which memory is repeated. Default 3 (quick: 1)."},
        "timeout_seconds": {"type": "number", "minimum": 1, "description": "A process that runs longer is ended. Default 300."},
    });
    let mut plan = measurement.clone();
    plan["profile"] = json!({"enum": ["full", "quick"], "description": "`quick` has smaller defaults, and every row says so. Default full."});
    let mut set = measurement;
    set["categories"] = categories.clone();
    set["strict_placement"] = json!({"type": "boolean"});
    let mut root = object(
        "A matrix of benchmarks for ortbench.",
        &["version", "name", "models", "backends", "matrix"],
        json!({
            "version": {"const": 1, "description": "Version of this format."},
            "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "description": "Part of the results folder's name."},
            "description": {"type": "string", "description": "For the file's readers."},
            "models": {"type": "array", "minItems": 1, "description": "Packages to run.", "items": object("A model: a package, or with `kind: graph` any ONNX file.", &["name"], json!({
                "name": {"type": "string", "description": "The name used on the axis `model` and in results."},
                "kind": {"enum": ModelKind::NAMES, "description": "`package`: a language model's package; `graph`: any ONNX file (docs/graphs.md). Default package."},
                "path": {"type": "string", "description": "Of a graph: the ONNX file, relative to this file."},
                "inputs": named("Of a graph: what its inputs are filled with, by name. Others are drawn (floats) or zero.", graph_input()),
                "outputs": named("Of a graph: what its outputs are held against, by name.", graph_output()),
                "items": {"description": "Of a graph: items of a run, a number or the name of a free dimension; `items_per_second` needs it.", "oneOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]},
                "package": {"type": "string", "description": "The package's folder, relative to this file; `{model}`, `{checkpoint}`, `{precision}` and `{flavour}` are filled in for each cell."},
                "checkpoint": {"type": "string", "description": "What `{checkpoint}` becomes in paths, where models of several names come from one checkpoint. Default: the name."},
                "precision": {"type": "string", "description": "Of a package that holds one precision, that one; of a graph, a word of your own."},
                "flavour": flavour,
            }))},
            "backends": {"type": "array", "minItems": 1, "description": "Builds of ONNX Runtime and execution providers.", "items": object("A backend.", &["name", "runtime", "provider"], json!({
                "name": {"type": "string", "description": "The name used on the axis `backend` and in results."},
                "runtime": {"description": "An installed runtime, or a library of your own.", "oneOf": [
                    {"enum": ["cpu", "openvino", "cuda"]},
                    object("A library of your own.", &["path"], json!({"path": {"type": "string"}})),
                ]},
                "provider": {"description": "The execution provider.", "oneOf": [
                    {"enum": ProviderKind::words()},
                    object("A plugin: a library of its own.", &["plugin", "name"], json!({
                        "plugin": {"type": "string", "description": "The shared library, relative to this file."},
                        "name": {"type": "string", "description": "The provider in it, e.g. `OpenVINOExecutionProvider`."},
                    })),
                ]},
                "options": {"type": "object", "description": "Provider options, passed on as they are.", "additionalProperties": {"type": ["string", "number", "boolean"]}},
            }))},
            "matrix": object("The axes; every combination is a cell. A matrix with packages needs `batch`, `prompt_tokens` and `generate_tokens` too.", &["model", "backend"], axes.clone()),
            "categories": categories,
            "accuracy": accuracy(&axes),
            "accuracy_floor": {"type": "string", "pattern": "^\\s*[0-9.eE+-]+\\s+of\\s+reference\\s*$", "description": "The share of its reference's score that each of a cell's tasks must keep, as `0.99 of reference`."},
            "power": power(),
            "prompt": object("Where prompts come from; one of the two. Default: random tokens of seed 0.", &[], json!({
                "random_tokens": object("Uniform token ids.", &[], json!({"seed": {"type": "integer", "minimum": 0}})),
                "text_file": {"type": "string", "description": "A UTF-8 text, tokenized and cut or repeated to length."},
            })),
            "measurement": object("How often and how long.", &[], plan),
            "strict_placement": {"type": "boolean", "description": "A cell whose nodes fall back to another provider is `unsupported`. Default false."},
            "derived_dir": {"type": "string", "description": "The folder, relative to this file, for packages that optimizations derive (packs, edited graphs); they are kept and found again. Default: `derived` in this program's cache folder."},
            "offload_dir": {"type": "string", "description": "The folder, relative to this file, on whose disk the caches of cells with `offload: disk` wait. Default: the folder of the run's results."},
            "exclude": {"type": "array", "description": "Cells to leave out: all axes named must match.", "items": object("A rule.", &[], excluded)},
            "include": {"type": "array", "description": "Cells to add; an axis that is not named takes the matrix's values.", "items": object("A rule.", &[], axes.clone())},
            "overrides": {"type": "array", "description": "Settings for the cells that match; later rules win.", "items": object("A rule.", &["when", "set"], json!({
                "when": object("The cells.", &[], axes),
                "set": object("The settings.", &[], set),
            }))},
        }),
    );
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("ortbench matrix");
    // The committed file's order, whatever order the properties are written in here.
    root.sort_all_objects();
    root
}
