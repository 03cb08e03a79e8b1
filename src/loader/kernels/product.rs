//! A whole product: tiles on threads.

use std::cell::RefCell;

use super::Shared;
use super::activations::Activations;
use super::layout::{Format, GROUP, of_packed};
use super::tile::{self, ROWS, Sums, Version};
use crate::package::shards::NBits;
use crate::runtime::custom::Parallel;

thread_local! {
    /// Activations of the last call on this thread: their memory is used again.
    static SCRATCH: RefCell<Activations> = RefCell::default();
}

/// `out[m, n] = Σ_k x[m, k] · W[n, k]` for every row of `x`.
///
/// # Panics
/// When the shape is one that [`super::check`] refuses, or a slice is not as long as the shape says: bugs of the
/// caller.
pub fn multiply(shape: &NBits, packed: &[u8], x: &[f32], out: &mut [f32], parallel: &dyn Parallel) {
    multiply_with(Version::best(), shape, packed, x, out, parallel);
}

pub(super) fn multiply_with(
    version: Version,
    shape: &NBits,
    packed: &[u8],
    x: &[f32],
    out: &mut [f32],
    parallel: &dyn Parallel,
) {
    let format = of_packed(shape, packed);
    let rows = rows_of(x, format.columns);
    assert_eq!(out.len(), rows * format.rows, "the outputs of {rows} rows");
    if rows == 0 {
        return;
    }
    // Taken out rather than borrowed: while this thread waits for the others it may be given another product.
    let mut activations = SCRATCH.take();
    activations.fill(version, &format, x, parallel);
    let out = Shared::new(out);
    let tiles = Tiles::new(&format, rows, wanted_tasks(parallel));
    parallel.run(tiles.count(), &|task| {
        tiles.each(version, &format, packed, &activations, 0, task, &mut |row, group, sums| {
            let at = group * GROUP;
            let count = GROUP.min(format.rows - at);
            // SAFETY: each place of the output belongs to one tile, and `out` is borrowed until all are done.
            unsafe { out.slice(row * format.rows + at, count) }.copy_from_slice(&sums[..count]);
        });
    });
    SCRATCH.set(activations);
}

/// The number of whole rows.
pub(super) fn rows_of(x: &[f32], columns: usize) -> usize {
    assert_eq!(x.len() % columns, 0, "activations that are no whole rows of {columns}");
    x.len() / columns
}

/// A product cut into tasks: bands of rows of activations, which stay in a core's cache, by runs of groups of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    rows: usize,
    rows_each: usize,
    groups: usize,
    groups_each: usize,
    runs: usize,
}

/// Bytes of rounded activations that share a core's second-level cache with the weights.
const BAND_BYTES: usize = 384 << 10;

/// Products of a task, below which handing it over costs more than it saves: about 10 µs.
const TASK_PRODUCTS: usize = 1 << 18;

/// Tasks for each thread, if there is work enough: one thread that is late holds the others up by at most this part.
const TASKS_A_THREAD: usize = 8;

/// How many tasks a piece of work is best cut into.
pub(super) fn wanted_tasks(parallel: &dyn Parallel) -> usize {
    match parallel.threads() {
        0 | 1 => 1,
        threads => threads * TASKS_A_THREAD,
    }
}

impl Tiles {
    /// About as many tasks as are wanted, none of them too small.
    pub fn new(format: &Format, rows: usize, wanted: usize) -> Self {
        let rows_each = (BAND_BYTES / format.padded()).max(1).next_multiple_of(ROWS).min(rows);
        let groups = format.groups();
        let least = TASK_PRODUCTS.div_ceil(GROUP * format.padded() * rows_each.max(1));
        let groups_each = groups.div_ceil(wanted.max(1)).max(least).min(groups);
        Self { rows, rows_each, groups, groups_each, runs: groups.div_ceil(groups_each) }
    }

    /// Tasks.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(self.rows_each.max(1)) * self.runs
    }

    /// The groups of weights of a task.
    pub fn groups(&self, task: usize) -> std::ops::Range<usize> {
        let run = task % self.runs;
        run * self.groups_each..((run + 1) * self.groups_each).min(self.groups)
    }

    /// Computes a task on the rows of activations from `start` on; `take` gets each row's sums with the row and the group.
    #[expect(clippy::too_many_arguments, reason = "what a product is made of")]
    pub fn each(
        &self,
        version: Version,
        format: &Format,
        packed: &[u8],
        activations: &Activations,
        start: usize,
        task: usize,
        take: &mut dyn FnMut(usize, usize, &[f32; GROUP]),
    ) {
        let band = task / self.runs;
        let rows = start + band * self.rows_each..start + ((band + 1) * self.rows_each).min(self.rows);
        let mut sums: Sums = [[0.0; GROUP]; ROWS];
        for group in self.groups(task) {
            let weights = &packed[group * format.group_bytes..][..format.group_bytes];
            for first in rows.clone().step_by(ROWS) {
                let count = ROWS.min(rows.end - first);
                tile::compute(version, format, weights, activations, first, count, &mut sums);
                for (row, sums) in (first..first + count).zip(&sums) {
                    take(row, group, sums);
                }
            }
        }
    }
}
