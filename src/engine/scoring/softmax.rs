//! Log-probabilities from logits. A vocabulary of 150,000 is gone through once a token that is scored, so the loops are
//! written to become vector instructions.

use crate::error::{Error, Result};

/// Independent sums in flight.
const LANES: usize = 16;

/// Single-precision sums are carried on in double precision after so many terms.
const BLOCK: usize = 4096;

/// The normaliser of a row of logits: log-probability = logit − `log_sum`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normaliser {
    /// The largest logit.
    pub max: f32,
    /// ln Σ exp(logit).
    pub log_sum: f64,
}

impl Normaliser {
    /// Goes through the logits twice: for the largest, and for the sum.
    ///
    /// # Errors
    /// Logits that are not finite, or none.
    pub fn of(logits: &[f32]) -> Result<Self> {
        let max = largest(logits)?;
        let sum: f64 = logits.chunks(BLOCK).map(|block| f64::from(sum_of_exponentials(block, max))).sum();
        Ok(Self { max, log_sum: f64::from(max) + sum.ln() })
    }

    /// The log-probability of a logit, in nats.
    pub fn log_probability(&self, logit: f32) -> f64 {
        f64::from(logit) - self.log_sum
    }
}

fn largest(logits: &[f32]) -> Result<f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut taint = [0.0_f32; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            // Zero for every finite number, NaN for the others.
            taint[lane] += chunk[lane] * 0.0;
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        lanes[lane] = lanes[lane].max(logit);
        taint[lane] += logit * 0.0;
    }
    let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if max.is_finite() && taint.iter().all(|lane| !lane.is_nan()) {
        return Ok(max);
    }
    Err(Error::invalid("the logits are not finite").hint("the provider or the precision produced NaN or infinity"))
}

fn sum_of_exponentials(logits: &[f32], max: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += exp_of_negative(chunk[lane] - max);
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        lanes[lane] += exp_of_negative(logit - max);
    }
    lanes.into_iter().sum()
}

/// e to the power of `x` for `x` ≤ 0, with a relative error below 2·10⁻⁷ (below 1.6·10⁻³⁸ it gives that): a power of two
/// times the Taylor polynomial of what is left, which is within ± ln 2 ÷ 2.
#[inline(always)]
pub fn exp_of_negative(x: f32) -> f32 {
    // Adding and subtracting this rounds to a whole number, without a call.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let power = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let rest = x - power * LN2_HIGH - power * LN2_LOW;
    let polynomial = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
        .into_iter()
        .fold(0.0_f32, |sum, factor| sum * rest + factor);
    polynomial * f32::from_bits(((power as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_library() {
        for step in 0..87_000 {
            let x = -(step as f32) / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_of_negative(x)) / exact - 1.0).abs();
            assert!(error < 2e-7, "e^{x}: relative error {error}");
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert!(exp_of_negative(-1e9) < 1e-37);
    }

    #[test]
    fn normalisers_are_those_of_double_precision() {
        for count in [1, 15, 16, 17, 5000, 151_936] {
            let logits: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin() * 12.0 - 40.0).collect();
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
            let found = Normaliser::of(&logits).unwrap();
            assert_eq!(found.max, max);
            assert!((found.log_sum - (f64::from(max) + sum.ln())).abs() < 1e-6, "{count}");
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        assert!(Normaliser::of(&[]).is_err());
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![0.5_f32; 40];
            for place in [0, 20, 39] {
                logits[place] = wrong;
                assert!(Normaliser::of(&logits).is_err(), "{wrong} at {place}");
                logits[place] = 0.5;
            }
        }
    }
}
