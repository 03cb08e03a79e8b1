//! Items a second of multiple-choice scoring, batched with shared prompts against one sequence after the other, in
//! alternation (A B B A) in one process:
//!
//!     cargo bench --bench scoring -- PACKAGE TASK.jsonl [--provider cpu|openvino] [--threads N] [--limit N] [--rounds N]
//!
//! The two arms' answers are compared. Log-likelihoods differ in the last digits, and by more where activations are
//! rounded to integers (int8, int4): a last digit decides which one.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use ortbench::cell::{Backend, ProviderKind, RuntimeRef, Scoring};
use ortbench::engine::scoring::{Budget, Group, Likelihood, Scorer};
use ortbench::engine::{Model, Plan, Prompt};
use ortbench::package::Package;
use ortbench::runtime::{Runtime, catalog};
use ortbench::stats::Ratio;

#[derive(serde::Deserialize)]
struct Item {
    context: String,
    choices: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // cargo adds `--bench`; without a package there is nothing to measure (`cargo test --benches`).
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    let [package, task, ..] = arguments.as_slice() else { return Ok(()) };
    let provider: ProviderKind = option("--provider").map_or("cpu", String::as_str).parse()?;
    let threads = option("--threads").map_or(Ok(2), |text| text.parse())?;
    let limit = option("--limit").map_or(Ok(usize::MAX), |text| text.parse())?;
    let rounds = option("--rounds").map_or(Ok(6), |text| text.parse())?;

    let package = Package::open(Path::new(package))?;
    let tokenizer = package.tokenizer()?;
    let groups = std::fs::read_to_string(task)?
        .lines()
        .take(limit)
        .map(|line| group(&tokenizer, &serde_json::from_str(line)?))
        .collect::<Result<Vec<Group>, Box<dyn Error + Send + Sync>>>()?;

    let runtime = RuntimeRef::Installed(provider.name().to_owned());
    let backend = Backend { name: provider.name().to_owned(), runtime: runtime.clone(), provider, options: [].into() };
    let runtime = Runtime::load(&catalog::find(&runtime)?.path)?;
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
    let ratio = Ratio::paired(&rates[0], &rates[1]).ok_or("too few rounds")?;
    println!(
        "{} items, {} continuations: {:.2} items/s against {:.2}; ratio {:.2} {:?}; {others} other answers, \
         largest difference of a log-likelihood {difference:.1e}",
        groups.len(),
        groups.iter().map(|group| group.continuations.len()).sum::<usize>(),
        rates[0].iter().sum::<f64>() / rates[0].len() as f64,
        rates[1].iter().sum::<f64>() / rates[1].len() as f64,
        ratio.value,
        ratio.ci95.map(|interval| [interval.low, interval.high]),
    );
    Ok(())
}

fn likeliest(item: &[Likelihood]) -> Option<usize> {
    (0..item.len()).max_by(|a, b| item[*a].log_likelihood.total_cmp(&item[*b].log_likelihood))
}

fn group(tokenizer: &tokenizers::Tokenizer, item: &Item) -> Result<Group, Box<dyn Error + Send + Sync>> {
    let ids = |text: &str| tokenizer.encode(text, false).map(|found| found.get_ids().to_vec());
    let prompt = ids(&item.context)?;
    let continuations = item
        .choices
        .iter()
        .map(|choice| Ok(ids(&format!("{}{choice}", item.context))?[prompt.len()..].to_vec()))
        .collect::<Result<_, Box<dyn Error + Send + Sync>>>()?;
    Ok(Group { prompt: Prompt::text(prompt), continuations })
}
