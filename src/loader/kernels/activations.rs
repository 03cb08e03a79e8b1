//! Activations rounded to 8 bits, by row and block of K.

use super::Shared;
use super::layout::Format;
use super::tile::Version;
use crate::runtime::custom::Parallel;

/// Rows of activations in 8 bits: `x ≈ code · scale`, with the codes from −127 to 127.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// `[rows, padded columns]`; what fills up the last block is zero.
    pub codes: Vec<i8>,
    /// `[rows, blocks]`.
    pub scales: Vec<f32>,
    /// `[rows, blocks]`: what the dot product of a block starts from. It takes the zero points away: minus the sum of
    /// the codes, times the zero point unless each block of weights has one of its own.
    pub starts: Vec<i32>,
    /// Columns and blocks of a row.
    pub stride: usize,
    pub blocks: usize,
}

/// Below this many numbers one thread is faster than waking another.
const WORTH_A_THREAD: usize = 1 << 15;

impl Activations {
    /// Rounds rows for products with weights of this format.
    pub fn fill(&mut self, version: Version, format: &Format, x: &[f32], parallel: &dyn Parallel) {
        let rows = x.len() / format.columns;
        (self.stride, self.blocks) = (format.padded(), format.blocks);
        // What was there is overwritten: growing is all that costs.
        self.codes.resize(rows * self.stride, 0);
        self.scales.resize(rows * self.blocks, 0.0);
        self.starts.resize(rows * self.blocks, 0);
        let zero_point = if format.zero_points { 1 } else { 1 << (format.bits - 1) };
        let (stride, blocks) = (self.stride, self.blocks);
        let codes = Shared::new(&mut self.codes);
        let scales = Shared::new(&mut self.scales);
        let starts = Shared::new(&mut self.starts);
        let row = |m: usize| {
            // SAFETY: each row is written by one task, and the vectors are borrowed until all are done.
            let (codes, scales, starts) = unsafe {
                (codes.slice(m * stride, stride), scales.slice(m * blocks, blocks), starts.slice(m * blocks, blocks))
            };
            round_row(
                version,
                &x[m * format.columns..][..format.columns],
                zero_point,
                format.block,
                codes,
                scales,
                starts,
            );
        };
        if rows > 1 && x.len() >= WORTH_A_THREAD && parallel.threads() > 1 {
            parallel.run(rows, &row);
        } else {
            (0..rows).for_each(row);
        }
    }

    /// Takes rows of others, which may come more than once.
    pub fn gather(&mut self, from: &Self, rows: impl Iterator<Item = usize>) {
        (self.stride, self.blocks) = (from.stride, from.blocks);
        self.codes.clear();
        self.scales.clear();
        self.starts.clear();
        for row in rows {
            self.codes.extend_from_slice(&from.codes[row * from.stride..][..from.stride]);
            self.scales.extend_from_slice(&from.scales[row * from.blocks..][..from.blocks]);
            self.starts.extend_from_slice(&from.starts[row * from.blocks..][..from.blocks]);
        }
    }
}

fn round_row(
    version: Version,
    x: &[f32],
    zero_point: i32,
    block: usize,
    codes: &mut [i8],
    scales: &mut [f32],
    starts: &mut [i32],
) {
    match version {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the version was chosen because the processor has these features.
        Version::Avx2 | Version::Avx512 => unsafe { round_row_avx2(x, zero_point, block, codes, scales, starts) },
        _ => round_row_plain(x, zero_point, block, codes, scales, starts),
    }
}

/// The same, compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn round_row_avx2(x: &[f32], zero_point: i32, block: usize, codes: &mut [i8], scales: &mut [f32], starts: &mut [i32]) {
    round_row_plain(x, zero_point, block, codes, scales, starts);
}

#[inline(always)]
fn round_row_plain(x: &[f32], zero_point: i32, block: usize, codes: &mut [i8], scales: &mut [f32], starts: &mut [i32]) {
    for (b, codes) in codes.chunks_exact_mut(block).enumerate() {
        let x = &x[b * block..(b * block + block).min(x.len())];
        let (scale, sum) = round_block(x, codes);
        scales[b] = scale;
        starts[b] = -zero_point * sum;
    }
}

/// Rounds one block; returns its scale and the sum of its codes.
#[inline(always)]
fn round_block(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    // Magnitudes order like their bits, and what is not finite lies above everything finite.
    let largest = x.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let scale = largest / 127.0;
    if !scale.is_normal() {
        codes.fill(0);
        return (if largest.is_finite() { 0.0 } else { f32::NAN }, 0);
    }
    let inverse = 127.0 / largest;
    // 1.5 · 2²³: adding it leaves the nearest integer (ties to even) in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let (known, filling) = codes.split_at_mut(x.len());
    let mut sum = 0;
    for (code, value) in known.iter_mut().zip(x) {
        let rounded = (value * inverse + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32;
        *code = rounded as i8;
        sum += rounded;
    }
    filling.fill(0);
    (scale, sum)
}
