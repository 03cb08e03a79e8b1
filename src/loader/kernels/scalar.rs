//! A tile in plain Rust: for processors without AVX2, and the plainest statement of what the others compute.

use half::f16;

use super::activations::Activations;
use super::layout::{Format, GROUP};
use super::tile::Sums;

pub(super) fn compute(
    format: &Format,
    group: &[u8],
    activations: &Activations,
    first: usize,
    count: usize,
    sums: &mut Sums,
) {
    let (codes, scales) = (&group[..format.scales_at], &group[format.scales_at..]);
    for (row, sums) in (first..first + count).zip(sums) {
        *sums = [0.0; GROUP];
        let x = &activations.codes[row * format.padded()..][..format.padded()];
        for b in 0..format.blocks {
            let start = activations.starts[row * format.blocks + b];
            let mut dots = [start; GROUP];
            if format.zero_points {
                let zeros = &group[format.zeros_at + b * GROUP..][..GROUP];
                dots = std::array::from_fn(|lane| start * i32::from(zeros[lane]));
            }
            let codes = &codes[b * format.block_bytes..][..format.block_bytes];
            let x = &x[b * format.block..][..format.block];
            match format.bits {
                4 => add_nibbles(codes, x, &mut dots),
                _ => add_bytes(codes, x, &mut dots),
            }
            let x_scale = activations.scales[row * format.blocks + b];
            for lane in 0..GROUP {
                let scale = scale(format, scales, b * GROUP + lane) * x_scale;
                sums[lane] = (dots[lane] as f32).mul_add(scale, sums[lane]);
            }
        }
    }
}

fn add_nibbles(codes: &[u8], x: &[i8], dots: &mut [i32; GROUP]) {
    for (codes, x) in codes.as_chunks::<64>().0.iter().zip(x.as_chunks::<8>().0) {
        for (codes, dot) in codes.as_chunks::<4>().0.iter().zip(&mut *dots) {
            for at in 0..4 {
                let (low, high) = (i32::from(codes[at] & 15), i32::from(codes[at] >> 4));
                *dot += low * i32::from(x[at]) + high * i32::from(x[at + 4]);
            }
        }
    }
}

fn add_bytes(codes: &[u8], x: &[i8], dots: &mut [i32; GROUP]) {
    for (codes, x) in codes.as_chunks::<64>().0.iter().zip(x.as_chunks::<4>().0) {
        for (codes, dot) in codes.as_chunks::<4>().0.iter().zip(&mut *dots) {
            *dot += (0..4).map(|at| i32::from(codes[at]) * i32::from(x[at])).sum::<i32>();
        }
    }
}

fn scale(format: &Format, scales: &[u8], at: usize) -> f32 {
    match format.half_scales {
        true => f16::from_le_bytes([scales[2 * at], scales[2 * at + 1]]).to_f32(),
        false => f32::from_le_bytes([0, 1, 2, 3].map(|part| scales[4 * at + part])),
    }
}
