//! The experts of a mixture: `down(silu(gate) · up)`.

use std::cell::RefCell;

use super::Shared;
use super::activations::Activations;
use super::layout::{Format, GROUP, check, packed_bytes};
use super::product::{Tiles, rows_of, wanted_tasks};
use super::silu::gate;
use super::tile::Version;
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

/// Some experts, each on its rows of `x`, in two parallel steps for all of them. `out` gets a row for each row of the
/// first share, then of the second, and so on, neither weighed nor added.
///
/// # Panics
/// When the shapes do not fit each other, a slice is not as long as they say, or a share has rows that `x` does not:
/// bugs of the caller.
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
            let tiles = Tiles::new(format, share.rows.len(), wanted);
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
