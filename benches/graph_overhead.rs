//! What this program adds to a run of a graph over ONNX Runtime's C API: our runner against a plain loop over
//! `RunWithBinding`, in alternation (A B B A) in one process, on a graph of one node:
//!
//!     cargo bench --bench graph_overhead -- run [--rounds N] [--runs N] [--elements N] [--threads N]
//!
//! Both arms have a session, inputs and outputs of their own, made in the same way. A sample is the mean of many runs;
//! printed are the medians, their ratio and their difference, with 95 % intervals over the pairs of samples.

use std::ffi::CString;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use ort::sys;
use ortbench::cell::{
    Backend, Dimensions, ElementType, Fill, GraphPlan, InputPlan, OutputPlan, ProviderKind, RuntimeRef,
};
use ortbench::engine::{Graph, Inputs};
use ortbench::error::{Error, Result};
use ortbench::package::onnx::{self, ModelProto, build};
use ortbench::runtime::{Runtime, catalog};
use ortbench::stats::{Ratio, Summary};

fn main() -> std::process::ExitCode {
    // cargo adds `--bench`; without arguments there is nothing to measure (`cargo test --benches`).
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some("run") = arguments.first().map(String::as_str) else { return std::process::ExitCode::SUCCESS };
    match measure(&arguments[1..]) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            std::process::ExitCode::FAILURE
        }
    }
}

fn measure(options: &[String]) -> Result<()> {
    let option = |name: &str, default: u64| match options.iter().position(|o| o == name).map(|at| options.get(at + 1)) {
        None => Ok(default),
        Some(text) => text
            .and_then(|text| text.parse().ok())
            .filter(|number| *number > 0)
            .ok_or_else(|| Error::new(format!("`{name}` needs a whole number from 1"))),
    };
    let (rounds, runs) = (option("--rounds", 60)?, option("--runs", 20_000)?);
    let (elements, threads) = (option("--elements", 8)?, option("--threads", 1)? as u32);

    let folder = tempfile::tempdir().map_err(|error| Error::new("cannot make a folder").because(error))?;
    let file = folder.path().join("add.onnx");
    let model = onnx::write(&add());
    std::fs::write(&file, &model).map_err(|error| Error::new("cannot write the graph").because(error))?;

    let cpu = RuntimeRef::Installed("cpu".to_owned());
    let runtime = Runtime::load(&catalog::find(&cpu)?.path)?;
    let mut ours = ours(&runtime, &file, cpu, elements, threads)?;
    let mut raw = Raw::new(&model, elements, threads)?;

    let per_run = |run: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..runs {
            run()?;
        }
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    };
    let (mut of_ours, mut of_raw) = (Vec::new(), Vec::new());
    for round in 0..rounds + 2 {
        let mut samples = [0.0; 2];
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for arm in order {
            samples[arm] = match arm {
                0 => per_run(&mut || black_box(&mut ours).run())?,
                _ => per_run(&mut || black_box(&mut raw).run())?,
            };
        }
        // The first rounds warm caches and clocks.
        if round >= 2 {
            of_ours.push(samples[0]);
            of_raw.push(samples[1]);
        }
    }
    tell(&of_ours, &of_raw, &runtime.version()?, threads)
}

fn tell(ours: &[f64], raw: &[f64], version: &str, threads: u32) -> Result<()> {
    let none = || Error::new("nothing was measured");
    println!("ONNX Runtime {version}, {threads} threads, one Add");
    for (name, samples) in [("this program", ours), ("RunWithBinding", raw)] {
        let summary = Summary::of(samples).ok_or_else(none)?;
        println!("{name:>15}: {:.4} µs ±{:.4} a run", summary.median * 1e6, summary.mad * 1e6);
    }
    let differences: Vec<f64> = ours.iter().zip(raw).map(|(ours, raw)| ours - raw).collect();
    let difference = Summary::of(&differences).ok_or_else(none)?;
    let interval = difference.ci95.map_or(String::new(), |ci| format!(" [{:.4}, {:.4}]", ci.low * 1e6, ci.high * 1e6));
    println!("     difference: {:.4} µs{interval}", difference.median * 1e6);
    let ratio = Ratio::paired(ours, raw).ok_or_else(none)?;
    let interval = ratio.ci95.map_or(String::new(), |ci| format!(" [{:.4}, {:.4}]", ci.low, ci.high));
    println!("          ratio: {:.4}{interval}", ratio.value);
    Ok(())
}

/// `z = x + y`, of any length.
fn add() -> ModelProto {
    let value = |name: &str| build::tensor(name, onnx::data_type::FLOAT, &build::dims("n"));
    build::model(vec![build::node("Add", &["x", "y"], "z")], vec![value("x"), value("y")], vec![value("z")], vec![])
}

fn ours(runtime: &Runtime, file: &Path, library: RuntimeRef, elements: u64, threads: u32) -> Result<Graph> {
    let backend = Backend {
        name: "cpu".to_owned(),
        runtime: library,
        provider: ProviderKind::Cpu,
        plugin: None,
        options: [].into(),
    };
    let input = |name: &str| InputPlan {
        name: name.to_owned(),
        element: ElementType::Float32,
        shape: vec![elements],
        fill: Fill::Random { seed: 0, low: 0.0, high: 1.0 },
    };
    let plan = GraphPlan {
        precision: None,
        dimensions: Dimensions([("n".to_owned(), elements)].into()),
        inputs: vec![input("x"), input("y")],
        outputs: vec![OutputPlan {
            name: "z".to_owned(),
            element: ElementType::Float32,
            shape: Some(vec![elements]),
            rtol: 0.0,
            atol: 0.0,
            expected: None,
        }],
        items: None,
    };
    let mut graph = Graph::load(runtime, file, &backend, threads, &plan)?;
    graph.bind(Inputs::make(&plan)?, &plan, false)?;
    graph.first_run(&plan)?;
    Ok(graph)
}

/// The C API alone. Nothing is released: the process ends with the measurement.
struct Raw {
    session: *mut sys::OrtSession,
    binding: *mut sys::OrtIoBinding,
    _memory: [Vec<f32>; 3],
}

impl Raw {
    fn new(model: &[u8], elements: u64, threads: u32) -> Result<Self> {
        use std::ptr::null_mut;
        let api = ort::api();
        let mut memory = [(); 3].map(|()| vec![0.5_f32; elements as usize]);
        let (mut env, mut options, mut session, mut binding, mut info) =
            (null_mut(), null_mut(), null_mut(), null_mut(), null_mut());
        let level = sys::OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING;
        // SAFETY: every out-pointer is valid and every handle is the one that the call before made; names are C
        // strings; the tensors' memory is as long as their shape says and lives in `Raw`.
        unsafe {
            check((api.CreateEnv)(level, c"bench".as_ptr(), &mut env))?;
            check((api.CreateSessionOptions)(&mut options))?;
            check((api.SetIntraOpNumThreads)(options, threads as i32))?;
            check((api.SetInterOpNumThreads)(options, 1))?;
            check((api.CreateSessionFromArray)(env, model.as_ptr().cast(), model.len(), options, &mut session))?;
            check((api.CreateIoBinding)(session, &mut binding))?;
            check((api.CreateCpuMemoryInfo)(
                sys::OrtAllocatorType::OrtDeviceAllocator,
                sys::OrtMemType::OrtMemTypeDefault,
                &mut info,
            ))?;
            for (place, name) in ["x", "y", "z"].into_iter().enumerate() {
                let (mut value, dims, name) = (null_mut(), [elements as i64], c_name(name));
                check((api.CreateTensorWithDataAsOrtValue)(
                    info,
                    memory[place].as_mut_ptr().cast(),
                    4 * elements as usize,
                    dims.as_ptr(),
                    1,
                    sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                    &mut value,
                ))?;
                let bind = if place < 2 { api.BindInput } else { api.BindOutput };
                check(bind(binding, name.as_ptr(), value))?;
            }
        }
        Ok(Self { session, binding, _memory: memory })
    }

    #[inline]
    fn run(&mut self) -> Result<()> {
        // SAFETY: session and binding belong together and are this value's alone.
        unsafe { check((ort::api().RunWithBinding)(self.session, std::ptr::null(), self.binding)) }
    }
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("no zero byte")
}

/// # Safety
/// The status comes from the call right before and is handed over once.
unsafe fn check(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ort::Error::<()>::result_from_status(status) }.map_err(|error| Error::new(error.to_string()))
}
