//! The loop over a queue: who begins when, who runs with whom, and when each has ended.

use crate::engine::serving::controller::Controller;
use crate::engine::serving::{Search, Wave};
use crate::error::Result;

/// What the loop runs on: a model, or in tests what one would take.
pub(super) trait Machine {
    /// Sequences that run together.
    type Batch;

    /// Runs the prompts of these sequences; their first tokens are there afterwards.
    fn begin(&mut self, rows: &[Row]) -> Result<Self::Batch>;

    /// One more token of each.
    fn step(&mut self, batch: &mut Self::Batch, rows: &[Row]) -> Result<()>;

    /// Batches of other rows: each is a list of batches and rows in them that it is made of.
    fn regroup(&mut self, from: Vec<Self::Batch>, into: &[Vec<(usize, usize)>]) -> Result<Vec<Self::Batch>>;

    /// Whether it can do that.
    fn regroups(&self) -> bool;

    /// A batch whose sequences have ended.
    fn end(&mut self, batch: Self::Batch);

    /// Seconds since the queue was there.
    fn seconds(&self) -> f64;

    /// What the process holds.
    fn held_bytes(&self) -> Result<u64>;

    /// Bytes that were read for the model so far.
    fn read_bytes(&self) -> u64;
}

/// A sequence that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Its place in the queue.
    pub sequence: usize,
    /// Its tokens so far.
    pub tokens: usize,
}

/// Who decides how many run together.
pub(super) enum Pace {
    /// So many, and at the end what is left.
    Fixed(usize),
    Found(Box<Controller>),
}

impl Pace {
    fn admit(&mut self, live: usize, left: usize, regroups: bool) -> usize {
        match self {
            Self::Fixed(size) => {
                if live == 0 {
                    left.min(*size)
                } else {
                    0
                }
            }
            Self::Found(controller) => controller.admit(live, left, regroups),
        }
    }

    fn split(&self, live: usize, regroups: bool) -> Option<usize> {
        match self {
            Self::Found(controller) if regroups => controller.split(live),
            _ => None,
        }
    }

    fn found(&mut self) -> Option<&mut Controller> {
        match self {
            Self::Fixed(_) => None,
            Self::Found(controller) => Some(controller),
        }
    }

    /// What became of the search, where there was one.
    pub fn search(&self) -> Option<Search> {
        match self {
            Self::Fixed(_) => None,
            Self::Found(controller) => Some(controller.search()),
        }
    }
}

struct Running<B> {
    batch: B,
    rows: Vec<Row>,
}

/// Serves so many sequences of so many new tokens.
pub(super) fn run<M: Machine>(machine: &mut M, pace: &mut Pace, count: usize, generate: usize) -> Result<Vec<Wave>> {
    let mut waves: Vec<Wave> = Vec::new();
    let mut running: Option<Running<M::Batch>> = None;
    let mut waiting: Vec<Running<M::Batch>> = Vec::new();
    let mut begun = 0;
    let mut since = (machine.seconds(), machine.read_bytes());
    // Whether who runs together has changed.
    let mut changed = false;
    loop {
        if running.is_none() {
            running = waiting.pop();
            changed |= running.is_some();
        }
        loop {
            let live = running.as_ref().map_or(0, |running| running.rows.len());
            // Who waits holds memory, and goes on before others begin.
            let left = if waiting.is_empty() { count - begun } else { 0 };
            let newcomers = pace.admit(live, left, machine.regroups());
            if newcomers == 0 {
                break;
            }
            let start = machine.seconds();
            let rows: Vec<Row> = (begun..begun + newcomers).map(|sequence| Row { sequence, tokens: 1 }).collect();
            begun += newcomers;
            let batch = machine.begin(&rows)?;
            let seconds = machine.seconds() - start;
            let newer = Running { batch, rows };
            running = Some(match running {
                None => newer,
                Some(older) => join(machine, older, newer)?,
            });
            if let Some(controller) = pace.found() {
                controller.prefilled(newcomers, live + newcomers, seconds, machine.held_bytes()?);
            }
            changed = true;
        }
        let Some(mut now) = running.take() else { break };
        if std::mem::take(&mut changed) {
            let prefilled = (machine.seconds(), machine.read_bytes());
            waves.push(Wave {
                size: now.rows.len(),
                began: now.rows.iter().filter(|row| row.tokens == 1).count(),
                prefill_seconds: prefilled.0 - since.0,
                decode_seconds: 0.0,
                steps: 0,
                prefill_read_bytes: prefilled.1 - since.1,
                decode_read_bytes: 0,
            });
            since = prefilled;
        }
        if now.rows.iter().all(|row| row.tokens < generate) {
            step(machine, &mut now, &mut since, &mut waves, pace)?;
        }
        let ended = now.rows.iter().filter(|row| row.tokens == generate).count();
        running = if ended == now.rows.len() {
            machine.end(now.batch);
            None
        } else if ended > 0 {
            changed = true;
            let left: Vec<usize> = (0..now.rows.len()).filter(|row| now.rows[*row].tokens < generate).collect();
            regroup(machine, now, &[left])?.pop()
        } else if let Some(size) = pace.split(now.rows.len(), machine.regroups()) {
            changed = true;
            let all: Vec<usize> = (0..now.rows.len()).collect();
            let parts: Vec<Vec<usize>> = all.chunks(size).map(<[usize]>::to_vec).collect();
            let mut parts = regroup(machine, now, &parts)?.into_iter();
            let first = parts.next();
            waiting.extend(parts.rev());
            if let (Some(controller), Some(first)) = (pace.found(), &first) {
                controller.regrouped(first.rows.len());
            }
            first
        } else {
            Some(now)
        };
    }
    Ok(waves)
}

fn step<M: Machine>(
    machine: &mut M,
    now: &mut Running<M::Batch>,
    since: &mut (f64, u64),
    waves: &mut [Wave],
    pace: &mut Pace,
) -> Result<()> {
    machine.step(&mut now.batch, &now.rows)?;
    now.rows.iter_mut().for_each(|row| row.tokens += 1);
    let after = (machine.seconds(), machine.read_bytes());
    if let Some(wave) = waves.last_mut() {
        wave.steps += 1;
        wave.decode_seconds += after.0 - since.0;
        wave.decode_read_bytes += after.1 - since.1;
    }
    if let Some(controller) = pace.found() {
        controller.stepped(now.rows.len(), after.0 - since.0);
    }
    *since = after;
    Ok(())
}

fn join<M: Machine>(machine: &mut M, older: Running<M::Batch>, newer: Running<M::Batch>) -> Result<Running<M::Batch>> {
    let old = (0..older.rows.len()).map(|row| (0, row));
    let all = old.chain((0..newer.rows.len()).map(|row| (1, row))).collect();
    let rows = [older.rows, newer.rows].concat();
    let mut made = machine.regroup(vec![older.batch, newer.batch], &[all])?;
    Ok(Running { batch: made.swap_remove(0), rows })
}

fn regroup<M: Machine>(machine: &mut M, now: Running<M::Batch>, into: &[Vec<usize>]) -> Result<Vec<Running<M::Batch>>> {
    let lists: Vec<Vec<(usize, usize)>> = into.iter().map(|rows| rows.iter().map(|row| (0, *row)).collect()).collect();
    let made = machine.regroup(vec![now.batch], &lists)?;
    let rows = into.iter().map(|rows| rows.iter().map(|row| now.rows[*row]).collect());
    Ok(made.into_iter().zip(rows).map(|(batch, rows)| Running { batch, rows }).collect())
}
