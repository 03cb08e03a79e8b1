//! The experts of a mixture: `down(silu(gate) · up)`.

use std::cell::RefCell;

use super::Shared;
use super::activations::Activations;
use super::layout::{Format, GROUP, packed_bytes};
use super::product::{Tiles, rows_of};
use super::silu::gate;
use super::tile::{self, ROWS, Sums, Version};
use crate::package::shards::NBits;
use crate::runtime::custom::Parallel;

/// What a call needs between its steps.
#[derive(Debug, Default)]
struct Scratch {
    x: Activations,
    /// `silu(gate) · up`, `[experts · rows, intermediate]`.
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

/// One routed expert on some rows: `out = down(silu(gate) · up)`, where row 2i of `gate_up` is the gate's and row
/// 2i + 1 the up projection's. `record` is `gate_up` packed, then `down` packed.
///
/// # Panics
/// When the shapes do not fit each other, or a slice is not as long as they say: bugs of the caller.
pub fn expert(gate_up: &NBits, down: &NBits, record: &[u8], x: &[f32], out: &mut [f32], parallel: &dyn Parallel) {
    expert_with(Version::best(), gate_up, down, record, x, out, parallel);
}

pub(super) fn expert_with(
    version: Version,
    gate_up: &NBits,
    down: &NBits,
    record: &[u8],
    x: &[f32],
    out: &mut [f32],
    parallel: &dyn Parallel,
) {
    let rows = rows_of(x, gate_up.columns);
    assert_eq!(out.len(), rows * down.rows, "the outputs of {rows} rows");
    if rows == 0 {
        return;
    }
    let mut scratch = SCRATCH.take();
    let down = Formats::new(gate_up, down).hidden(version, &[record], x, &mut scratch, parallel);
    let weights = &record[record.len() - down.bytes()..];
    let out = Shared::new(out);
    let tiles = Tiles::new(&down, rows, 1, parallel.threads());
    parallel.run(tiles.count(), &|task| {
        tiles.each(version, &down, weights, &scratch.codes, task, &mut |row, group, sums| {
            let at = group * GROUP;
            let count = GROUP.min(down.rows - at);
            // SAFETY: each place of the output belongs to one tile, and `out` is borrowed until all are done.
            unsafe { out.slice(row * down.rows + at, count) }.copy_from_slice(&sums[..count]);
        });
    });
    SCRATCH.set(scratch);
}

/// The weighed sum of some experts on one token: `out = Σ weight · expert(x)`, in the order given, the first a product
/// and each further one a fused multiply-add. All experts share two parallel steps, where [`expert`] would take two
/// for each.
///
/// # Panics
/// As [`expert`].
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
    let mut scratch = SCRATCH.take();
    let records: Vec<&[u8]> = chosen.iter().map(|(record, _)| *record).collect();
    let down = Formats::new(gate_up, down).hidden(version, &records, x, &mut scratch, parallel);
    let out = Shared::new(out);
    let tiles = Tiles::new(&down, 1, chosen.len(), parallel.threads());
    parallel.run(tiles.count(), &|task| {
        let mut sums: Sums = [[0.0; GROUP]; ROWS];
        for group in tiles.groups(task) {
            let mut mixed = [0.0; GROUP];
            for (number, (record, weight)) in chosen.iter().enumerate() {
                let weights = &record[record.len() - down.bytes() + group * down.group_bytes..][..down.group_bytes];
                tile::compute(version, &down, weights, &scratch.codes, number, 1, &mut sums);
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
    gate_up: NBits,
    down: NBits,
}

impl Formats {
    fn new(gate_up: &NBits, down: &NBits) -> Self {
        assert_eq!(gate_up.rows, 2 * down.columns, "rows of gates and up projections");
        Self { gate_up: *gate_up, down: *down }
    }

    /// Computes `silu(gate) · up` of each expert on all rows and rounds it for the down projection, into
    /// `scratch.codes`: row `expert · rows + row`.
    fn hidden(
        &self,
        version: Version,
        records: &[&[u8]],
        x: &[f32],
        scratch: &mut Scratch,
        parallel: &dyn Parallel,
    ) -> Format {
        let cut = down_offset(&self.gate_up);
        for record in records {
            assert_eq!(record.len(), expert_bytes(&self.gate_up, &self.down), "the bytes of an expert");
        }
        super::layout::check(&self.gate_up).expect("the shape of a packed matrix was checked");
        super::layout::check(&self.down).expect("the shape of a packed matrix was checked");
        let (gate_up, down) = (Format::new(&self.gate_up), Format::new(&self.down));
        let rows = rows_of(x, gate_up.columns);
        scratch.x.fill(version, &gate_up, x, parallel);
        scratch.hidden.resize(records.len() * rows * down.columns, 0.0);
        let hidden = Shared::new(&mut scratch.hidden);
        let each = parallel.threads().div_ceil(records.len().max(1));
        let tiles = Tiles::new(&gate_up, rows, 1, each);
        parallel.run(records.len() * tiles.count(), &|task| {
            let (number, task) = (task / tiles.count(), task % tiles.count());
            tiles.each(version, &gate_up, &records[number][..cut], &scratch.x, task, &mut |row, group, sums| {
                let at = group * (GROUP / 2);
                let count = (GROUP / 2).min(down.columns - at);
                // SAFETY: each place belongs to one tile, and `hidden` is borrowed until all are done.
                let out = unsafe { hidden.slice((number * rows + row) * down.columns + at, count) };
                gate(version, sums, out);
            });
        });
        scratch.codes.fill(version, &down, &scratch.hidden, parallel);
        down
    }
}
