//! The experts of a mixture: `down(silu(gate) · up)`.

use std::cell::RefCell;

use super::Shared;
use super::activations::Activations;
use super::layout::{Format, GROUP, check, packed_bytes};
use super::product::{Tiles, rows_of, wanted_tasks};
use super::silu::gate;
use super::tile::{self, ROWS, Sums, Version};
use crate::package::shards::NBits;
use crate::runtime::custom::Parallel;

/// An expert and the rows that it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// Its gate and up projection packed (row 2i the gate's, row 2i + 1 the up projection's), then its down projection
    /// packed.
    pub record: &'a [u8],
    /// Rows of the inputs.
    pub rows: &'a [usize],
}

/// What a call needs between its steps.
#[derive(Debug, Default)]
struct Scratch {
    /// The inputs in 8 bits, and the same gathered: a row for each row of each expert.
    x: Activations,
    gathered: Activations,
    /// `silu(gate) · up`, `[rows of all experts, intermediate]`.
    hidden: Vec<f32>,
    /// The same in 8 bits.
    codes: Activations,
}

thread_local! {
    /// That of the last call on this thread: its memory is used again.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where in an expert's record its down projection starts.
pub fn down_offset(gate_up: &NBits) -> usize {
    packed_bytes(gate_up)
}

/// Bytes of an expert's record.
pub fn expert_bytes(gate_up: &NBits, down: &NBits) -> usize {
    down_offset(gate_up) + packed_bytes(down)
}

/// One routed expert on some rows: `out = down(silu(gate) · up)`. For `record` see [`Share`].
///
/// # Panics
/// When the shapes do not fit each other, or a slice is not as long as they say: bugs of the caller.
pub fn expert(gate_up: &NBits, down: &NBits, record: &[u8], x: &[f32], out: &mut [f32], parallel: &dyn Parallel) {
    let rows: Vec<usize> = (0..rows_of(x, gate_up.columns)).collect();
    experts(gate_up, down, &[Share { record, rows: &rows }], x, out, parallel);
}

/// Some experts, each on its rows of `x`, in two parallel steps for all of them. `out` gets a row for each row of the
/// first share, then of the second, and so on, neither weighed nor added: what [`expert`] gives for each.
///
/// # Panics
/// As [`expert`], and for rows that `x` does not have.
pub fn experts(
    gate_up: &NBits,
    down: &NBits,
    shares: &[Share<'_>],
    x: &[f32],
    out: &mut [f32],
    parallel: &dyn Parallel,
) {
    experts_with(Version::best(), gate_up, down, shares, x, out, parallel);
}

pub(super) fn experts_with(
    version: Version,
    gate_up: &NBits,
    down: &NBits,
    shares: &[Share<'_>],
    x: &[f32],
    out: &mut [f32],
    parallel: &dyn Parallel,
) {
    let formats = Formats::new(gate_up, down);
    let mut scratch = SCRATCH.take();
    let work = formats.hidden(version, shares, x, &mut scratch, parallel);
    assert_eq!(out.len(), work.rows * down.rows, "the outputs of {} rows of experts", work.rows);
    let (down, width) = (&formats.down, down.rows);
    let out = Shared::new(out);
    work.run(down, parallel, &|share, tiles, first, task| {
        let weights = &share.record[formats.gate_up.bytes()..];
        tiles.each(version, down, weights, &scratch.codes, first, task, &mut |row, group, sums| {
            let at = group * GROUP;
            let count = GROUP.min(width - at);
            // SAFETY: each place of the output belongs to one tile, and `out` is borrowed until all are done.
            unsafe { out.slice(row * width + at, count) }.copy_from_slice(&sums[..count]);
        });
    });
    SCRATCH.set(scratch);
}

/// The weighed sum of some experts on one token: `out = Σ weight · expert(x)`, in the order given, the first a product
/// and each further one a fused multiply-add. The outputs of single experts are never written.
///
/// # Panics
/// As [`expert`], and when no expert is given.
pub fn experts_of_one_token(
    gate_up: &NBits,
    down: &NBits,
    chosen: &[(&[u8], f32)],
    x: &[f32],
    out: &mut [f32],
    parallel: &dyn Parallel,
) {
    one_token_with(Version::best(), gate_up, down, chosen, x, out, parallel);
}

pub(super) fn one_token_with(
    version: Version,
    gate_up: &NBits,
    down: &NBits,
    chosen: &[(&[u8], f32)],
    x: &[f32],
    out: &mut [f32],
    parallel: &dyn Parallel,
) {
    assert_eq!((x.len(), out.len()), (gate_up.columns, down.rows), "inputs and outputs of one token");
    assert!(!chosen.is_empty(), "a token without experts");
    let formats = Formats::new(gate_up, down);
    let mut scratch = SCRATCH.take();
    let shares: Vec<Share<'_>> = chosen.iter().map(|(record, _)| Share { record, rows: &[0] }).collect();
    formats.hidden(version, &shares, x, &mut scratch, parallel);
    let down = &formats.down;
    let out = Shared::new(out);
    let tiles = Tiles::new(down, 1, chosen.len(), wanted_tasks(parallel));
    parallel.run(tiles.count(), &|task| {
        let mut sums: Sums = [[0.0; GROUP]; ROWS];
        for group in tiles.groups(task) {
            let mut mixed = [0.0; GROUP];
            for (number, (record, weight)) in chosen.iter().enumerate() {
                let weights = &record[formats.gate_up.bytes() + group * down.group_bytes..][..down.group_bytes];
                tile::compute(version, down, weights, &scratch.codes, number, 1, &mut sums);
                mix(version, number == 0, *weight, &sums[0], &mut mixed);
            }
            let at = group * GROUP;
            let count = GROUP.min(down.rows - at);
            // SAFETY: each place of the output belongs to one group, and `out` is borrowed until all are done.
            unsafe { out.slice(at, count) }.copy_from_slice(&mixed[..count]);
        }
    });
    SCRATCH.set(scratch);
}

/// Adds one expert's outputs.
fn mix(version: Version, first: bool, weight: f32, sums: &[f32; GROUP], mixed: &mut [f32; GROUP]) {
    #[inline(always)]
    fn plain(first: bool, weight: f32, sums: &[f32; GROUP], mixed: &mut [f32; GROUP]) {
        for (mixed, sum) in mixed.iter_mut().zip(sums) {
            *mixed = if first { weight * sum } else { weight.mul_add(*sum, *mixed) };
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(first: bool, weight: f32, sums: &[f32; GROUP], mixed: &mut [f32; GROUP]) {
        plain(first, weight, sums, mixed);
    }
    match version {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the version was chosen because the processor has these features.
        Version::Avx2 | Version::Avx512 => unsafe { avx2(first, weight, sums, mixed) },
        Version::Scalar => plain(first, weight, sums, mixed),
    }
}

/// The formats of an expert's two matrices.
struct Formats {
    gate_up: Format,
    down: Format,
}

impl Formats {
    fn new(gate_up: &NBits, down: &NBits) -> Self {
        assert_eq!(gate_up.rows, 2 * down.columns, "rows of gates and up projections");
        for shape in [gate_up, down] {
            check(shape).expect("the shape of a packed matrix was checked");
        }
        Self { gate_up: Format::new(gate_up), down: Format::new(down) }
    }

    /// Computes `silu(gate) · up` of each share's rows and rounds it for the down projection, into `scratch.codes`.
    fn hidden<'a>(
        &self,
        version: Version,
        shares: &'a [Share<'a>],
        x: &[f32],
        scratch: &mut Scratch,
        parallel: &dyn Parallel,
    ) -> Work<'a> {
        let Self { gate_up, down } = self;
        let rows = rows_of(x, gate_up.columns);
        for share in shares {
            assert_eq!(share.record.len(), gate_up.bytes() + down.bytes(), "the bytes of an expert");
            assert!(share.rows.iter().all(|&row| row < rows), "rows of an expert that the inputs do not have");
        }
        let work = Work::new(shares);
        scratch.x.fill(version, gate_up, x, parallel);
        scratch.gathered.gather(&scratch.x, shares.iter().flat_map(|share| share.rows).copied());
        scratch.hidden.resize(work.rows * down.columns, 0.0);
        let hidden = Shared::new(&mut scratch.hidden);
        let gathered = &scratch.gathered;
        work.run(gate_up, parallel, &|share, tiles, first, task| {
            let weights = &share.record[..gate_up.bytes()];
            tiles.each(version, gate_up, weights, gathered, first, task, &mut |row, group, sums| {
                let at = group * (GROUP / 2);
                let count = (GROUP / 2).min(down.columns - at);
                // SAFETY: each place belongs to one tile, and `hidden` is borrowed until all are done.
                gate(version, sums, unsafe { hidden.slice(row * down.columns + at, count) });
            });
        });
        scratch.codes.fill(version, down, &scratch.hidden, parallel);
        work
    }
}

/// Products of several shares as one piece of work.
struct Work<'a> {
    /// Each share that has rows, with the first of them among the rows of all shares.
    shares: Vec<(Share<'a>, usize)>,
    rows: usize,
}

impl<'a> Work<'a> {
    fn new(shares: &[Share<'a>]) -> Self {
        let mut rows = 0;
        let place = |share: &Share<'a>| {
            let first = rows;
            rows += share.rows.len();
            (*share, first)
        };
        let mut shares: Vec<_> = shares.iter().map(place).collect();
        shares.retain(|(share, _)| !share.rows.is_empty());
        Self { shares, rows }
    }

    /// Runs the tasks of every share: `each(share, its tiles, its first row, task)`.
    fn run(&self, format: &Format, parallel: &dyn Parallel, each: &(dyn Fn(&Share<'_>, &Tiles, usize, usize) + Sync)) {
        let wanted = wanted_tasks(parallel).div_ceil(self.shares.len().max(1));
        let mut count = 0;
        let place = |(share, first): &(Share<'a>, usize)| {
            let tiles = Tiles::new(format, share.rows.len(), 1, wanted);
            count += tiles.count();
            (*share, *first, tiles, count - tiles.count())
        };
        let tasks: Vec<_> = self.shares.iter().map(place).collect();
        parallel.run(count, &|task| {
            let at = tasks.partition_point(|(.., start)| *start <= task) - 1;
            let (share, first, tiles, start) = &tasks[at];
            each(share, tiles, *first, task - start);
        });
    }
}
