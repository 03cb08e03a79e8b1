//! A package against the same with operators of this program in it, in alternation (A B B A) in one process:
//!
//!     cargo bench --bench fusion -- PACKAGE [--operators NAMES] [--against PACKAGE] [--rounds N] [--steps N]
//!         [--prompt N] [--threads N] [--clock wall|cpu]
//!
//! A round is a prefill of `--prompt` tokens, then `--steps` steps, by each arm. `--against` takes another package as the
//! baseline. Ratios are the baseline's time ÷ the other's, of pairs, with a 95 % interval. `--clock cpu` takes the time
//! that the calling thread computed, which with one thread is all of the work, whatever else the machine does.

use std::path::Path;

use ortbench::cell::{Backend, ProviderKind, RuntimeRef};
use ortbench::engine::{Decoder, Features, Model, Plan, Prompt};
use ortbench::error::{Error, Result};
use ortbench::optimizations::{Derivation, KernelFusion, Workshop};
use ortbench::package::Package;
use ortbench::protocol::Reporter;
use ortbench::runtime::{Runtime, catalog};
use ortbench::stats::{Ratio, Summary};
use rustix::time::{ClockId, clock_gettime};

fn main() -> std::process::ExitCode {
    // cargo adds `--bench`; without a package there is nothing to measure (`cargo test --benches`).
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [package, options @ ..] = arguments.as_slice() else { return std::process::ExitCode::SUCCESS };
    match measure(package, options) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            std::process::ExitCode::FAILURE
        }
    }
}

/// A loaded model and what it took.
struct Arm {
    model: Model,
    decoder: Decoder,
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

fn measure(package: &str, options: &[String]) -> Result<()> {
    let option = |name: &str| options.iter().position(|o| o == name).and_then(|at| options.get(at + 1));
    let number = |name: &str, default: usize| match option(name).map(|text| text.parse()) {
        None => Ok(default),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(Error::new(format!("`{name}` is not a whole number"))),
    };
    let (rounds, steps, prompt) = (number("--rounds", 20)?, number("--steps", 8)?, number("--prompt", 128)?);
    let threads = number("--threads", 2)? as u32;
    let clock = match option("--clock").map(String::as_str) {
        Some("cpu") if threads == 1 => ClockId::ThreadCPUTime,
        Some("cpu") => return Err(Error::new("`--clock cpu` sees one thread only").hint("add `--threads 1`")),
        _ => ClockId::Monotonic,
    };
    let now = || {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
    };
    let package = Package::open(Path::new(package))?;
    let runtime = RuntimeRef::Installed("cpu".to_owned());
    let backend = Backend {
        name: "cpu".into(),
        runtime: runtime.clone(),
        provider: ProviderKind::Cpu,
        plugin: None,
        options: [].into(),
    };
    let runtime = Runtime::load(&catalog::find(&runtime)?.path)?;
    // On the disk of the build, where data may be linked.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| Error::new(error.to_string()))?;
    let names = option("--operators").map_or("all", String::as_str);
    let report = Reporter::new(std::io::stderr());
    let workshop = Workshop { runtime: &runtime, backend: &backend, threads, report: &report };
    let to = folder.path().join("fused");
    let evidence = KernelFusion::derivation(names)?.derive(&package, &to, &workshop)?;
    println!("{evidence:?}");
    let baseline = option("--against").map(|path| Package::open(Path::new(path))).transpose()?.unwrap_or(package);
    let arm = |package: &Package| {
        let model = Model::load(&runtime, package, &backend, &Plan::with_threads(threads))?;
        let decoder = Decoder::new(&model, 1, prompt + steps)?;
        Ok::<_, Error>(Arm { model, decoder, prefill: Vec::new(), decode: Vec::new() })
    };
    let mut arms = [arm(&baseline)?, arm(&Package::open(&to)?)?];
    // The first round warms both up.
    for round in 0..=rounds {
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        let ids = (0..prompt).map(|place| ((place * 37 + round) % 200 + 5) as u32).collect();
        let prompts = [Prompt::text(ids)];
        for place in order {
            let start = now();
            let Arm { model, decoder, .. } = &mut arms[place];
            decoder.prefill(model, &prompts, &Features::default())?;
            let seconds = now() - start;
            if round > 0 {
                arms[place].prefill.push(seconds);
            }
        }
        // One step by each in turn, so that whatever else the machine does falls on both.
        for step in 0..steps {
            for place in if step % 2 == 0 { order } else { [order[1], order[0]] } {
                let start = now();
                let Arm { model, decoder, .. } = &mut arms[place];
                decoder.step(model, &[7])?;
                let seconds = now() - start;
                if round > 0 {
                    arms[place].decode.push(seconds);
                }
            }
        }
    }
    let [baseline, fused] = &arms;
    for (what, before, after) in
        [("prefill", &baseline.prefill, &fused.prefill), ("decode", &baseline.decode, &fused.decode)]
    {
        let median = |times: &[f64]| Summary::of(times).map_or(f64::NAN, |summary| 1e3 * summary.median);
        let Some(ratio) = Ratio::paired(before, after) else { continue };
        let interval = ratio.ci95.map_or(String::new(), |ci| format!(" [{:.4}, {:.4}]", ci.low, ci.high));
        println!("{what}: {:.3} ms, fused {:.3} ms: {:.4}{interval}", median(before), median(after), ratio.value);
    }
    Ok(())
}
