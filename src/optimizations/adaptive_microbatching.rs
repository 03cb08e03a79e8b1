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
use crate::stats::Summary;

/// The technique.
pub struct AdaptiveMicrobatching;

/// More sequences than any machine runs together.
const MOST: u32 = 1 << 16;

/// Rounds of the sweep, at most: each serves the queue once a size.
const ROUNDS: u32 = 3;

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
    /// The same of the number that is found while running, the search included.
    pub adaptive_rate: f64,
    /// Of each round, what was found against the best fixed number.
    pub shares: Vec<f64>,
    /// The last search.
    pub search: Search,
    /// The longest step that the last search's sequences took, as a mean over a stretch.
    pub step_seconds: f64,
}

/// Serves the queue once a round with each fixed number that the objective allows (powers of two, and all), and with
/// what is found while running before the first one and after the middle one in turn.
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
    // What a process does once is no number's.
    serve(model, queue, &Waves::Fixed(1), &queue.prompts[..1], 3)?;
    let adaptive = Waves::Adaptive(objective.clone());
    let count = queue.prompts.len() as u32;
    let mut sizes: Vec<u32> = (0..32).map(|power| 1 << power).take_while(|size| *size < count).chain([count]).collect();
    sizes.retain(|size| objective.max.is_none_or(|max| *size <= max.max(1)));
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); sizes.len()];
    let (mut found, mut last) = (Vec::new(), None);
    let mut late = vec![false; sizes.len()];
    for round in 0..rounds {
        let served = serve(model, queue, &adaptive, queue.prompts, queue.generate)?;
        let search = served.search.clone().unwrap_or_default();
        // A number for which memory will not do would end the process.
        let fits = |size: u32| search.most_that_fit.is_none_or(|most| size == 1 || size as usize <= most);
        found.push(served.tokens_per_second());
        last = Some((search.clone(), longest_step(&served)));
        // Up in one round, down in the next, so that a drift favours none.
        let mut order: Vec<usize> = (0..sizes.len()).filter(|place| fits(sizes[*place])).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (number, place) in order.iter().enumerate() {
            progress(round as usize * (sizes.len() + 1) + number + 1, rounds as usize * (sizes.len() + 1))?;
            let served = serve(model, queue, &Waves::Fixed(sizes[*place]), queue.prompts, queue.generate)?;
            rates[*place].push(served.tokens_per_second());
            let step = longest_step(&served);
            late[*place] |= objective.step_seconds.is_some_and(|limit| step > limit);
        }
    }
    let (search, step_seconds) = last.unwrap_or_default();
    let may: Vec<usize> = (0..sizes.len()).filter(|place| !rates[*place].is_empty()).collect();
    let in_time: Vec<usize> = may.iter().copied().filter(|place| !late[*place]).collect();
    // Where even one is late, one it is.
    let may = if in_time.is_empty() { may[..1].to_vec() } else { in_time };
    let median = |samples: &[f64]| Summary::of(samples).map_or(f64::NAN, |summary| summary.median);
    let best = may.iter().copied().max_by(|a, b| median(&rates[*a]).total_cmp(&median(&rates[*b]))).unwrap_or(0);
    let shares = found.iter().zip(&rates[best]).map(|(found, best)| found / best).collect();
    let measured = sizes.iter().zip(&rates).filter(|(_, rates)| !rates.is_empty());
    Ok(Sweep {
        best: sizes[best],
        rates: measured.map(|(size, rates)| (*size, median(rates))).collect(),
        adaptive_rate: median(&found),
        shares,
        search,
        step_seconds,
    })
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

/// Serves a queue on a server that has seen nothing yet. Random weights are fed drawn tokens, the same for every number:
/// what they choose goes round in circles.
fn serve(model: &mut Model, queue: &Queue, waves: &Waves, prompts: &[Prompt], generate: usize) -> Result<Served> {
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
    Server::new(waves).serve(model, prompts, generate, &mut feed)
}

fn longest_step(served: &Served) -> f64 {
    let steps = served.waves.iter().filter(|wave| wave.steps > 0);
    steps.map(|wave| wave.decode_seconds / wave.steps as f64).fold(0.0, f64::max)
}
