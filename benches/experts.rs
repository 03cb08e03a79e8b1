//! Hits, guesses and time of a pack's experts on demand, one arm after the other, each in a model of its own:
//!
//!     cargo bench --bench experts -- PACK [--budget-mib N] [--guess N,N,…] [--tokens N] [--skip N] [--threads N]
//!         [--repeat N]
//!
//! Tokens are random and the same in every arm. The first ones (`--skip`) fill the cache and do not count. What the
//! arms compute is compared: it must be the same to the last bit.

use std::path::Path;
use std::time::Instant;

use ortbench::cell::{Backend, ProviderKind, Residency, RuntimeRef};
use ortbench::engine::{Decoder, Features, Model, Plan, Prompt};
use ortbench::error::{Error, Result};
use ortbench::package::Package;
use ortbench::package::shards::{ShardIndex, What};
use ortbench::runtime::{Runtime, catalog};

fn main() -> std::process::ExitCode {
    // cargo adds `--bench`; without a pack there is nothing to measure (`cargo test --benches`).
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [pack, options @ ..] = arguments.as_slice() else { return std::process::ExitCode::SUCCESS };
    match measure(pack, options) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            std::process::ExitCode::FAILURE
        }
    }
}

fn measure(pack: &str, options: &[String]) -> Result<()> {
    let option = |name: &str| options.iter().position(|o| o == name).and_then(|at| options.get(at + 1));
    let numbers = |name: &str, default: &str| -> Result<Vec<u64>> {
        let text = option(name).map_or(default, String::as_str);
        let each = text.split(',').map(|one| one.parse());
        each.collect::<std::result::Result<_, _>>().map_err(|_| Error::new(format!("`{name}` is no whole number")))
    };
    let (tokens, skip) = (numbers("--tokens", "64")?[0], numbers("--skip", "16")?[0]);
    let package = Package::open(Path::new(pack))?;
    let index = package.shards()?.ok_or_else(|| Error::new(format!("`{pack}` is no pack")))?;
    let reference = RuntimeRef::Installed("cpu".to_owned());
    let backend = Backend {
        name: "cpu".into(),
        runtime: reference.clone(),
        provider: ProviderKind::Cpu,
        plugin: None,
        options: [].into(),
    };
    let runtime = Runtime::load(&catalog::find(&reference)?.path)?;
    let mut expected = None;
    for _ in 0..numbers("--repeat", "1")?[0] {
        for &guess in &numbers("--guess", "0")? {
            let plan = Plan {
                residency: Some(Residency::Experts),
                budget: Some(numbers("--budget-mib", "4096")?[0] << 20),
                guess: guess as u32,
                tokens: (tokens + skip + 4) as u32,
                ..Plan::with_threads(numbers("--threads", "2")?[0] as u32)
            };
            let mut model = Model::load(&runtime, &package, &backend, &plan)?;
            let last = run(&mut model, &index, guess, tokens, skip)?;
            if expected.get_or_insert_with(|| last.clone()) != &last {
                return Err(Error::new("the arms computed different logits"));
            }
        }
    }
    Ok(())
}

/// Decodes, prints a line, and returns the last logits.
fn run(model: &mut Model, index: &ShardIndex, guess: u64, tokens: u64, skip: u64) -> Result<Vec<f32>> {
    let vocabulary = model.manifest().shape.vocab_size;
    let mut state = 1_u64;
    let mut draw = || {
        // Knuth's MMIX generator; the high bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary) as u32
    };
    let mut decoder = Decoder::new(model, 1, (tokens + skip + 4) as usize)?;
    decoder.prefill(model, &[Prompt::text((0..4).map(|_| draw()).collect())], &Features::default())?;
    for _ in 0..skip {
        decoder.step(model, &[draw()])?;
    }
    let statistics = |model: &Model| model.pager_statistics().unwrap_or_default();
    let (before, start) = (statistics(model), Instant::now());
    for _ in 0..tokens {
        decoder.step(model, &[draw()])?;
    }
    let (seconds, after) = (start.elapsed().as_secs_f64(), statistics(model));
    let experts = index.records.iter().filter(|record| matches!(record.what, What::Expert { .. }));
    let (count, bytes) = experts.fold((0_u64, 0), |(count, bytes), record| (count + 1, bytes + record.bytes));
    let dense: u64 = index.records.iter().map(|record| record.bytes).sum::<u64>() - bytes;
    let cached = (after.held_bytes.saturating_sub(dense)) as f64 / bytes as f64;
    let grown = |of: fn(&ortbench::loader::pager::Statistics) -> u64| (of(&after) - of(&before)) as f64;
    println!(
        "guess {guess}: cached {:.3} of {count} experts, hit rate {:.3}; {:.1} guessed a token, {:.3} of them right; \
         {:.1} MB read a token, {:.1} ms waited, {:.1} ms reading, {:.1} ms a token",
        cached,
        grown(|s| s.experts_hit) / grown(|s| s.experts_wanted),
        grown(|s| s.guessed) / tokens as f64,
        grown(|s| s.guessed_right) / grown(|s| s.guessed).max(1.0),
        grown(|s| s.bytes_read) / tokens as f64 / 1e6,
        grown(|s| s.wait_nanos) / tokens as f64 / 1e6,
        grown(|s| s.read_nanos) / tokens as f64 / 1e6,
        seconds * 1e3 / tokens as f64,
    );
    Ok(decoder.logits().iter().copied().collect())
}
