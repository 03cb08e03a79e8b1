//! A tile with AVX2: products of a nibble and an activation are added in 16 bits where they cannot overflow, then
//! widened.
//!
//! A nibble times an activation is at most 15 · 127, and `maddubs` adds two of them: eight such sums fit into 16 bits
//! (8 · 2 · 15 · 127 = 30480). Codes of 8 bits are taken as two nibbles, for two of them at once would not fit.

use std::arch::x86_64::*;

use super::layout::GROUP;
use super::tile::{Sums, Task};

/// # Safety
/// The processor has the features; the task's pointers are as long as its format says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn compute(task: &Task<'_>, count: usize, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        match (task.format.bits, task.format.block) {
            (4, 32) => by_rows::<4, 32>(task, count, sums),
            (4, _) => by_rows::<4, 0>(task, count, sums),
            (_, 32) => by_rows::<8, 32>(task, count, sums),
            _ => by_rows::<8, 0>(task, count, sums),
        }
    }
}

/// There are 16 registers: one row takes all 16 lanes in one pass, more rows take two passes of 8 lanes, four rows
/// at a time.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn by_rows<const BITS: usize, const BLOCK: usize>(task: &Task<'_>, count: usize, sums: &mut Sums) {
    if count == 1 {
        // SAFETY: the caller's promise.
        return unsafe { tile::<BITS, BLOCK, 1, 2>(task, 0, sums) };
    }
    for (at, sums) in (0..count).step_by(4).zip(sums.chunks_exact_mut(4)) {
        let task = Task { first: task.first + at, ..*task };
        for lane in [0, 8] {
            // SAFETY: the caller's promise.
            unsafe {
                match count - at {
                    1 => tile::<BITS, BLOCK, 1, 1>(&task, lane, sums),
                    2 => tile::<BITS, BLOCK, 2, 1>(&task, lane, sums),
                    3 => tile::<BITS, BLOCK, 3, 1>(&task, lane, sums),
                    _ => tile::<BITS, BLOCK, 4, 1>(&task, lane, sums),
                }
            }
        }
    }
}

/// `R` rows of activations times `8 · H` rows of weights from `lane` on. `BLOCK` is the block's length if it is known
/// when compiling, or 0.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const BITS: usize, const BLOCK: usize, const R: usize, const H: usize>(
    task: &Task<'_>,
    lane: usize,
    sums: &mut [[f32; GROUP]],
) {
    let format = task.format;
    let block = if BLOCK == 0 { format.block } else { BLOCK };
    // Columns in 64 bytes of codes, and how many such steps the sums in 16 bits last.
    let step = 32 / BITS;
    let run = (32 / step).min(block / step);
    let nibble = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    let codes = task.group.wrapping_add(4 * lane);
    let scales = task.group.wrapping_add(format.scales_at);
    let zeros = task.group.wrapping_add(format.zeros_at + lane);
    let x: [*const i8; R] =
        std::array::from_fn(|r| task.activations.codes.as_ptr().wrapping_add((task.first + r) * format.padded()));
    let x_scales = task.activations.scales.as_ptr().wrapping_add(task.first * format.blocks);
    let starts = task.activations.starts.as_ptr().wrapping_add(task.first * format.blocks);
    let mut totals = [[_mm256_setzero_ps(); H]; R];
    for b in 0..format.blocks {
        let codes = codes.wrapping_add(b * (GROUP * BITS / 8) * block);
        let mut dots = [[_mm256_setzero_si256(); H]; R];
        for (r, dots) in dots.iter_mut().enumerate() {
            // SAFETY: a block of a row that is there.
            *dots = [_mm256_set1_epi32(unsafe { *starts.add(r * format.blocks + b) }); H];
        }
        if format.zero_points {
            for h in 0..H {
                // SAFETY: the group's zero points are 16 bytes a block.
                let zeros = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(zeros.add(b * GROUP + 8 * h).cast())) };
                for dots in &mut dots {
                    dots[h] = _mm256_mullo_epi32(dots[h], zeros);
                }
            }
        }
        for from in (0..block / step).step_by(run) {
            let mut low_sums = [[_mm256_setzero_si256(); H]; R];
            let mut high_sums = [[_mm256_setzero_si256(); H]; R];
            for s in from..from + run {
                let at = b * block + s * step;
                for h in 0..H {
                    // SAFETY: the block's codes are 64 bytes a step, 32 for each half of the lanes.
                    let word = unsafe { _mm256_loadu_si256(codes.add(64 * s + 32 * h).cast()) };
                    let low = _mm256_and_si256(word, nibble);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(word), nibble);
                    for r in 0..R {
                        // SAFETY: the step's activations of a row that is there.
                        let (first, second) = unsafe {
                            match BITS {
                                4 => (four(x[r].add(at)), four(x[r].add(at + 4))),
                                _ => (four(x[r].add(at)), four(x[r].add(at))),
                            }
                        };
                        let (low, high) = (_mm256_maddubs_epi16(low, first), _mm256_maddubs_epi16(high, second));
                        low_sums[r][h] = _mm256_add_epi16(low_sums[r][h], low);
                        match BITS {
                            4 => low_sums[r][h] = _mm256_add_epi16(low_sums[r][h], high),
                            _ => high_sums[r][h] = _mm256_add_epi16(high_sums[r][h], high),
                        }
                    }
                }
            }
            for r in 0..R {
                for h in 0..H {
                    dots[r][h] = _mm256_add_epi32(dots[r][h], _mm256_madd_epi16(low_sums[r][h], ones));
                    if BITS == 8 {
                        let high = _mm256_slli_epi32::<4>(_mm256_madd_epi16(high_sums[r][h], ones));
                        dots[r][h] = _mm256_add_epi32(dots[r][h], high);
                    }
                }
            }
        }
        for h in 0..H {
            let at = b * GROUP + lane + 8 * h;
            // SAFETY: the group's scales are 32 or 64 bytes a block.
            let scale = unsafe {
                match format.half_scales {
                    true => _mm256_cvtph_ps(_mm_loadu_si128(scales.add(2 * at).cast())),
                    false => _mm256_loadu_ps(scales.add(4 * at).cast()),
                }
            };
            for r in 0..R {
                // SAFETY: a block of a row that is there.
                let x_scale = _mm256_set1_ps(unsafe { *x_scales.add(r * format.blocks + b) });
                let dot = _mm256_cvtepi32_ps(dots[r][h]);
                totals[r][h] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, x_scale), totals[r][h]);
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (h, total) in totals.into_iter().enumerate() {
            let place = &mut sums[lane + 8 * h..][..8];
            // SAFETY: eight floats.
            unsafe { _mm256_storeu_ps(place.as_mut_ptr(), total) };
        }
    }
}

/// Four activations in every lane.
///
/// # Safety
/// Four bytes may be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(x: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}
