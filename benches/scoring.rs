//! Items a second of multiple-choice scoring, batched with shared prompts against one sequence after the other, in
//! alternation (A B B A) in one process:
//!
//!     cargo bench --bench scoring -- PACKAGE TASK.yaml|SHAPE [--data FILE] [--provider cpu|openvino] [--threads N]
//!         [--items N] [--rounds N]
//!
//! A SHAPE is items of random tokens as a public set has them: `hellaswag` (contexts of about 90 tokens, four endings of
//! about 25), `mmlu` (120 tokens, four letters), `mmlu-5-shot` (the same behind 600 tokens of examples).
//!
//! The two arms' answers are compared. Log-likelihoods differ in the last digits, and by more where activations are
//! rounded to integers (int8, int4): a last digit decides which one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ortbench::cell::{Backend, ProviderKind, RuntimeRef, Scoring, TaskRef, TaskSource};
use ortbench::engine::scoring::{Budget, Group, Likelihood, Scorer};
use ortbench::engine::{Model, Plan, Prompt};
use ortbench::error::{Error, Result};
use ortbench::package::Package;
use ortbench::runtime::{Runtime, catalog};
use ortbench::stats::Ratio;
use ortbench::tasks::{Ask, Encoder, TaskSet};

fn main() -> std::process::ExitCode {
    // cargo adds `--bench`; without a package there is nothing to measure (`cargo test --benches`).
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [package, work, options @ ..] = arguments.as_slice() else { return std::process::ExitCode::SUCCESS };
    match measure(package, work, options) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            std::process::ExitCode::FAILURE
        }
    }
}

fn measure(package: &str, work: &str, options: &[String]) -> Result<()> {
    let option = |name: &str| options.iter().position(|o| o == name).and_then(|at| options.get(at + 1));
    let number = |name: &str, default: usize| match option(name).map(|text| text.parse()) {
        None => Ok(default),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(Error::new(format!("`{name}` is not a whole number"))),
    };
    let provider: ProviderKind = option("--provider").map_or("cpu", String::as_str).parse().map_err(Error::new)?;
    let (items, rounds) = (number("--items", 100)?, number("--rounds", 6)?);

    let package = Package::open(Path::new(package))?;
    let data = option("--data").map(PathBuf::from);
    let groups = match work.ends_with(".yaml") {
        true => of_task(&package, work, data, items)?,
        false => of_shape(&package, work, items)?,
    };
    let runtime = RuntimeRef::Installed(provider.name().to_owned());
    let backend =
        Backend { name: provider.name().into(), runtime: runtime.clone(), provider, plugin: None, options: [].into() };
    let runtime = Runtime::load(&catalog::find(&runtime)?.path)?;
    let threads = number("--threads", 2)? as u32;
    let mut model = Model::load(&runtime, &package, &backend, &Plan::with_threads(threads))?;

    let mut rates = [Vec::new(), Vec::new()];
    let mut found: [Vec<Vec<Likelihood>>; 2] = [Vec::new(), Vec::new()];
    // The first round warms both arms up.
    for round in 0..=rounds {
        let mut arms = [(0, Scoring::Batched), (1, Scoring::OneByOne)];
        if round % 2 == 1 {
            arms.reverse();
        }
        for (arm, scoring) in arms {
            let start = Instant::now();
            found[arm] = Scorer::new(&mut model, scoring, Budget::default()).score(&groups, &mut |_| Ok(()))?;
            if round > 0 {
                rates[arm].push(groups.len() as f64 / start.elapsed().as_secs_f64());
            }
        }
    }
    let pairs = found[0].iter().flatten().zip(found[1].iter().flatten());
    let difference = pairs.map(|(a, b)| (a.log_likelihood - b.log_likelihood).abs()).fold(0.0, f64::max);
    let answers = |arm: &[Vec<Likelihood>]| arm.iter().map(|item| likeliest(item)).collect::<Vec<_>>();
    let others = answers(&found[0]).iter().zip(answers(&found[1])).filter(|(a, b)| **a != *b).count();
    let ratio = Ratio::paired(&rates[0], &rates[1]).ok_or_else(|| Error::new("too few rounds"))?;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let interval = ratio.ci95.map_or(String::new(), |ci| format!(" [{:.2}, {:.2}]", ci.low, ci.high));
    println!(
        "{} {} {} on {provider}, {}: {} items, {:.2} against {:.2} items/s, ratio {:.2}{interval}; {others} other answers, largest \
         difference of a log-likelihood {difference:.1e}",
        package.manifest.model.id,
        package.manifest.precision.name,
        package.manifest.flavour,
        Path::new(work).file_stem().unwrap_or_default().display(),
        groups.len(),
        mean(&rates[0]),
        mean(&rates[1]),
        ratio.value,
    );
    Ok(())
}

fn of_task(package: &Package, path: &str, data: Option<PathBuf>, items: usize) -> Result<Vec<Group>> {
    let task = TaskRef { data, limit: Some(items as u32), ..TaskRef::new("task", TaskSource::File(path.into())) };
    let set = TaskSet::load(&task, 0, || package.chat_template())?;
    let encoder = Encoder::open(package, set.max_length)?;
    set.items
        .iter()
        .map(|item| {
            let Ask::Choice { pairs, .. } = &item.ask else {
                return Err(Error::new("the benchmark takes tasks of the kind `choice`"));
            };
            let mut group = Group::default();
            for (context, continuation) in pairs {
                let request = encoder.pair(context, continuation)?;
                group.prompt = Prompt::text(request.context);
                group.continuations.push(request.continuation);
            }
            Ok(group)
        })
        .collect()
}

fn of_shape(package: &Package, shape: &str, items: usize) -> Result<Vec<Group>> {
    let (examples, context, ending) = match shape {
        "hellaswag" => (0, 90, 25),
        "mmlu" => (0, 120, 1),
        "mmlu-5-shot" => (600, 120, 1),
        _ => return Err(Error::new(format!("`{shape}` is no task and none of hellaswag, mmlu, mmlu-5-shot"))),
    };
    let vocab = package.manifest.shape.vocab_size as u32;
    let mut state = 1_u32;
    let mut draw = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    // Lengths vary by a third to either side, single tokens do not.
    let mut length = |mean: u32| if mean < 3 { mean } else { mean - mean / 3 + draw(2 * mean / 3 + 1) };
    let lengths: Vec<(u32, [u32; 4])> = (0..items).map(|_| (length(context), [0; 4].map(|_| length(ending)))).collect();
    let mut tokens = |count: u32| (0..count).map(|_| draw(vocab)).collect::<Vec<u32>>();
    let before = tokens(examples);
    let group = |(own, endings): (u32, [u32; 4])| Group {
        prompt: Prompt::text([before.clone(), tokens(own)].concat()),
        continuations: endings.map(&mut tokens).to_vec(),
    };
    Ok(lengths.into_iter().map(group).collect())
}

fn likeliest(item: &[Likelihood]) -> Option<usize> {
    (0..item.len()).max_by(|a, b| item[*a].log_likelihood.total_cmp(&item[*b].log_likelihood))
}
