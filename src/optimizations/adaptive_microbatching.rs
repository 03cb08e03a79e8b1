//! How many sequences of a queue run together, found while they run, against a fixed number; and how near what is found
//! comes to the best fixed number, which a sweep over them looks for.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::derive::Evidence;
use super::options::{OptionKind, OptionSpec, Options};
use super::setup::{Setup, Subject};
use super::{Examination, Optimization, budget};
use crate::cell::{ImpactMetric, Technique};
use crate::engine::sampling::random_tokens;
use crate::engine::serving::{Objective, Search, Served, Server, Waves};
use crate::engine::{Model, Prompt, Prompter};
use crate::error::{Error, Result};
use crate::package::{Package, Weights};
use crate::probe::limits::MemoryLimits;
use crate::protocol::FactValue;
use crate::stats::{Summary, median};

/// The technique.
pub struct AdaptiveMicrobatching;

/// More sequences than any machine runs together.
const MOST: u32 = 1 << 16;

/// Rounds of the sweep, at most: each serves the queue once a size.
const ROUNDS: u32 = 3;

/// Pairs of the best fixed number and what is found.
const PAIRS: usize = 5;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "start",
        kind: OptionKind::Count(1, MOST),
        default: "1",
        description: "Sequences to begin with.",
    },
    OptionSpec {
        name: "max",
        kind: OptionKind::CountOr("queue", 1, MOST),
        default: "queue",
        description: "The most that may run together.",
    },
    OptionSpec {
        name: "latency_ms",
        kind: OptionKind::NumberOr("none"),
        default: "none",
        description: "The most milliseconds that a decode step may take, which is the time between two tokens of a sequence.",
    },
    OptionSpec {
        name: "baseline",
        kind: OptionKind::Count(1, MOST),
        default: "1",
        description: "The fixed number that it is compared with.",
    },
];

impl Optimization for AdaptiveMicrobatching {
    fn technique(&self) -> Technique {
        Technique::AdaptiveMicrobatching
    }

    fn summary(&self) -> &'static str {
        "The number of sequences that run together grows while that pays, within memory and a bound of latency."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn objective(&self, _options: &Options) -> ImpactMetric {
        ImpactMetric::Throughput
    }

    fn check(&self, subject: &Subject, options: &Options) -> Result<()> {
        let (start, max) = (options.count("start").unwrap_or(1), options.count("max"));
        if max.is_some_and(|max| start > max) {
            return Err(Error::new(format!("it cannot start with {start} sequences, which are more than `max`"))
                .hint("leave `start` out: what is found does not depend on it"));
        }
        budget::expect_sequences(subject)
    }

    fn baseline(&self, setup: &mut Setup, _subject: &Subject, options: &Options) -> Result<()> {
        setup.plan.waves = Waves::Fixed(options.count("baseline").unwrap_or(1));
        Ok(())
    }

    fn apply(&self, setup: &mut Setup, subject: &Subject, options: &Options) -> Result<()> {
        let memory = &subject.cell.memory;
        let bounds = [memory.budget_bytes, memory.limit_bytes, MemoryLimits::now().smallest()];
        setup.plan.waves = Waves::Adaptive(Objective {
            start: options.count("start").unwrap_or(1),
            max: options.count("max"),
            step_seconds: options.number("latency_ms").map(|milliseconds| milliseconds / 1e3),
            memory_bytes: bounds.into_iter().flatten().min(),
        });
        Ok(())
    }

    fn examine(&self, exam: &Examination, _options: &Options) -> Result<Evidence> {
        let Waves::Adaptive(objective) = &exam.setup.plan.waves else { return Ok(Evidence::new()) };
        let (workload, plan) = (&exam.cell.workload, &exam.setup.plan);
        exam.report.phase("load")?;
        let mut model = Model::load(exam.runtime, exam.package, &exam.setup.backend, plan)?;
        let prompts = Prompter::open(exam.package, workload)?.prompts()?;
        exam.report.phase("sweep")?;
        let rounds = exam.cell.measurement.repetitions.clamp(1, ROUNDS);
        let mut progress = |done: usize, of: usize| exam.report.progress("sweep", done as u64, of as u64);
        let queue = Queue { package: exam.package, prompts: &prompts, generate: workload.generate_tokens as usize };
        Ok(sweep(&mut model, &queue, objective, rounds, &mut progress)?.evidence())
    }
}

/// What is served.
pub struct Queue<'a> {
    /// The model's package.
    pub package: &'a Package,
    /// The requests.
    pub prompts: &'a [Prompt],
    /// Tokens after each.
    pub generate: usize,
}

/// What an exhaustive sweep over fixed numbers found, and what was found while running.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// The best fixed number.
    pub best: u32,
    /// Each number, and tokens a second, the median over rounds.
    pub rates: Vec<(u32, f64)>,
    /// Of each pair, tokens a second with what is found while running, the search included, ÷ with the best fixed number.
    pub shares: Vec<f64>,
    /// The last search.
    pub search: Search,
    /// The longest step of the searches, as a mean over a stretch of the same sequences.
    pub step_seconds: f64,
}

/// Serves the queue once a round with each fixed number that the objective allows (powers of two, and all), and then in
/// pairs with the best of them and with what is found while running: the machine may be slower or faster meanwhile.
///
/// # Errors
/// A failed run.
pub fn sweep(
    model: &mut Model,
    queue: &Queue,
    objective: &Objective,
    rounds: u32,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Sweep> {
    let adaptive = Waves::Adaptive(objective.clone());
    // What a process does once is no number's; and a number for which memory will not do would end the process.
    serve(model, queue, &Waves::Fixed(1), 1, 3)?;
    let all = queue.prompts.len();
    let search = serve(model, queue, &adaptive, all, queue.generate)?.search.unwrap_or_default();
    let sizes = sizes(all as u32, objective, search.most_that_fit);
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); sizes.len()];
    let mut in_time = vec![true; sizes.len()];
    let total = rounds as usize * sizes.len() + 2 * PAIRS;
    let mut done = 0;
    for round in 0..rounds {
        // Up in one round, down in the next, so that a drift favours none.
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            progress(done, total)?;
            done += 1;
            let served = serve(model, queue, &Waves::Fixed(sizes[place]), all, queue.generate)?;
            rates[place].push(served.tokens_per_second());
            in_time[place] &= objective.step_seconds.is_none_or(|limit| longest_step(&served) <= limit);
        }
    }
    let rates: Vec<f64> = rates.iter().map(|rates| median(rates)).collect();
    // Where even one is late, one it is.
    let may = (0..sizes.len()).filter(|place| in_time[*place]);
    let best = may.max_by(|a, b| rates[*a].total_cmp(&rates[*b])).unwrap_or(0);
    let mut sweep = Sweep {
        best: sizes[best],
        rates: sizes.iter().copied().zip(rates).collect(),
        shares: Vec::new(),
        search,
        step_seconds: 0.0,
    };
    for pair in 0..PAIRS {
        let mut rates = [0.0; 2];
        // A B, B A, A B, …
        for arm in [pair % 2, 1 - pair % 2] {
            progress(done, total)?;
            done += 1;
            let fixed = Waves::Fixed(sweep.best);
            let served = serve(model, queue, if arm == 0 { &adaptive } else { &fixed }, all, queue.generate)?;
            rates[arm] = served.tokens_per_second();
            if arm == 0 {
                sweep.step_seconds = sweep.step_seconds.max(longest_step(&served));
                sweep.search = served.search.unwrap_or_default();
            }
        }
        sweep.shares.push(rates[0] / rates[1]);
    }
    Ok(sweep)
}

/// Powers of two, and all.
fn sizes(count: u32, objective: &Objective, most_that_fit: Option<usize>) -> Vec<u32> {
    let powers = (0..32).map(|power| 1 << power).take_while(|size| *size < count);
    let fits = |size: &u32| most_that_fit.is_none_or(|most| *size == 1 || *size as usize <= most);
    let allowed = |size: &u32| objective.max.is_none_or(|max| *size <= max.max(1));
    powers.chain([count]).filter(fits).filter(allowed).collect()
}

impl Sweep {
    /// Figures for a row.
    pub fn evidence(&self) -> Evidence {
        let rates: Vec<String> = self.rates.iter().map(|(size, rate)| format!("{size}: {rate:.2}")).collect();
        let tried: Vec<String> = self.search.tried.iter().map(ToString::to_string).collect();
        let share = Summary::of(&self.shares);
        let mut evidence = Evidence::from([
            ("batch_chosen".to_owned(), FactValue::Integer(self.search.chosen as u64)),
            ("batch_best_fixed".to_owned(), FactValue::Integer(self.best.into())),
            ("batch_sizes_tried".to_owned(), FactValue::Text(tried.join(", "))),
            ("batch_fixed_tokens_per_second".to_owned(), FactValue::Text(rates.join(", "))),
            ("batch_backoffs".to_owned(), FactValue::Integer(self.search.backoffs.into())),
            ("batch_longest_step_seconds".to_owned(), FactValue::Float(self.step_seconds)),
        ]);
        if let Some(share) = share {
            for (name, value) in [("", share.median), ("_low", share.min), ("_high", share.max)] {
                evidence.insert(format!("batch_adaptive_share_of_best{name}"), FactValue::Float(value));
            }
        }
        evidence
    }
}

/// Serves the first of a queue on a server that has seen nothing yet. Random weights are fed drawn tokens, the same for every number:
/// what they choose goes round in circles.
fn serve(model: &mut Model, queue: &Queue, waves: &Waves, count: usize, generate: usize) -> Result<Served> {
    let manifest = &queue.package.manifest;
    let (vocab, special) = (manifest.shape.vocab_size as u32, queue.package.special_tokens());
    let random = manifest.model.weights == Weights::Random;
    let mut feed = |sequence: usize, index: usize, chosen: u32| match random {
        true => {
            let mut random = ChaCha8Rng::seed_from_u64(index as u64);
            random.set_stream(sequence as u64);
            random_tokens(&mut random, 1, vocab, &special)[0]
        }
        false => chosen,
    };
    Server::new(waves).serve(model, &queue.prompts[..count], generate, &mut feed)
}

fn longest_step(served: &Served) -> f64 {
    let steps = served.waves.iter().filter(|wave| wave.steps > 0);
    steps.map(|wave| wave.decode_seconds / wave.steps as f64).fold(0.0, f64::max)
}
