//! Arithmetic of the fused operators, a row at a time: plain loops in lanes of a fixed number, so that every processor
//! gives the same bits, compiled once more for processors with AVX2.

/// Lanes in which sums are kept, whatever the registers' width.
const LANES: usize = 16;

/// Calls the function's version for processors with AVX2 and FMA where this is one.
macro_rules! dispatched {
    ($(#[$doc:meta])* $name:ident, $fast:ident, $plain:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?) => {
        $(#[$doc])*
        pub fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                // SAFETY: the processor has these features.
                return unsafe { $fast($($argument),*) };
            }
            $plain($($argument),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $fast($($argument: $type),*) $(-> $result)? {
            $plain($($argument),*)
        }
    };
}

dispatched! {
    /// `out = silu(gate) · up`, over the shortest of the three.
    gated, gated_avx2, gated_plain(gate: &[f32], up: &[f32], out: &mut [f32])
}

#[inline(always)]
fn gated_plain(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

dispatched! {
    /// `out = x / √(mean of x² + epsilon) · weight`.
    rms_norm, rms_norm_avx2, rms_norm_plain(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32])
}

#[inline(always)]
fn rms_norm_plain(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = inverse_rms(x, epsilon);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

dispatched! {
    /// `sum = x + skip`, and its [`rms_norm`] into `out`.
    add_norm, add_norm_avx2, add_norm_plain(
        x: &[f32], skip: &[f32], weight: &[f32], epsilon: f32, sum: &mut [f32], out: &mut [f32]
    )
}

#[inline(always)]
fn add_norm_plain(x: &[f32], skip: &[f32], weight: &[f32], epsilon: f32, sum: &mut [f32], out: &mut [f32]) {
    for ((sum, x), skip) in sum.iter_mut().zip(x).zip(skip) {
        *sum = x + skip;
    }
    rms_norm_plain(sum, weight, epsilon, out);
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = x.mul_add(*x, *lane);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.mul_add(*x, *lane);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    1.0 / (lanes[0] / x.len() as f32 + epsilon).sqrt()
}

/// eˣ within a few units of the last place from −87 to 88, and beyond as there: 2ⁿ · e^r with |r| ≤ ln 2 / 2 (the
/// reduction of Cody and Waite, "Software Manual for the Elementary Functions", 1980), e^r by its Taylor series.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let series = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let power = series.into_iter().fold(0.0_f32, |sum, term| sum.mul_add(r, term));
    let exponent = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32).wrapping_add(127);
    power * f32::from_bits((exponent as u32) << 23)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| random.random_range(-3.0..3.0)).collect()
    }

    #[test]
    fn rows_are_what_their_formulas_say() {
        for count in [1, 15, 16, 100, 128, 2560] {
            let (x, skip, weight) = (numbers(1, count), numbers(2, count), numbers(3, count));
            let (mut sum, mut out) = (vec![0.0; count], vec![0.0; count]);
            add_norm(&x, &skip, &weight, 1e-6, &mut sum, &mut out);
            let exact: Vec<f64> = x.iter().zip(&skip).map(|(x, skip)| f64::from(x + skip)).collect();
            let mean = exact.iter().map(|x| x * x).sum::<f64>() / count as f64;
            for place in 0..count {
                let expected = exact[place] / (mean + 1e-6).sqrt() * f64::from(weight[place]);
                assert_eq!(f64::from(sum[place]), exact[place]);
                assert!((f64::from(out[place]) - expected).abs() <= 1e-5 * expected.abs().max(1e-3));
            }
            let mut normed = vec![0.0; count];
            rms_norm(&sum, &weight, 1e-6, &mut normed);
            assert_eq!(normed, out);
            gated(&x, &skip, &mut out);
            for place in 0..count {
                let gate = f64::from(x[place]);
                let expected = gate / (1.0 + (-gate).exp()) * f64::from(skip[place]);
                assert!((f64::from(out[place]) - expected).abs() <= 1e-6 * expected.abs() + 1e-37);
            }
        }
    }

    #[test]
    fn the_plain_versions_give_the_same_bits() {
        let (x, up) = (numbers(4, 333), numbers(5, 333));
        let (mut fast, mut plain) = (vec![0.0; 333], vec![0.0; 333]);
        gated(&x, &up, &mut fast);
        gated_plain(&x, &up, &mut plain);
        assert_eq!(fast, plain);
        rms_norm(&x, &up, 1e-6, &mut fast);
        rms_norm_plain(&x, &up, 1e-6, &mut plain);
        assert_eq!(fast, plain);
    }
}
