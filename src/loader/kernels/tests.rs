//! The kernels against plain sums, and against each other.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::experts::experts_with;
use super::layout::{check, half_scales_lose_nothing, pack, packed_bytes, unpack};
use super::product::multiply_with;
use super::tile::Version;
use super::{Share, down_offset, expert_bytes};
use crate::package::shards::NBits;
use crate::runtime::custom::Parallel;

struct Serial;

impl Parallel for Serial {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(task);
    }

    fn threads(&self) -> usize {
        1
    }
}

/// Rayon's threads, however many tasks a product is cut into for this number.
struct Threads(usize);

impl Parallel for Threads {
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        use rayon::prelude::*;
        (0..count).into_par_iter().for_each(task);
    }

    fn threads(&self) -> usize {
        self.0
    }
}

/// A matrix as ONNX has it.
struct Onnx {
    shape: NBits,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<Vec<u8>>,
}

impl Onnx {
    fn random(shape: NBits, random: &mut ChaCha8Rng) -> Self {
        let blocks = shape.blocks();
        let bits = usize::from(shape.bits);
        let codes = (0..shape.rows * blocks * shape.block * bits / 8).map(|_| random.random()).collect();
        let scale = |random: &mut ChaCha8Rng| {
            let scale = random.random_range(-0.1_f32..0.1);
            if shape.half_scales { half::f16::from_f32(scale).to_f32() } else { scale }
        };
        let scales = (0..shape.rows * blocks).map(|_| scale(random)).collect();
        let row = (blocks * bits).div_ceil(8);
        let mut zeros: Vec<u8> = (0..shape.rows * row).map(|_| random.random()).collect();
        if shape.bits == 4 && blocks % 2 == 1 {
            // The nibble that fills up a row.
            zeros.chunks_exact_mut(row).for_each(|row| *row.last_mut().unwrap() &= 15);
        }
        Self { shape, codes, scales, zeros: shape.zero_points.then_some(zeros) }
    }

    fn pack(&self) -> Vec<u8> {
        let mut packed = vec![0xaa; packed_bytes(&self.shape)];
        pack(&self.shape, &self.codes, &self.scales, self.zeros.as_deref(), &mut packed).unwrap();
        packed
    }

    /// W[n, k].
    fn weight(&self, n: usize, k: usize) -> f64 {
        let NBits { block, bits, .. } = self.shape;
        let blocks = self.shape.blocks();
        let nibble = |bytes: &[u8], at: usize| (bytes[at / 2] >> (4 * (at % 2))) & 15;
        let b = k / block;
        let (code, zero) = match bits {
            4 => {
                let row = &self.zeros.as_ref().map(|zeros| &zeros[n * blocks.div_ceil(2)..]);
                (nibble(&self.codes, n * blocks * block + k), row.map_or(8, |row| nibble(row, b)))
            }
            _ => (self.codes[n * blocks * block + k], self.zeros.as_ref().map_or(128, |zeros| zeros[n * blocks + b])),
        };
        (f64::from(code) - f64::from(zero)) * f64::from(self.scales[n * blocks + b])
    }

    /// What `multiply` computes, in double precision, on activations rounded as it rounds them.
    fn product(&self, x: &[f32]) -> Vec<f64> {
        let NBits { rows, columns, block, .. } = self.shape;
        let mut out = Vec::new();
        for x in x.chunks_exact(columns) {
            let rounded: Vec<f64> = x.chunks(block).flat_map(rounded).collect();
            out.extend((0..rows).map(|n| (0..columns).map(|k| rounded[k] * self.weight(n, k)).sum::<f64>()));
        }
        out
    }
}

/// A block of activations in 8 bits and back.
fn rounded(x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let code = |value: &f32| if !scale.is_normal() { 0.0 } else { (value * (127.0 / largest)).round_ties_even() };
    x.iter().map(|value| f64::from(code(value)) * f64::from(scale)).collect()
}

fn shapes() -> impl Strategy<Value = NBits> {
    let block = prop::sample::select(vec![16, 32, 64, 128]);
    let bits = prop::sample::select(vec![4, 8]);
    (1..70_usize, 1..400_usize, block, bits, any::<bool>(), any::<bool>()).prop_map(
        |(rows, columns, block, bits, zero_points, half_scales)| NBits {
            rows,
            columns,
            block,
            bits,
            zero_points,
            half_scales,
        },
    )
}

fn numbers(count: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-3.0..3.0)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn product(version: Version, matrix: &Onnx, packed: &[u8], x: &[f32], parallel: &dyn Parallel) -> Vec<f32> {
    let mut out = vec![f32::INFINITY; x.len() / matrix.shape.columns * matrix.shape.rows];
    multiply_with(version, &matrix.shape, packed, x, &mut out, parallel);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_are_those_of_plain_sums_and_the_same_to_the_last_bit(
        shape in shapes(), rows in 1..21_usize, seed: u64, threads in 1..5_usize, shift in 0..64_usize,
    ) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let matrix = Onnx::random(shape, &mut random);
        let x = numbers(rows * shape.columns, &mut random);
        // Packed bytes may lie anywhere.
        let packed = [vec![0; shift], matrix.pack()].concat();
        let packed = &packed[shift..];

        let out = product(Version::Scalar, &matrix, packed, &x, &Serial);
        let bound = |m: usize| x[m * shape.columns..][..shape.columns].iter().map(|x| f64::from(x.abs())).sum::<f64>();
        for (at, (found, expected)) in out.iter().zip(matrix.product(&x)).enumerate() {
            let tolerance = 1e-6 * 25.5 * bound(at / shape.rows);
            prop_assert!((f64::from(*found) - expected).abs() <= tolerance, "{found} against {expected}");
        }
        for version in Version::all() {
            let parallel = Threads(threads);
            prop_assert_eq!(bits(&product(version, &matrix, packed, &x, &parallel)), bits(&out), "{:?}", version);
            for (x, out) in x.chunks_exact(shape.columns).zip(out.chunks_exact(shape.rows)) {
                prop_assert_eq!(bits(&product(version, &matrix, packed, x, &parallel)), bits(out), "{:?}", version);
            }
        }
    }

    #[test]
    fn unpacking_gives_what_was_packed(shape in shapes(), seed: u64) {
        let matrix = Onnx::random(shape, &mut ChaCha8Rng::seed_from_u64(seed));
        let packed = matrix.pack();
        prop_assert_eq!(packed.len() % 64, 0);
        let (codes, scales, zeros) = unpack(&shape, &packed);
        prop_assert_eq!(codes, matrix.codes);
        prop_assert_eq!(bits(&scales), bits(&matrix.scales));
        prop_assert_eq!(zeros, matrix.zeros);
    }

    #[test]
    fn bands_of_rows_packed_apart_are_the_matrix_packed_whole(
        (shape, cut) in shapes().prop_flat_map(|shape| {
            let shape = NBits { rows: shape.rows + 16, ..shape };
            (Just(shape), 1..shape.rows.div_ceil(16))
        }),
        seed: u64,
    ) {
        let matrix = Onnx::random(shape, &mut ChaCha8Rng::seed_from_u64(seed));
        let cut = 16 * cut;
        let (first, second) = (NBits { rows: cut, ..shape }, NBits { rows: shape.rows - cut, ..shape });
        let mut packed = vec![0; packed_bytes(&shape)];
        let (one, two) = packed.split_at_mut(packed_bytes(&first));
        for (shape, from, into) in [(first, 0, one), (second, cut, two)] {
            let Onnx { codes, scales, zeros, .. } = &matrix;
            let rows = matrix.shape.rows;
            let part = |length: usize| from * length / rows..(from + shape.rows) * length / rows;
            let zeros = zeros.as_ref().map(|zeros| &zeros[part(zeros.len())]);
            pack(&shape, &codes[part(codes.len())], &scales[part(scales.len())], zeros, into)?;
        }
        prop_assert_eq!(packed, matrix.pack());
    }

    #[test]
    fn experts_are_two_products_with_a_gate_between(
        hidden in 1..90_usize, intermediate in 1..60_usize, block in prop::sample::select(vec![16, 32, 128]),
        width in prop::sample::select(vec![4, 8]), rows in 1..12_usize, seed: u64,
    ) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let shape = |rows, columns| NBits { rows, columns, block, bits: width, zero_points: false, half_scales: true };
        let (gate_up, down) = (shape(2 * intermediate, hidden), shape(hidden, intermediate));
        let x = numbers(rows * hidden, &mut random);
        let records: Vec<_> = (0..3)
            .map(|_| [gate_up, down].map(|shape| Onnx::random(shape, &mut random)))
            .map(|pair| ([pair[0].pack(), pair[1].pack()].concat(), pair))
            .collect();
        let every: Vec<usize> = (0..rows).collect();
        let mut outs = Vec::new();
        for (record, [first, second]) in &records {
            prop_assert_eq!((record.len(), down_offset(&gate_up)), (expert_bytes(&gate_up, &down), first.pack().len()));
            let mut out = vec![f32::INFINITY; rows * hidden];
            let share = Share { record, rows: &every };
            experts_with(Version::Scalar, &gate_up, &down, &[share], &x, &mut out, &Serial);
            let pairs = product(Version::Scalar, first, &first.pack(), &x, &Serial);
            let gated = |pair: &[f32]| {
                let gate = f64::from(pair[0]);
                (gate / (1.0 + (-gate).exp()) * f64::from(pair[1])) as f32
            };
            let inner: Vec<f32> = pairs.chunks_exact(2).map(gated).collect();
            // The two gates differ in their last bits, so that a code may be rounded to the other side: one step of a
            // code for each of the block's activations at most.
            let largest = inner.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let reach = if width == 4 { 0.8 } else { 12.8 };
            let tolerance = 1e-4 + f64::from(largest) * reach * (0.1 / 127.0 + 1e-5 * intermediate as f64);
            for (found, expected) in out.iter().zip(second.product(&inner)) {
                prop_assert!((f64::from(*found) - expected).abs() <= tolerance, "{found} against {expected}");
            }
            for version in Version::all() {
                let mut again = vec![0.0; rows * hidden];
                experts_with(version, &gate_up, &down, &[share], &x, &mut again, &Threads(3));
                prop_assert_eq!(bits(&again), bits(&out), "{:?}", version);
            }
            outs.push(out);
        }
        // Each expert on rows of its own, one of them on none, in one call.
        let chosen: [Vec<usize>; 3] = [every.iter().rev().step_by(2).copied().collect(), vec![], vec![rows / 2, rows / 2]];
        let shares: Vec<Share<'_>> =
            records.iter().zip(&chosen).map(|((record, _), rows)| Share { record, rows }).collect();
        for version in Version::all() {
            let mut out = vec![f32::INFINITY; chosen.iter().flatten().count() * hidden];
            experts_with(version, &gate_up, &down, &shares, &x, &mut out, &Threads(2));
            let each = outs.iter().zip(&chosen).flat_map(|(out, rows)| rows.iter().map(move |row| &out[row * hidden..][..hidden]));
            prop_assert_eq!(bits(&out), bits(&each.collect::<Vec<_>>().concat()), "{:?}", version);
        }
    }
}

fn small(rows: usize, columns: usize) -> NBits {
    NBits { rows, columns, block: 32, bits: 4, zero_points: false, half_scales: false }
}

#[test]
fn extreme_codes_do_not_overflow() {
    for bits in [4, 8] {
        for block in [16, 32, 128, 1024, 16384] {
            for sign in [1.0, -1.0] {
                let shape = NBits { rows: 16, columns: block, block, bits, zero_points: true, half_scales: false };
                let codes = vec![0xff; 16 * block * usize::from(bits) / 8];
                let zeros = vec![0; 16];
                let matrix = Onnx { shape, codes, scales: vec![1.0; 16], zeros: Some(zeros) };
                let x = vec![sign; block];
                let expected = f64::from(sign) * block as f64 * f64::from((1_u32 << bits) - 1);
                for version in Version::all() {
                    let out = product(version, &matrix, &matrix.pack(), &x, &Serial);
                    assert!(
                        out.iter().all(|&out| (f64::from(out) / expected - 1.0).abs() < 1e-6),
                        "{version:?} {out:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn zeros_give_zeros_and_what_is_not_finite_gives_nan() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let shape = small(40, 96);
    let matrix = Onnx::random(shape, &mut random);
    let packed = matrix.pack();
    let normal = numbers(96, &mut random);
    for version in Version::all() {
        let zeros = product(version, &matrix, &packed, &[0.0; 96], &Serial);
        assert!(zeros.iter().all(|&out| out == 0.0));
        let tiny = product(version, &matrix, &packed, &[f32::from_bits(3); 96], &Serial);
        assert!(tiny.iter().all(|out| out.abs() < 1e-36));
        let huge = product(version, &matrix, &packed, &[f32::MAX; 96], &Serial);
        assert!(huge.iter().all(|out| !out.is_nan()));
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = normal.clone();
            x[40] = wrong;
            // The other rows of the same call are not touched.
            let out = product(version, &matrix, &packed, &[x, normal.clone()].concat(), &Serial);
            assert!(out[..40].iter().all(|out| out.is_nan()), "{version:?} with {wrong}");
            assert_eq!(bits(&out[40..]), bits(&product(version, &matrix, &packed, &normal, &Serial)));
        }
    }
}

#[test]
fn nothing_to_multiply_is_no_work() {
    let matrix = Onnx::random(small(3, 32), &mut ChaCha8Rng::seed_from_u64(1));
    assert!(product(Version::best(), &matrix, &matrix.pack(), &[], &Serial).is_empty());
}

#[test]
fn packing_refuses_what_does_not_fit() {
    let matrix = Onnx::random(small(20, 50), &mut ChaCha8Rng::seed_from_u64(1));
    let Onnx { shape, codes, scales, .. } = &matrix;
    let bytes = packed_bytes(shape);
    let refused = |shape: NBits, codes: &[u8], scales: &[f32], zeros: Option<&[u8]>, bytes: usize| {
        pack(&shape, codes, scales, zeros, &mut vec![0; bytes]).unwrap_err().to_string()
    };
    let zeros = Some(&[0_u8; 20][..]);
    let (zeroed, halved) = (NBits { zero_points: true, ..*shape }, NBits { half_scales: true, ..*shape });
    insta::assert_snapshot!([
        refused(*shape, &codes[1..], scales, None, bytes),
        refused(*shape, codes, &scales[1..], None, bytes),
        refused(*shape, codes, scales, None, bytes - 1),
        refused(*shape, codes, scales, zeros, bytes),
        refused(zeroed, codes, scales, None, packed_bytes(&zeroed)),
        refused(halved, codes, scales, None, packed_bytes(&halved)),
        refused(NBits { bits: 2, ..*shape }, codes, scales, None, 0),
        refused(NBits { block: 48, ..*shape }, codes, scales, None, 0),
        refused(NBits { block: 0, ..*shape }, codes, scales, None, 0),
        refused(NBits { rows: 0, ..*shape }, codes, scales, None, 0),
        refused(NBits { columns: usize::MAX, ..*shape }, codes, scales, None, 0),
    ]
    .join("\n"), @r"
    a 20 × 50 matrix has 640 codes, not 639
    a 20 × 50 matrix has 40 scales, not 39
    a 20 × 50 matrix has 1280 packed bytes, not 1279
    a 20 × 50 matrix has 0 bytes of zero points, not 20
    a 20 × 50 matrix has 20 bytes of zero points, not 0
    scales do not fit into two bytes without loss
    a quantized matrix cannot have codes of 2 bits: only 4 and 8
    a quantized matrix cannot have blocks of 48: only powers of two from 16 to 16384
    a quantized matrix cannot have blocks of 0: only powers of two from 16 to 16384
    a quantized matrix cannot have 0 rows and 50 columns
    a quantized matrix cannot have 20 rows and 18446744073709551615 columns
    ");
    assert!(check(shape).is_ok());
}

#[test]
fn two_bytes_hold_what_came_from_two_bytes() {
    assert!(half_scales_lose_nothing(&[0.0, -0.0, 0.5, 65504.0, half::f16::from_bits(1).to_f32()]));
    for lost in [1.0 / 3.0, 65536.0, 1e-9] {
        assert!(!half_scales_lose_nothing(&[1.0, lost]));
    }
}
