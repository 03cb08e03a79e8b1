//! How many sequences go through the model together, found while they do.
//!
//! A state machine without a clock: it is told what steps and prompts took and what the process holds, and says how many
//! sequences may begin. It grows by a factor while a sequence's share of the time falls, takes back what made it rise,
//! looks between the two, and then stays. Memory is never tried out: what more sequences will take is known of their
//! caches, and extrapolated for the rest from what the ones before took.

use std::collections::BTreeMap;

/// What is wanted of a queue beside its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Sequences to begin with.
    pub start: u32,
    /// The most; `None` for as many as there are.
    pub max: Option<u32>,
    /// The most that a decode step may take, which is the time between two tokens of a sequence.
    pub step_seconds: Option<f64>,
    /// Bytes that the process may hold.
    pub memory_bytes: Option<u64>,
}

impl Default for Objective {
    fn default() -> Self {
        Self { start: 1, max: None, step_seconds: None, memory_bytes: None }
    }
}

/// By how much the number of sequences grows at once, …
const GROWTH: usize = 4;

/// … and where a step must not take too long, until two sizes say how it grows.
const CAREFUL_GROWTH: usize = 2;

/// Steps after which a size is judged. Of their times the least counts: noise of other programs only adds.
const STEPS: usize = 2;

/// A share of the time that is larger by this factor is worse; one that is not smaller by as much as the other is no
/// gain.
const WORSE: f64 = 1.05;
const NO_GAIN: f64 = 0.98;

/// Sizes for which kernels may be others than for more rows.
const FEW: usize = 8;

/// Prompts that took longer by this factor than others count as slower ones.
const SLOW_PROMPTS: f64 = 1.3;

/// More than any machine runs together.
const MOST: usize = 1 << 16;

/// What is left behind must promise a share that is smaller by this factor.
const WORTH_A_SEARCH: f64 = 0.9;

/// Sizes that are as near as this are not told apart.
const NEAR: f64 = 1.1;

/// How much of the memory, and of a step's time, predictions may fill.
const FILL: f64 = 0.95;

/// What became of the search.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Search {
    /// The size that it settled on, or came to.
    pub chosen: usize,
    /// Sizes that were tried, in their order.
    pub tried: Vec<usize>,
    /// How often it went back, or did not go on, for slower steps, late ones, or memory.
    pub backoffs: u32,
    /// How many could have begun at once within the memory; `None` where it is not bounded.
    pub most_that_fit: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Controller {
    objective: Objective,
    /// Decode steps of a sequence, and tokens of a prompt.
    steps: usize,
    prompt_tokens: f64,
    /// Bytes of a sequence's caches and logits.
    sequence_bytes: u64,
    /// What the process holds without any sequence, as far as that is known.
    base_bytes: f64,
    /// What each prompt that runs with others takes beside.
    prompt_bytes: f64,
    /// The most prompts that ran together, and what was held then but for caches and logits.
    most_prompts: (usize, f64),
    /// The least time of a step with so many sequences, and how many steps there were.
    seen: BTreeMap<usize, (f64, usize)>,
    /// Seconds a prompt: the least, and those of the last ones.
    least_prompt: f64,
    last_prompt: f64,
    /// The size under trial.
    judged: Option<usize>,
    /// The best one, and a sequence's share of the time.
    best: Option<(usize, f64)>,
    /// The smallest size that is too large.
    bad: Option<usize>,
    /// The size that runs and is too large for its steps.
    slow: Option<usize>,
    goal: usize,
    /// How many are to run once all newcomers are there.
    filling: Option<usize>,
    search: Search,
}

impl Controller {
    /// For sequences of so many decode steps after prompts of so many tokens, whose caches take so many bytes, in a
    /// process that holds so many.
    pub fn new(
        objective: &Objective,
        (steps, prompt_tokens): (usize, f64),
        sequence_bytes: u64,
        held_bytes: u64,
    ) -> Self {
        let most = objective.max.map_or(usize::MAX, |max| max.max(1) as usize);
        Self {
            steps,
            prompt_tokens,
            sequence_bytes,
            base_bytes: held_bytes as f64,
            prompt_bytes: 0.0,
            most_prompts: (0, held_bytes as f64),
            seen: BTreeMap::new(),
            least_prompt: f64::INFINITY,
            last_prompt: 0.0,
            judged: None,
            best: None,
            bad: None,
            slow: None,
            filling: None,
            goal: (objective.start.max(1) as usize).min(most),
            search: Search::default(),
            objective: objective.clone(),
        }
    }

    /// Whether sequences may join others that run: whoever waits for the newcomers' prompts gets its next token late.
    pub fn joins(&self) -> bool {
        self.objective.step_seconds.is_none()
    }

    /// How many of those that are left begin now, beside those that run. It is asked until none do: where memory does
    /// not do for all their prompts at once, and batches can be joined, newcomers come a few at a time.
    pub fn admit(&mut self, live: usize, left: usize, regroups: bool) -> usize {
        let room = self.filling.unwrap_or(self.goal).saturating_sub(live);
        let late = !self.joins() || self.judged.is_some() || (room < live && room < left);
        if left == 0 || room == 0 || (live > 0 && self.filling.is_none() && (late || !regroups)) {
            self.filling = None;
            return 0;
        }
        let mut all = room.min(left);
        // One must go on whatever it takes.
        let least = usize::from(live == 0);
        while all > least && !self.fits(live + all, if regroups { 1 } else { all }) {
            all -= 1;
        }
        if all < room.min(left) {
            self.search.backoffs += 1;
            (self.bad, self.goal) = (Some(live + all + 1), live + all);
        }
        if live == 0 && self.is_settled() {
            // Several waves of one size are better than a small one at the end.
            all = left.div_ceil(left.div_ceil(all));
        }
        let mut count = all;
        while count > 1 && !self.fits(live + all, count) {
            count -= 1;
        }
        self.filling = (count < all).then_some(live + all);
        count
    }

    /// Prompts of newcomers have run; so many sequences run now.
    pub fn prefilled(&mut self, newcomers: usize, live: usize, seconds: f64, held_bytes: u64) {
        self.last_prompt = seconds / newcomers.max(1) as f64;
        self.least_prompt = self.least_prompt.min(self.last_prompt);
        self.measure_memory(newcomers, held_bytes as f64 - (self.sequence_bytes * live as u64) as f64);
        let limit = self.objective.memory_bytes.unwrap_or(u64::MAX);
        if held_bytes > limit && live > 1 && self.bad.is_none_or(|bad| bad > live) {
            self.search.backoffs += 1;
            (self.bad, self.best, self.judged, self.filling) = (Some(live), None, None, None);
            self.goal = live / 2;
            self.tried(live);
        } else if self.filling.is_none_or(|all| all <= live) {
            self.regrouped(live);
        }
    }

    /// Others run together than before.
    pub fn regrouped(&mut self, live: usize) {
        if !self.is_settled() && self.best.is_none_or(|(size, _)| size != live) {
            self.tried(live);
            self.judged = Some(live);
            self.judge();
        }
    }

    /// A step of so many sequences.
    pub fn stepped(&mut self, live: usize, seconds: f64) {
        let (least, count) = self.seen.entry(live).or_insert((f64::INFINITY, 0));
        (*least, *count) = (least.min(seconds), *count + 1);
        if self.judged == Some(live) {
            self.judge();
        }
    }

    /// How many of those that run should go on, where they are too many.
    pub fn split(&self, live: usize) -> Option<usize> {
        (self.slow == Some(live) && self.joins() && self.goal < live).then_some(self.goal)
    }

    /// What became of the search.
    pub fn search(&self) -> Search {
        let most = (2..MOST).take_while(|count| self.fits(*count, *count)).last().unwrap_or(1);
        Search {
            chosen: self.best.map_or(self.goal, |(size, _)| size),
            most_that_fit: self.objective.memory_bytes.map(|_| most),
            ..self.search.clone()
        }
    }

    fn tried(&mut self, size: usize) {
        if self.search.tried.last() != Some(&size) {
            self.search.tried.push(size);
        }
    }

    fn is_settled(&self) -> bool {
        self.judged.is_none() && self.best.is_some_and(|(size, _)| size == self.goal)
    }

    /// Whether memory will do for so many sequences, of which so many begin.
    fn fits(&self, live: usize, newcomers: usize) -> bool {
        let Some(limit) = self.objective.memory_bytes else { return true };
        let prompts = self.prompt_bytes * newcomers.max(self.most_prompts.0) as f64;
        let needed = self.base_bytes + self.sequence_bytes as f64 * live as f64 + prompts;
        needed <= FILL * limit as f64
    }

    /// The first prompts may take what others do not take again; how it grows two sizes say.
    fn measure_memory(&mut self, newcomers: usize, held: f64) {
        let (before, held_before) = self.most_prompts;
        if newcomers <= before {
            return;
        }
        self.prompt_bytes = ((held - held_before) / (newcomers - before) as f64).max(0.0);
        self.base_bytes = held - self.prompt_bytes * newcomers as f64;
        self.most_prompts = (newcomers, held);
    }

    /// A sequence's share of the time with so many of them.
    fn share(&self, size: usize) -> f64 {
        let slow = self.last_prompt > SLOW_PROMPTS * self.least_prompt;
        let prompt = if slow { self.last_prompt } else { self.least_prompt };
        let step = self.seen.get(&size).map_or(0.0, |(least, _)| *least);
        prompt + self.steps as f64 * step / size as f64
    }

    /// What the share will be with more sequences, if each of them takes so many seconds of a step.
    fn promised(&self, size: usize, more: usize, row: f64) -> f64 {
        let step = self.seen.get(&size).map_or(f64::INFINITY, |(least, _)| *least);
        self.least_prompt + self.steps as f64 * (step + (more - size) as f64 * row) / more as f64
    }

    /// Seconds that a token of a prompt takes, which is about what one more row of a step does.
    fn prompt_row(&self) -> f64 {
        self.least_prompt / self.prompt_tokens.max(1.0)
    }

    /// Seconds that a row of a step took more, up to that size.
    fn row(&self, size: usize) -> f64 {
        let mut sizes = self.seen.range(..=size).rev();
        match (sizes.next(), sizes.next()) {
            (Some((more, (late, _))), Some((less, (early, _)))) => (late - early) / (more - less) as f64,
            _ => 0.0,
        }
    }

    /// What a row more than that size takes: no less than a token of a prompt does.
    fn row_beyond(&self, size: usize) -> f64 {
        self.row(size).max(self.prompt_row())
    }

    /// The most sequences that may run together.
    fn most(&self) -> usize {
        self.objective.max.map_or(usize::MAX, |max| max as usize)
    }

    /// A size after one step of growth.
    fn grown(&self, size: usize) -> usize {
        size.saturating_mul(GROWTH).min(self.most()).max(size)
    }

    /// Steps after which a size is judged, of sequences that may take fewer.
    fn enough(&self) -> usize {
        STEPS.min(self.steps)
    }

    /// The smallest size above the best one, up to this one, that was tried: where it was no better, what there is to find
    /// lies below it.
    fn first_beyond(&self, best: usize, size: usize) -> usize {
        let mut beyond = self.seen.range(best.saturating_add(1)..).map(|(seen, _)| *seen);
        beyond.next().map_or(size, |seen| seen.min(size))
    }

    /// Whether a size between two promises what neither has: then there is a cliff between them.
    fn hides_a_gain(&self, best: usize, size: usize, least: f64) -> bool {
        let middle = between(best.min(size), self.first_beyond(best, size).max(best));
        let row = self.row_beyond(best);
        best < size && middle > best && self.promised(best, middle, row) < NO_GAIN * least
    }

    /// Whether more sequences than these promise to be faster than any so far and any between, although these lie behind a
    /// cliff: a step that hardly grows is soon shared by enough of them. Rows behind it cost more by the factor that the
    /// step does.
    fn wins_back(&self, best: usize, size: usize, further: usize, least: f64) -> bool {
        let (Some((before, _)), Some((step, _))) = (self.seen.get(&best), self.seen.get(&size)) else { return false };
        if best >= size || further == size {
            return false;
        }
        let row = self.row_beyond(best);
        let cliff = step / (before + (size - best) as f64 * row);
        let between = self.promised(best, between(best, self.first_beyond(best, size)), row);
        // One step behind a cliff may win nothing, and the next one much.
        let far = self.grown(further).min(self.bad.unwrap_or(usize::MAX)).max(further);
        self.promised(size, far, row * cliff.max(1.0)) < NO_GAIN * least.min(between)
    }

    /// Settled, after a look between two sizes: the largest one that was tried may be the better one all the same, or more
    /// than it may be.
    fn go_on_from_the_largest(&mut self) {
        let Some((best, least)) = self.best.filter(|_| self.is_settled()) else { return };
        let Some((&size, &(step, count))) = self.seen.last_key_value() else { return };
        let in_time = self.objective.step_seconds.is_none_or(|limit| step <= limit);
        if size <= best || count < self.enough() || !in_time || !self.fits(size, 1) {
            return;
        }
        let share = self.share(size);
        if share.min(self.promised(size, self.grown(size), self.row(size))) < NO_GAIN * least {
            self.bad = None;
            if share < least {
                self.best = Some((size, share));
            }
            self.goal = self.larger(size, step);
        }
    }

    /// Settled behind a cliff, which more sequences won back: just before it may be a size that is better still. A line
    /// through the sizes before it says so, and what it promises must be worth a search of its own.
    fn look_before_the_cliff(&mut self) {
        let Some((best, least)) = self.best.filter(|_| self.is_settled()) else { return };
        let sizes: Vec<usize> = self.seen.range(..=best).map(|(size, _)| *size).collect();
        let left = sizes.windows(2).find(|pair| {
            let (before, behind) = (pair[0], pair[1]);
            let row = self.row_beyond(before);
            between(before, behind) > before && self.promised(before, behind - 1, row) < WORTH_A_SEARCH * least
        });
        if let Some(&[before, behind]) = left {
            (self.bad, self.slow) = (Some(behind), Some(best));
            (self.best, self.goal) = (Some((before, self.share(before))), between(before, behind));
        }
    }

    fn judge(&mut self) {
        self.judge_size();
        self.go_on_from_the_largest();
        self.look_before_the_cliff();
    }

    fn judge_size(&mut self) {
        let Some(size) = self.judged else { return };
        let (step, count) = self.seen.get(&size).copied().unwrap_or((0.0, 0));
        let enough = self.enough();
        if count < enough {
            return;
        }
        if self.objective.step_seconds.is_some_and(|limit| step > limit) {
            self.back_off(size);
            // What lies between may be late as well, which throughput may not cost.
            self.goal = self.best.map_or(self.goal, |(best, _)| best);
            return;
        }
        let share = self.share(size);
        let further = self.larger(size, step);
        match self.best {
            None => (self.best, self.goal) = (Some((size, share)), further),
            // Kernels for one row and for several differ: what several lose at first, more of them may win back.
            Some((best, least))
                if (size <= FEW && self.promised(size, further, self.prompt_row()) < NO_GAIN * least.min(share))
                    || self.wins_back(best, size, further, least.min(share)) =>
            {
                self.best = self.best.filter(|(_, least)| *least <= share).or(Some((size, share)));
                self.goal = further;
            }
            Some((best, least)) if share > WORSE * least || self.hides_a_gain(best, size, least.min(share)) => {
                // Not for what may have been noise.
                if count >= (2 * enough).min(self.steps) {
                    self.back_off(size);
                }
                return;
            }
            Some((_, least)) if share < NO_GAIN * least => {
                (self.best, self.goal) = (Some((size, share)), further);
            }
            Some((best, least)) => {
                let chosen = if share < least { (size, share) } else { (best, least) };
                (self.best, self.goal) = (Some(chosen), chosen.0);
            }
        }
        self.judged = None;
    }

    fn back_off(&mut self, size: usize) {
        self.search.backoffs += 1;
        let bad = self.best.map_or(size, |(best, _)| self.first_beyond(best, size));
        (self.bad, self.slow, self.judged) = (Some(bad), Some(size), None);
        self.goal = match self.best {
            Some((best, _)) => between(best, bad),
            None => (size / 2).max(1),
        };
        if self.goal == size {
            // Nothing is smaller than one.
            self.best = Some((size, self.share(size)));
        }
    }

    /// The size to try after one that was good.
    fn larger(&self, size: usize, step: f64) -> usize {
        let careful = self.objective.step_seconds.is_some() && self.seen.len() < 2;
        let mut next = size.saturating_mul(if careful { CAREFUL_GROWTH } else { GROWTH });
        if let Some(limit) = self.objective.step_seconds
            && let Some((smaller, (before, _))) = self.seen.range(..size).next_back()
        {
            let each = ((step - before) / (size - smaller) as f64).max(step / (100 * size) as f64);
            next = next.min(size + ((FILL * limit - step) / each).max(0.0) as usize);
        }
        if let Some(bad) = self.bad {
            next = next.min(between(size, bad));
        }
        next.min(self.most()).max(size)
    }
}

/// A size between a good one and one that is too large; the good one where they are near.
fn between(good: usize, bad: usize) -> usize {
    let middle = ((good * bad) as f64).sqrt() as usize;
    if (middle as f64) < NEAR * good as f64 { good } else { middle }
}
