//! A worker that needs no model and no library: it measures plausible numbers, or fails in the way that a script asks
//! for, so that the orchestrator is tested against every end a process can have.
//!
//! A script is a list of rules `PATTERN=BEHAVIOUR`, separated by `;`. The first rule whose pattern occurs in
//! `<cell id>/<category>/<process>` (or in `ceilings/<threads>`) applies; without one the fake measures normally.

mod accuracy;

pub use accuracy::{cell_with_accuracy, tasks};

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use crate::cell::{
    Backend, Category, Cell, CellId, Dimensions, ElementType, Fill, Flavour, GraphPlan, InputPlan, MeasurementPlan,
    MemoryPlan, ModelRef, OutputPlan, Precision, PromptSource, ProviderKind, RuntimeRef, Status, Workload,
};
use crate::metrics::{self, FACTS, FactKind, IMPACT_SERIES, SERIES};
use crate::protocol::{FactValue, Job, Message, PROTOCOL_VERSION, Work};

/// What the fake does with a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// `measure`: plausible numbers at once.
    Measure,
    /// `slow:MILLISECONDS`: the same after a while.
    Slow(u64),
    /// `segfault`: ends by SIGSEGV in the middle of the measurement.
    Segfault,
    /// `abort`: writes a complaint to standard error and aborts, as a provider does.
    Abort,
    /// `exit:CODE`: ends early without a word.
    Exit(i32),
    /// `hang`: never ends.
    Hang,
    /// `orphan`: starts a process that would outlive it, writes its id to standard error, and measures.
    Orphan,
    /// `escape`: the same with a process that leaves the worker's group and holds the output open, for half a minute.
    Escape,
    /// `allocate:MEBIBYTES`: touches that much memory, then fails if it is still there.
    Allocate(u64),
    /// `garbage`: lines that are not messages between those that are.
    Garbage,
    /// `foreign`: a message that no version knows.
    Foreign,
    /// `value:SERIES:NUMBER`: that number (`nan` included) as a sample, or as a figure of a task or an item.
    Value(String, String),
    /// `lack:NAME`: everything but that series, task or file; of the ceilings, those before that one.
    Lack(String),
    /// `unknown`: a series (of accuracy, a task's figure) that no table has.
    Unknown,
    /// `package:HASH`: measures, with that hash of the package.
    Package(String),
    /// `below`: measures, with answers below the accuracy floor.
    Below,
    /// `fail:STATUS`: a proper failure.
    Fail(Status),
}

impl FromStr for Behaviour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, argument) = text.split_once(':').unwrap_or((text, ""));
        let number = || argument.parse::<u64>().map_err(|_| format!("`{text}` needs a number"));
        Ok(match name {
            "measure" => Self::Measure,
            "slow" => Self::Slow(number()?),
            "segfault" => Self::Segfault,
            "abort" => Self::Abort,
            "exit" => Self::Exit(argument.parse().map_err(|_| format!("`{text}` needs a number"))?),
            "hang" => Self::Hang,
            "orphan" => Self::Orphan,
            "escape" => Self::Escape,
            "allocate" => Self::Allocate(number()?),
            "garbage" => Self::Garbage,
            "foreign" => Self::Foreign,
            "value" => {
                let (series, value) = argument.split_once(':').ok_or_else(|| format!("`{text}` needs a value"))?;
                Self::Value(series.to_owned(), value.to_owned())
            }
            "lack" => Self::Lack(argument.to_owned()),
            "unknown" => Self::Unknown,
            "package" => Self::Package(argument.to_owned()),
            "below" => Self::Below,
            "fail" => Self::Fail(argument.parse()?),
            _ => return Err(format!("`{text}` is no behaviour of the fake worker")),
        })
    }
}

/// The behaviour that a script has for a job.
///
/// # Errors
/// A rule that does not parse.
pub fn behaviour(script: &str, job: &Job) -> Result<Behaviour, String> {
    let subject = match &job.work {
        Work::Measure { cell, category, process, .. } => format!("{}/{category}/{process}", cell.id),
        Work::Prepare { cell } => format!("prepare/{}", cell.id),
        Work::Ceilings { threads } => format!("ceilings/{threads}"),
        Work::Describe => "describe".to_owned(),
    };
    for rule in script.split(';').filter(|rule| !rule.is_empty()) {
        let (pattern, name) = rule.split_once('=').ok_or_else(|| format!("`{rule}` is not `PATTERN=BEHAVIOUR`"))?;
        if subject.contains(pattern) {
            return name.parse();
        }
    }
    Ok(Behaviour::Measure)
}

/// Does the job in the way asked for.
pub fn run(job: &Job, behaviour: &Behaviour, emit: &mut dyn FnMut(Message)) {
    emit(Message::Hello { protocol: PROTOCOL_VERSION });
    emit(Message::Phase { name: "load".to_owned(), done: None });
    match behaviour {
        Behaviour::Slow(milliseconds) => sleep(Duration::from_millis(*milliseconds)),
        Behaviour::Segfault => {
            emit(Message::Phase { name: "measure".to_owned(), done: Some((1, 5)) });
            die_by(Signal::SEGV);
        }
        Behaviour::Abort => {
            eprintln!("loading the graph");
            eprintln!("terminate called after throwing an instance of 'Ort::Exception'");
            std::process::abort();
        }
        Behaviour::Exit(code) => std::process::exit(*code),
        Behaviour::Hang => loop {
            sleep(Duration::from_secs(3600));
        },
        Behaviour::Orphan => leave_behind(Command::new("sleep").arg("3600")),
        Behaviour::Escape => leave_behind(Command::new("sleep").arg("30").process_group(0)),
        Behaviour::Allocate(mebibytes) => {
            allocate(*mebibytes);
            return emit(failed(Status::Failed, "the memory was granted"));
        }
        Behaviour::Garbage => {
            println!("[W:onnxruntime] a library that prints where it should not");
            println!("{{\"not\": \"a message\"}}");
        }
        Behaviour::Foreign => println!("{{\"type\":\"telepathy\"}}"),
        Behaviour::Fail(status) => return emit(failed(*status, "the fake was told to fail")),
        _ => {}
    }
    match &job.work {
        Work::Measure { cell, category, process, reference, .. } => {
            if let Err(reason) = accuracy::visit_reference(cell, *category, reference.as_deref(), behaviour) {
                return emit(failed(Status::Failed, &reason));
            }
            measure(cell, *category, *process, reference.is_some(), behaviour, emit);
        }
        Work::Ceilings { .. } => {
            for ceiling in metrics::CEILINGS {
                if *behaviour == Behaviour::Lack(ceiling.name.to_owned()) {
                    return emit(failed(Status::Failed, "there is no kernel for it"));
                }
                emit(Message::Fact { name: ceiling.name.to_owned(), value: 1e10.into() });
            }
        }
        Work::Describe | Work::Prepare { .. } => {}
    }
    emit(Message::Done);
}

fn failed(status: Status, reason: &str) -> Message {
    Message::Failed { status, reason: reason.to_owned(), hint: Some("tell it otherwise".to_owned()) }
}

fn measure(
    cell: &Cell,
    category: Category,
    process: u32,
    compared: bool,
    behaviour: &Behaviour,
    emit: &mut dyn FnMut(Message),
) {
    let of_category =
        |name: &str| metrics::find_fact(name).is_some_and(|fact| fact.category.is_none_or(|of| of == category));
    for (name, mut value) in facts(cell).into_iter().filter(|(name, _)| of_category(name)) {
        if !compared && accuracy::compares(&name) {
            continue;
        }
        if let (Behaviour::Below, Some(below)) = (behaviour, accuracy::below_the_floor(&name)) {
            value = below;
        }
        if let (Behaviour::Package(hash), "package_hash") = (behaviour, name.as_str()) {
            value = hash.as_str().into();
        }
        emit(Message::Fact { name, value });
    }
    for (metric, repetition, mut values) in samples(cell, category, process) {
        match behaviour {
            Behaviour::Lack(series) if series == metric => continue,
            Behaviour::Value(series, value) if series == metric => values[0] = value.parse().unwrap_or(f64::NAN),
            _ => {}
        }
        emit(Message::Samples { metric: metric.to_owned(), repetition, values });
    }
    if category == Category::Accuracy {
        return accuracy::measure(cell, compared, behaviour, emit);
    }
    if *behaviour == Behaviour::Unknown {
        emit(Message::Samples { metric: "luck".to_owned(), repetition: 0, values: vec![7.0] });
    }
}

/// Rust's runtime catches a first SIGSEGV to tell a stack overflow from others, and lets the second one through.
fn die_by(signal: Signal) -> ! {
    loop {
        let _ = kill_process(getpid(), signal);
        sleep(Duration::from_millis(1));
    }
}

/// Touches memory page by page, as weights do when they are read.
fn allocate(mebibytes: u64) {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        held.push(vec![1; 1 << 20]);
    }
    let _ = writeln!(std::io::stderr(), "{} MiB held", held.len());
}

/// The process's output is the worker's own, which is what keeps a careless reader waiting.
fn leave_behind(command: &mut Command) {
    match command.spawn() {
        Ok(child) => eprintln!("left behind: {}", child.id()),
        Err(error) => eprintln!("cannot leave a process behind: {error}"),
    }
}

/// A cell that the fake can measure: all three categories, five repetitions, two processes for memory.
pub fn cell(name: &str, backend: &str) -> Cell {
    let provider = if backend == "openvino" { ProviderKind::OpenVino } else { ProviderKind::Cpu };
    Cell {
        id: CellId(format!("{name}-{backend}")),
        model: ModelRef {
            name: name.to_owned(),
            package: PathBuf::from("/models/fake"),
            written: "models/fake".to_owned(),
        },
        backend: Backend {
            name: backend.to_owned(),
            runtime: RuntimeRef::Installed(backend.to_owned()),
            provider,
            plugin: None,
            options: BTreeMap::new(),
        },
        precision: Precision::Int4,
        flavour: Flavour::Fused,
        threads: 2,
        workload: Workload {
            image: None,
            batch: 1,
            prompt_tokens: 32,
            generate_tokens: 8,
            prompt: PromptSource::RandomTokens { seed: 1 },
        },
        categories: vec![Category::Speed, Category::Throughput, Category::Memory],
        measurement: MeasurementPlan {
            warmup: 1,
            repetitions: 5,
            min_seconds: 1.0,
            processes: 2,
            timeout_seconds: 60.0,
            quick: false,
        },
        strict_placement: false,
        memory: MemoryPlan::default(),
        offload_dir: None,
        accuracy: None,
        power: None,
        optimizations: None,
        graph: None,
    }
}

/// The same of a graph with one free dimension.
pub fn graph_cell(name: &str, backend: &str) -> Cell {
    let element = ElementType::Float32;
    let graph = GraphPlan {
        precision: Some("fp32".to_owned()),
        dimensions: Dimensions([("batch".to_owned(), 8)].into()),
        inputs: vec![InputPlan { name: "x".to_owned(), element, shape: vec![8, 3], fill: Fill::Range }],
        outputs: vec![OutputPlan {
            name: "y".to_owned(),
            element,
            shape: Some(vec![8, 2]),
            rtol: 1e-3,
            atol: 1e-5,
            expected: None,
        }],
        items: Some(8),
    };
    Cell { graph: Some(Box::new(graph)), ..cell(name, backend) }
}

/// Facts in which nothing contradicts the samples.
pub fn facts(_cell: &Cell) -> BTreeMap<String, FactValue> {
    let value = |fact: &metrics::Fact| match (fact.name, fact.kind) {
        ("clock_resolution_seconds", _) => 1e-7.into(),
        ("smallest_timing_seconds", _) => 1e-3.into(),
        ("fallback_nodes", _) => 0_u64.into(),
        ("package_weights", _) => "checkpoint".into(),
        ("accuracy_gate", _) => "pass".into(),
        ("power_source", _) => "rapl".into(),
        // The fake's tasks are a choice with four items and a perplexity of one document.
        ("accuracy_items", _) => 5_u64.into(),
        ("flip_items", _) => 4_u64.into(),
        ("answer_flips", _) => 2_u64.into(),
        ("answer_flips_to_right" | "answer_flips_to_wrong", _) => 1_u64.into(),
        ("answers_changed", _) => 2_u64.into(),
        ("perplexity" | "reference_perplexity", _) => 20.5.into(),
        ("perplexity_ratio", _) => 1.0.into(),
        (_, FactKind::Bool) => true.into(),
        (_, FactKind::Integer) => 1_000_000_u64.into(),
        (_, FactKind::Float) => 1e6.into(),
        (_, FactKind::Score) => 0.5.into(),
        (_, FactKind::Text) => "fake".into(),
    };
    FACTS.iter().map(|fact| (fact.name.to_owned(), value(fact))).collect()
}

/// Samples of a category as `(series, repetition, values)`. OpenVINO is a quarter faster than the others, every
/// repetition differs a little, and the same cell gives the same numbers.
pub fn samples(cell: &Cell, category: Category, process: u32) -> Vec<(&'static str, u32, Vec<f64>)> {
    let repetitions = if category == Category::Memory { 1 } else { cell.measurement.repetitions };
    let factor = if cell.backend.provider == ProviderKind::OpenVino { 0.75 } else { 1.0 };
    let mut runs = Vec::new();
    for series in SERIES.iter().chain(IMPACT_SERIES).filter(|series| series.category.is_none_or(|of| of == category)) {
        // The fake's machine has a meter.
        if metrics::is_empty_for(series.name, cell) || metrics::is_estimate(series.name) {
            continue;
        }
        let once_a_process = matches!(series.name, "load_seconds" | "first_run_seconds");
        let centre = match series.unit {
            "s" => 0.010 * factor,
            "bytes" => 150e6,
            "count" => 40.0,
            _ => 100.0 / factor,
        };
        for repetition in 0..if once_a_process { 1 } else { repetitions } {
            let wobble = 1.0 + 0.01 * f64::from((repetition * 7 + process * 3 + series.name.len() as u32) % 5);
            let count = if series.name == "itl_seconds" { cell.workload.generate_tokens - 1 } else { 1 };
            let value = if series.unit == "s" || series.unit.ends_with("/s") {
                centre * wobble
            } else {
                (centre * wobble).round()
            };
            let label = if repetitions == 1 { process } else { repetition };
            runs.push((series.name, label, vec![value; count as usize]));
        }
    }
    runs
}
