//! What quantized caches cost and save, on packages of any size, one process a run:
//!
//!     cargo bench --bench compression -- derive PACKAGE FOLDER [--cache int8|int4] [--scales channel|tensor] [--tokens N]
//!     cargo bench --bench compression -- run PACKAGE [--batch N] [--prompt N] [--capacity N] [--steps N] [--threads N]
//!         [--tails N] [--write FILE | --against FILE] [--offload FOLDER] [--codec WORD] [--micro-batch N]
//!
//! `run` prefills random prompts and decodes; it prints times, and the most resident memory with a cache of that capacity,
//! all of it touched. `--write` keeps the logits of the last `--tails` tokens of a prompt and of all steps, and `--against`
//! compares with what was kept: the mean divergence, and the share of equal best tokens.

use std::fs;
use std::path::Path;
use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use ortbench::cell::{Backend, ProviderKind, RuntimeRef};
use ortbench::engine::sampling::random_tokens;
use ortbench::engine::{Decoder, Features, Model, Plan, Prompt};
use ortbench::error::{Context, Error, Result};
use ortbench::loader::spill::SpillCodec;
use ortbench::optimizations::tensor_compression::{Bits, CacheStep};
use ortbench::optimizations::{Derivation, Workshop};
use ortbench::package::Package;
use ortbench::protocol::Reporter;
use ortbench::runtime::{Runtime, catalog};

fn main() -> std::process::ExitCode {
    // cargo adds `--bench`; without a package there is nothing to measure (`cargo test --benches`).
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["derive", package, folder, ..] => derive(package, folder, &arguments),
        ["run", package, ..] => run(package, &arguments),
        _ => Ok(()),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            std::process::ExitCode::FAILURE
        }
    }
}

fn text<'a>(options: &'a [String], name: &str, default: &'a str) -> &'a str {
    let at = options.iter().position(|option| option == name).and_then(|at| options.get(at + 1));
    at.map_or(default, String::as_str)
}

fn number(options: &[String], name: &str, default: &str) -> Result<usize> {
    text(options, name, default).parse().map_err(|_| Error::new(format!("`{name}` is not a whole number")))
}

fn cpu() -> Backend {
    let runtime = RuntimeRef::Installed("cpu".to_owned());
    Backend { name: "cpu".to_owned(), runtime, provider: ProviderKind::Cpu, plugin: None, options: [].into() }
}

fn derive(package: &str, folder: &str, options: &[String]) -> Result<()> {
    let bits = if text(options, "--cache", "int8") == "int4" { Bits::Four } else { Bits::Eight };
    let per_channel = text(options, "--scales", "channel") == "channel";
    let step = CacheStep { bits, per_channel, tokens: number(options, "--tokens", "512")? as u32 };
    let (package, backend) = (Package::open(Path::new(package))?, cpu());
    let runtime = Runtime::load(&catalog::find(&backend.runtime)?.path)?;
    let report = Reporter::new(std::io::sink());
    let threads = number(options, "--threads", "2")? as u32;
    let start = Instant::now();
    let workshop = Workshop { runtime: &runtime, backend: &backend, threads, report: &report };
    let evidence = step.derive(&package, Path::new(folder), &workshop)?;
    println!("{} in {:.1} s: {evidence:?}", step.describe(), start.elapsed().as_secs_f64());
    Ok(())
}

fn run(package: &str, options: &[String]) -> Result<()> {
    let [batch, prompt, steps] =
        [("--batch", "1"), ("--prompt", "32"), ("--steps", "16")].map(|(name, default)| number(options, name, default));
    let (batch, prompt, steps) = (batch?, prompt?, steps?);
    let capacity = number(options, "--capacity", "0")?.max(prompt + steps);
    let (package, backend) = (Package::open(Path::new(package))?, cpu());
    let offload = text(options, "--offload", "");
    let micro_batch = number(options, "--micro-batch", "0")? as u32;
    let plan = Plan {
        sequences: batch as u32,
        tokens: capacity as u32,
        offload: (!offload.is_empty()).then(|| offload.into()),
        offload_codec: text(options, "--codec", "none").parse::<SpillCodec>().map_err(Error::new)?,
        micro_batch: (micro_batch > 0).then_some(micro_batch),
        ..Plan::with_threads(number(options, "--threads", "2")? as u32)
    };
    let runtime = Runtime::load_sharing(&catalog::find(&backend.runtime)?.path, plan.shared_threads())?;
    let start = Instant::now();
    let mut model = Model::load(&runtime, &package, &backend, &plan)?;
    let loaded = start.elapsed().as_secs_f64();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let (vocab, exclude) = (package.manifest.shape.vocab_size as u32, package.special_tokens());
    let rows: Vec<Vec<u32>> = (0..batch).map(|_| random_tokens(&mut random, prompt + steps, vocab, &exclude)).collect();
    let prompts: Vec<Prompt> = rows.iter().map(|row| Prompt::text(row[..prompt].to_vec())).collect();
    let mut decoder = Decoder::new(&model, batch, capacity)?;
    decoder.touch_cache();
    let tails = number(options, "--tails", "1")?.clamp(1, prompt);
    let start = Instant::now();
    decoder.prefill_wanting(&mut model, &prompts, &Features::default(), &vec![tails; batch])?;
    let prefill = start.elapsed().as_secs_f64();
    let (mut logits, mut scratch) = (Vec::new(), Vec::new());
    for tail in 0..tails {
        logits.extend_from_slice(decoder.tail_logits(0, tail, &mut scratch));
    }
    let mut gaps = Vec::with_capacity(steps);
    for step in 0..steps {
        let tokens: Vec<u32> = rows.iter().map(|row| row[prompt + step]).collect();
        let start = Instant::now();
        decoder.step(&mut model, &tokens)?;
        gaps.push(start.elapsed().as_secs_f64());
        logits.extend_from_slice(decoder.tail_logits(0, 0, &mut scratch));
    }
    gaps.sort_by(f64::total_cmp);
    let step = gaps.get(gaps.len() / 2).copied().unwrap_or(f64::NAN);
    println!(
        "batch {batch}, prompt {prompt}, capacity {capacity}: load {loaded:.1} s, prefill {prefill:.2} s, step {:.1} ms \
         (median of {steps}), {:.2} tokens/s, cache {} bytes/token, {:.0} MB in all, {}",
        step * 1e3,
        batch as f64 / step,
        package.manifest.cache.bytes_per_token,
        model.cache_bytes(batch, capacity) as f64 / 1e6,
        memory()?,
    );
    if let Some(traffic) = decoder.traffic() {
        println!("{traffic:?}, ratio {:.3}", traffic.read_plain as f64 / traffic.read.max(1) as f64);
    }
    let (to, from) = (text(options, "--write", ""), text(options, "--against", ""));
    if !to.is_empty() {
        let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(to, bytes).context("cannot keep the logits")?;
    }
    if !from.is_empty() {
        let bytes = fs::read(from).context("cannot read what was kept")?;
        let kept: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        compare(&kept, &logits, vocab as usize);
    }
    Ok(())
}

/// The most resident memory, and what of it is no file.
fn memory() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read the process's memory")?;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().replace('\t', " ");
    Ok(format!("{}, {}", line("VmHWM"), line("RssAnon")))
}

fn compare(expected: &[f32], found: &[f32], vocab: usize) {
    let shares = |row: &[f32]| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|value| f64::from(value - most).exp()).sum();
        row.iter().map(|value| f64::from(value - most) - sum.ln()).collect::<Vec<f64>>()
    };
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id);
    let (mut divergence, mut same, mut rows) = (0.0, 0, 0);
    for (a, b) in expected.chunks_exact(vocab).zip(found.chunks_exact(vocab)) {
        let (p, q) = (shares(a), shares(b));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        same += usize::from(best(a) == best(b));
        rows += 1;
    }
    println!("{rows} rows: mean divergence {:.6}, same best token {same}", divergence / f64::from(rows.max(1)));
}
