//! A tile with AVX-512 VNNI: one instruction multiplies four codes of each of 16 rows by four activations and adds.

use std::arch::x86_64::*;

use super::layout::GROUP;
use super::tile::{Sums, Task};

/// # Safety
/// The processor has the features; the task's pointers are as long as its format says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn by_rows<const BITS: usize, const BLOCK: usize>(task: &Task<'_>, count: usize, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        match count {
            1 => tile::<BITS, BLOCK, 1>(task, sums),
            2 => tile::<BITS, BLOCK, 2>(task, sums),
            3 => tile::<BITS, BLOCK, 3>(task, sums),
            4 => tile::<BITS, BLOCK, 4>(task, sums),
            5 => tile::<BITS, BLOCK, 5>(task, sums),
            6 => tile::<BITS, BLOCK, 6>(task, sums),
            7 => tile::<BITS, BLOCK, 7>(task, sums),
            _ => tile::<BITS, BLOCK, 8>(task, sums),
        }
    }
}

/// How far ahead codes are fetched into the cache, in bytes: a page, where the processor's own fetching stops.
const AHEAD: usize = 4096;

/// Up to so many rows the weights come from memory more slowly than they are computed on.
const ROWS_AHEAD: usize = 4;

/// `BLOCK` is the block's length if it is known when compiling, or 0.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const BITS: usize, const BLOCK: usize, const R: usize>(task: &Task<'_>, sums: &mut Sums) {
    let format = task.format;
    let block = if BLOCK == 0 { format.block } else { BLOCK };
    // Columns in 64 bytes of codes.
    let step = 32 / BITS;
    let nibble = _mm512_set1_epi8(15);
    let (codes, scales, zeros) =
        (task.group, task.group.wrapping_add(format.scales_at), task.group.wrapping_add(format.zeros_at));
    let x: [*const i8; R] =
        std::array::from_fn(|r| task.activations.codes.as_ptr().wrapping_add((task.first + r) * format.padded()));
    let x_scales = task.activations.scales.as_ptr().wrapping_add(task.first * format.blocks);
    let starts = task.activations.starts.as_ptr().wrapping_add(task.first * format.blocks);
    let mut totals = [_mm512_setzero_ps(); R];
    for b in 0..format.blocks {
        let codes = codes.wrapping_add(b * (GROUP * BITS / 8) * block);
        if R <= ROWS_AHEAD {
            // The next group's codes come after this one's scales and zero points. Past the last group the address is
            // nobody's, which a hint may be.
            let ahead = b * (GROUP * BITS / 8) * block + AHEAD;
            let ahead = if ahead < format.scales_at { ahead } else { ahead + format.group_bytes - format.scales_at };
            for line in 0..(GROUP * BITS / 8) * block / 64 {
                _mm_prefetch::<_MM_HINT_T0>(task.group.wrapping_add(ahead + 64 * line).cast());
            }
        }
        let mut dots = [_mm512_setzero_si512(); R];
        for (r, dot) in dots.iter_mut().enumerate() {
            // SAFETY: a block of a row that is there.
            *dot = _mm512_set1_epi32(unsafe { *starts.add(r * format.blocks + b) });
        }
        if format.zero_points {
            // SAFETY: the group's zero points are 16 bytes a block.
            let zeros = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.add(b * GROUP).cast())) };
            for dot in &mut dots {
                *dot = _mm512_mullo_epi32(*dot, zeros);
            }
        }
        for s in 0..block / step {
            // SAFETY: the block's codes are 64 bytes a step.
            let word = unsafe { _mm512_loadu_si512(codes.add(64 * s).cast()) };
            let at = b * block + s * step;
            if BITS == 4 {
                let low = _mm512_and_si512(word, nibble);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(word), nibble);
                for r in 0..R {
                    // SAFETY: eight activations of a row that is there.
                    let (first, second) = unsafe { (four(x[r].add(at)), four(x[r].add(at + 4))) };
                    dots[r] = _mm512_dpbusd_epi32(dots[r], low, first);
                    dots[r] = _mm512_dpbusd_epi32(dots[r], high, second);
                }
            } else {
                for r in 0..R {
                    // SAFETY: four activations of a row that is there.
                    dots[r] = _mm512_dpbusd_epi32(dots[r], word, unsafe { four(x[r].add(at)) });
                }
            }
        }
        // SAFETY: the group's scales are 32 or 64 bytes a block.
        let scale = unsafe {
            match format.half_scales {
                true => _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(b * GROUP * 2).cast())),
                false => _mm512_loadu_ps(scales.add(b * GROUP * 4).cast()),
            }
        };
        for r in 0..R {
            // SAFETY: a block of a row that is there.
            let x_scale = _mm512_set1_ps(unsafe { *x_scales.add(r * format.blocks + b) });
            totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), _mm512_mul_ps(scale, x_scale), totals[r]);
        }
    }
    for (sums, total) in sums.iter_mut().zip(totals) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
    }
}

/// Four activations in every lane.
///
/// # Safety
/// Four bytes may be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(x: *const i8) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}
