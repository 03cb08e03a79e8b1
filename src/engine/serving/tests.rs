//! The loop and the search on machines that are curves: what steps, prompts and memory take with so many sequences.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::controller::{Controller, Objective, Search};
use super::run::{Machine, Pace, Row, run};
use super::{Wave, Waves};
use crate::error::Result;

/// A machine with a clock of its own.
#[derive(Debug, Clone)]
struct Curves {
    /// Seconds of a step: once, and for each sequence.
    step: (f64, f64),
    /// From so many sequences on a step takes that many times as long.
    cliff: Option<(usize, f64)>,
    prompt_seconds: f64,
    prompt_tokens: f64,
    /// Up to how much longer anything may take by chance.
    noise: f64,
    base_bytes: u64,
    sequence_bytes: u64,
    /// For each prompt that runs with others; the arena keeps the most.
    prompt_bytes: u64,
    regroups: bool,
}

impl Default for Curves {
    fn default() -> Self {
        Self {
            step: (0.2, 0.02),
            cliff: None,
            prompt_seconds: 1.0,
            prompt_tokens: 50.0,
            noise: 0.0,
            base_bytes: 3 << 30,
            sequence_bytes: 24 << 20,
            prompt_bytes: 10 << 20,
            regroups: true,
        }
    }
}

struct Fake {
    curves: Curves,
    random: ChaCha8Rng,
    seconds: f64,
    /// Sequences with caches, running or waiting.
    holding: usize,
    most_prompts: usize,
    most_held: u64,
    ended: BTreeSet<usize>,
}

impl Curves {
    fn step_seconds(&self, size: usize) -> f64 {
        let factor = self.cliff.filter(|(from, _)| size >= *from).map_or(1.0, |(_, factor)| factor);
        factor * (self.step.0 + self.step.1 * size as f64)
    }

    fn machine(&self) -> Fake {
        Fake {
            curves: self.clone(),
            random: ChaCha8Rng::seed_from_u64(5),
            seconds: 0.0,
            holding: 0,
            most_prompts: 0,
            most_held: 0,
            ended: BTreeSet::new(),
        }
    }

    fn serve(&self, waves: &Waves, count: usize, generate: usize) -> Outcome {
        let mut machine = self.machine();
        let mut pace = match waves {
            Waves::Together => Pace::Fixed(count),
            Waves::Fixed(size) => Pace::Fixed(*size as usize),
            Waves::Adaptive(objective) => {
                let held = machine.held_bytes().unwrap();
                Pace::Found(Box::new(Controller::new(
                    objective,
                    (generate - 1, self.prompt_tokens),
                    self.sequence_bytes,
                    held,
                )))
            }
        };
        let waves = run(&mut machine, &mut pace, count, generate).unwrap();
        assert_eq!(machine.ended.len(), count, "every sequence ends");
        assert_eq!(machine.holding, 0);
        let tokens: usize = waves.iter().map(|wave| wave.size * wave.steps).sum();
        assert_eq!(tokens, count * (generate - 1), "each sequence takes its steps and no more");
        Outcome { seconds: machine.seconds, most_held: machine.most_held, waves, search: pace.search() }
    }

    /// The least time of any fixed number that keeps to the bounds.
    fn best(&self, count: usize, generate: usize, objective: &Objective) -> Outcome {
        let quiet = Self { noise: 0.0, ..self.clone() };
        let may = |size: &usize| objective.step_seconds.is_none_or(|limit| self.step_seconds(*size) <= limit);
        let outcomes = (1..=count).filter(may).map(|size| quiet.serve(&Waves::Fixed(size as u32), count, generate));
        let outcomes = outcomes.filter(|outcome| objective.memory_bytes.is_none_or(|limit| outcome.most_held <= limit));
        outcomes.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("one is always possible")
    }
}

struct Outcome {
    seconds: f64,
    most_held: u64,
    waves: Vec<Wave>,
    search: Option<Search>,
}

impl Outcome {
    fn search(&self) -> &Search {
        self.search.as_ref().expect("a search")
    }

    fn sizes(&self) -> Vec<usize> {
        self.waves.iter().map(|wave| wave.size).collect()
    }
}

impl Fake {
    fn spend(&mut self, seconds: f64) {
        let more = self.random.random_range(0.0..=1.0) * self.curves.noise;
        self.seconds += seconds * (1.0 + more);
    }
}

impl Machine for Fake {
    /// The sequences.
    type Batch = Vec<usize>;

    fn begin(&mut self, rows: &[Row]) -> Result<Vec<usize>> {
        self.holding += rows.len();
        self.most_prompts = self.most_prompts.max(rows.len());
        self.most_held = self.most_held.max(self.held_bytes()?);
        self.spend(self.curves.prompt_seconds * rows.len() as f64);
        Ok(rows.iter().map(|row| row.sequence).collect())
    }

    fn step(&mut self, batch: &mut Vec<usize>, rows: &[Row]) -> Result<()> {
        assert!(batch.iter().eq(rows.iter().map(|row| &row.sequence)), "rows of this batch");
        self.spend(self.curves.step_seconds(batch.len()));
        Ok(())
    }

    fn regroup(&mut self, from: Vec<Vec<usize>>, into: &[Vec<(usize, usize)>]) -> Result<Vec<Vec<usize>>> {
        assert!(self.curves.regroups);
        let made: Vec<Vec<usize>> =
            into.iter().map(|rows| rows.iter().map(|(batch, row)| from[*batch][*row]).collect()).collect();
        // Who is in no batch any more has ended.
        let gone = from.iter().flatten().filter(|sequence| !made.iter().flatten().any(|other| other == *sequence));
        let gone: Vec<usize> = gone.copied().collect();
        self.holding -= gone.len();
        self.ended.extend(gone);
        Ok(made)
    }

    fn regroups(&self) -> bool {
        self.curves.regroups
    }

    fn end(&mut self, batch: Vec<usize>) {
        self.holding -= batch.len();
        self.ended.extend(batch);
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }

    fn held_bytes(&self) -> Result<u64> {
        let curves = &self.curves;
        Ok(curves.base_bytes
            + curves.sequence_bytes * self.holding as u64
            + curves.prompt_bytes * self.most_prompts as u64)
    }

    fn read_bytes(&self) -> u64 {
        0
    }
}

fn found(objective: Objective) -> Waves {
    Waves::Adaptive(objective)
}

#[test]
fn it_grows_while_a_sequences_share_of_the_time_falls() {
    let outcome = Curves::default().serve(&found(Objective::default()), 64, 32);
    assert_eq!(outcome.search().tried, [1, 4, 16, 64]);
    assert_eq!((outcome.search().chosen, outcome.search().backoffs), (64, 0));
    let best = Curves::default().best(64, 32, &Objective::default());
    assert!(best.seconds / outcome.seconds > 0.95, "{} of {}", best.seconds, outcome.seconds);
}

#[test]
fn where_more_sequences_gain_nothing_it_stays() {
    let curves = Curves { step: (0.0, 0.1), prompt_tokens: 10.0, ..Curves::default() };
    let outcome = curves.serve(&found(Objective::default()), 40, 16);
    assert_eq!(outcome.search().tried, [1, 4]);
    assert!(outcome.sizes().iter().all(|size| *size <= 4), "{:?}", outcome.sizes());
}

#[test]
fn it_goes_back_from_a_cliff_and_looks_between() {
    let curves = Curves { cliff: Some((12, 4.0)), ..Curves::default() };
    let outcome = curves.serve(&found(Objective::default()), 64, 32);
    let search = outcome.search();
    assert_eq!(search.tried, [1, 4, 16, 8, 11, 13], "{search:?}");
    assert_eq!((search.chosen, search.backoffs), (11, 2));
    // Those that were too many go on a few at a time.
    let late: usize = outcome.waves.iter().filter(|wave| wave.size >= 12).map(|wave| wave.steps).sum();
    assert!(late <= 8, "{late} steps beyond the cliff");
}

#[test]
fn it_looks_before_a_cliff_that_more_sequences_won_back() {
    let curves = Curves { step: (0.374, 0.004), cliff: Some((15, 5.4)), prompt_seconds: 0.028, ..Curves::default() };
    let objective = Objective { max: Some(128), ..Objective::default() };
    let outcome = curves.serve(&found(objective.clone()), 2000, 16);
    let search = outcome.search();
    assert_eq!(search.tried, [1, 4, 16, 64, 128, 8, 11, 13], "{search:?}");
    assert_eq!(search.chosen, 13);
    // Where nothing before it is better it stays behind it.
    let curves = Curves { cliff: Some((5, 1.5)), ..curves };
    let outcome = curves.serve(&found(objective), 2000, 16);
    assert_eq!(outcome.search().tried, [1, 4, 16, 64, 128]);
}

#[test]
fn memory_is_never_exceeded_and_counts_as_going_back() {
    let curves = Curves::default();
    for more in [1, 3, 8, 20, 40] {
        let limit = curves.base_bytes
            + more * (curves.sequence_bytes + curves.prompt_bytes) * 20 / 19
            + curves.base_bytes / 19
            + 1000;
        for regroups in [true, false] {
            let curves = Curves { regroups, ..curves.clone() };
            let objective = Objective { memory_bytes: Some(limit), ..Objective::default() };
            let outcome = curves.serve(&found(objective.clone()), 64, 32);
            assert!(outcome.most_held <= limit, "{more}: {} of {limit}", outcome.most_held);
            assert!(outcome.search().backoffs > 0, "{more}: {:?}", outcome.search());
            let most = outcome.sizes().into_iter().max().unwrap() as u64;
            // Prompts of a few at a time leave room for the caches of more.
            assert!(most >= more && (regroups || most == more), "{most} where {more} fit; {regroups}");
        }
    }
}

#[test]
fn steps_keep_to_their_time() {
    let curves = Curves::default();
    for limit in [0.25, 0.3, 0.5, 1.0] {
        let objective = Objective { step_seconds: Some(limit), ..Objective::default() };
        let outcome = curves.serve(&found(objective.clone()), 64, 32);
        let largest = ((limit - 0.2_f64) / 0.02 + 1e-9) as usize;
        let most = outcome.sizes().into_iter().max().unwrap();
        assert!(most <= largest && 4 * most >= 3 * largest, "{most} where {largest} are in time");
        // Nobody waits for another's prompt.
        let joined = outcome.waves.windows(2).any(|pair| pair[0].steps < 31 || pair[1].steps < 31);
        assert!(!joined, "{:?}", outcome.waves);
    }
    // Where not even one is in time, it goes on with one.
    let objective = Objective { step_seconds: Some(0.1), start: 6, ..Objective::default() };
    let outcome = curves.serve(&found(objective), 10, 4);
    assert_eq!(outcome.sizes(), [6, 3, 1]);
}

#[test]
fn bounds_hold_and_one_token_is_enough() {
    let curves = Curves::default();
    let objective = Objective { start: 100, max: Some(5), ..Objective::default() };
    let outcome = curves.serve(&found(objective), 11, 8);
    assert!(outcome.sizes().iter().all(|size| *size <= 5), "{:?}", outcome.sizes());
    for regroups in [true, false] {
        let curves = Curves { regroups, ..Curves::default() };
        for generate in 1..4 {
            curves.serve(&found(Objective::default()), 9, generate);
            curves.serve(&Waves::Fixed(4), 9, generate);
        }
    }
}

#[test]
fn the_end_of_a_queue_is_no_wave_of_one() {
    let curves = Curves { regroups: false, step: (0.2, 0.02), ..Curves::default() };
    let objective = Objective { start: 8, max: Some(8), ..Objective::default() };
    let outcome = curves.serve(&found(objective), 17, 8);
    // The first eight while nothing is known, and nine of which no more than eight may run.
    assert_eq!(outcome.sizes(), [8, 5, 4]);
}

fn curves() -> impl Strategy<Value = Curves> {
    let cliff = prop_oneof![
        3 => Just(None),
        1 => (9..80_usize, 1.5..6.0_f64).prop_map(Some),
    ];
    let step = (0.02..0.4_f64, 0.004..0.1_f64);
    // A token of a prompt takes about what a row of a step takes.
    let prompt = (10.0..200.0_f64, 0.7..1.3_f64, 0..40_u64);
    (step, cliff, prompt, 0.0..0.1_f64, any::<bool>()).prop_map(|(step, cliff, prompt, noise, regroups)| Curves {
        step,
        cliff,
        prompt_seconds: prompt.0 * prompt.1 * step.1,
        prompt_tokens: prompt.0,
        prompt_bytes: prompt.2 << 20,
        noise,
        regroups,
        ..Curves::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A long queue goes on at a size whose share of the time is within a tenth of the best, whatever the curve and
    /// whether batches can be regrouped. The rest of the tenth is noise of the machine.
    #[test]
    fn what_is_found_is_nearly_the_best(curves in curves(), generate in 16..65_usize) {
        let objective = Objective { max: Some(128), ..Objective::default() };
        let outcome = curves.serve(&found(objective), 2000, generate);
        let share = |size: usize| {
            curves.prompt_seconds + (generate - 1) as f64 * curves.step_seconds(size) / size as f64
        };
        let (size, least) = (outcome.search().chosen, (1..129).map(share).fold(f64::INFINITY, f64::min));
        prop_assert!(least / share(size) > 0.85, "size {size}: {} of {least}; {:?}", share(size), outcome.search());
        prop_assert!(outcome.search().tried.len() <= 12, "{:?}", outcome.search());
    }

    /// A short queue, the search among it, where nothing breaks down: smaller numbers cost a few steps each.
    #[test]
    fn a_short_queue_loses_little_to_the_search(curves in curves(), count in 32..129_usize, generate in 32..65_usize) {
        let curves = Curves { cliff: None, regroups: true, ..curves };
        let outcome = curves.serve(&found(Objective::default()), count, generate);
        let share = curves.best(count, generate, &Objective::default()).seconds / outcome.seconds;
        prop_assert!(share > 0.82, "{share}; {:?} {:?}", outcome.search(), outcome.sizes());
    }

    /// Never a byte too many, whatever the queue does, once one sequence fits.
    #[test]
    fn no_bound_of_memory_is_exceeded(
        curves in curves(), count in 1..129_usize, generate in 1..40_usize, room in 0..4000_u64,
    ) {
        let one = curves.base_bytes + curves.sequence_bytes + curves.prompt_bytes;
        let limit = one + (room << 20);
        let objective = Objective { memory_bytes: Some(limit), ..Objective::default() };
        let outcome = curves.serve(&found(objective), count, generate);
        prop_assert!(outcome.most_held <= limit, "{} of {limit}: {:?}", outcome.most_held, outcome.sizes());
    }

    /// A step beyond its time is followed by fewer sequences, down to one.
    #[test]
    fn late_steps_are_few(curves in curves(), count in 32..129_usize, limit in 0.05..2.0_f64) {
        let generate = 16;
        let objective = Objective { step_seconds: Some(limit), ..Objective::default() };
        let quiet = Curves { noise: 0.0, ..curves };
        let outcome = quiet.serve(&found(objective), count, generate);
        let late = outcome.waves.iter().filter(|wave| wave.size > 1 && quiet.step_seconds(wave.size) > limit).count();
        prop_assert!(late <= 1, "{late} waves: {:?} {:?}", outcome.sizes(), outcome.search());
    }
}
