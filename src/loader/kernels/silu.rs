//! The gate of an expert: `silu(gate) · up`, to the same last bit whichever instructions compute it.

use super::layout::GROUP;
use super::tile::Version;
use crate::runtime::custom::math::exp;

/// For each of a group's eight pairs of a gate (even) and an up projection (odd) `silu(gate) · up`.
pub(super) fn gate(version: Version, pairs: &[f32; GROUP], out: &mut [f32]) {
    let values = match version {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the version was chosen because the processor has these features.
        Version::Avx2 | Version::Avx512 => unsafe { gate_avx2(pairs) },
        _ => gate_plain(pairs),
    };
    // The last group may be partly padding.
    let count = out.len().min(values.len());
    out[..count].copy_from_slice(&values[..count]);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn gate_avx2(pairs: &[f32; GROUP]) -> [f32; GROUP / 2] {
    gate_plain(pairs)
}

#[inline(always)]
fn gate_plain(pairs: &[f32; GROUP]) -> [f32; GROUP / 2] {
    let mut out = [0.0; GROUP / 2];
    for (out, [gate, up]) in out.iter_mut().zip(pairs.as_chunks::<2>().0) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_is_within_a_few_units_of_the_last_place() {
        for step in -4000..4000 {
            let x = step as f32 * 0.02;
            let mut pairs = [0.0; GROUP];
            (pairs[0], pairs[1]) = (x, 1.5);
            let expected = f64::from(x) / (1.0 + (-f64::from(x)).exp()) * 1.5;
            for version in Version::all() {
                let mut out = [0.0; 8];
                gate(version, &pairs, &mut out);
                let error = (f64::from(out[0]) - expected).abs();
                assert!(error <= expected.abs() * 1e-6 + 1e-37, "silu({x}) · 1.5 = {} against {expected}", out[0]);
                assert_eq!(out[0].to_bits(), gate_plain(&pairs)[0].to_bits());
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let mut pairs = [0.0; GROUP];
        (pairs[0], pairs[3]) = (f32::NAN, f32::NAN);
        let out = gate_plain(&pairs);
        assert!(out[0].is_nan() && out[1].is_nan() && out[2] == 0.0);
    }
}
