//! Scales of quantized caches: from values that were measured to numbers that a kernel multiplies with.
//!
//! Quantization is symmetric: `q = round(x / scale)`, to even, cut at the ends of the integers. A channel's scale is a
//! share of the largest magnitude that was measured ÷ the largest integer. Which share is measured too, for each tensor:
//! scales are made of one half of the sequences and tried on the other half, and the share of the least squared error is
//! taken. Of 8 bits it is more than the whole, since other tokens reach further and cutting them costs most; of 4 bits it
//! may be less, since sixteen steps that reach the largest value of thousands are coarse for all others.

use crate::error::{Error, Result};

/// Bits of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// A byte.
    Eight,
    /// Two elements a byte.
    Four,
}

impl Bits {
    /// Their number.
    pub fn count(self) -> u32 {
        match self {
            Self::Eight => 8,
            Self::Four => 4,
        }
    }

    /// The largest integer; the smallest one is one further from zero.
    fn most(self) -> f32 {
        match self {
            Self::Eight => 127.0,
            Self::Four => 7.0,
        }
    }

    /// What is tried of the largest magnitude.
    fn shares(self) -> &'static [f32] {
        match self {
            Self::Eight => &[1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0],
            Self::Four => &[0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5],
        }
    }

    /// The value that comes back for one that was stored.
    pub fn stored(self, value: f32, scale: f32) -> f32 {
        (value / scale).round_ties_even().clamp(-self.most() - 1.0, self.most()) * scale
    }
}

/// Which channels share a scale, and which two turn into each other.
#[derive(Debug, Clone)]
pub struct Channels {
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// How scales are shared.
    pub sharing: Sharing,
    /// For each channel of a head, the one that rotary embeddings turn it into at later positions: what one of them
    /// reaches, the other will. Itself where nothing turns.
    pub partner: Vec<usize>,
    /// How much larger than what was measured values may become.
    pub room: f32,
}

/// How scales are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Each channel of each head has its own.
    Channel,
    /// All have one.
    Tensor,
}

impl Channels {
    /// Scales of their own for all channels, none of which turns.
    pub fn new(heads: usize, width: usize, sharing: Sharing) -> Self {
        Self { heads, width, sharing, partner: (0..width).collect(), room: 1.0 }
    }

    /// Scales that there are.
    pub fn scales(&self) -> usize {
        match self.sharing {
            Sharing::Channel => self.heads * self.width,
            Sharing::Tensor => 1,
        }
    }

    /// The largest magnitude by scale.
    fn largest(&self, values: &[f32], tokens: usize) -> Vec<f32> {
        let mut largest = vec![0f32; self.scales()];
        for (head, row) in self.rows(values, tokens) {
            for (channel, value) in row.iter().enumerate() {
                let partner = self.partner[channel];
                let reach = if partner == channel { value.abs() } else { value.hypot(row[partner]) };
                let most = &mut largest[self.scale_of(head, channel)];
                *most = most.max(reach);
            }
        }
        largest
    }

    /// A scale with which that share of the largest magnitude is the largest integer.
    fn scale(&self, largest: f32, share: f32, bits: Bits) -> f32 {
        let scale = largest * self.room * share / bits.most();
        // Kernels divide by it; a channel that is always zero may have any.
        if scale > f32::MIN_POSITIVE { scale } else { 1.0 }
    }

    /// The sum of squared differences between values and what comes back of them.
    fn lost(&self, values: &[f32], tokens: usize, scales: &[f32], bits: Bits) -> f64 {
        let of_row = |(head, row): (usize, &[f32])| -> f64 {
            let of = |(channel, value): (usize, &f32)| {
                f64::from(value - bits.stored(*value, scales[self.scale_of(head, channel)])).powi(2)
            };
            row.iter().enumerate().map(of).sum()
        };
        self.rows(values, tokens).map(of_row).sum()
    }

    /// Each token of a head, with the number of the head.
    fn rows<'a>(&self, values: &'a [f32], tokens: usize) -> impl Iterator<Item = (usize, &'a [f32])> {
        let heads = self.heads;
        values.chunks_exact(self.width).enumerate().map(move |(row, values)| (row / tokens % heads, values))
    }

    fn scale_of(&self, head: usize, channel: usize) -> usize {
        match self.sharing {
            Sharing::Channel => head * self.width + channel,
            Sharing::Tensor => 0,
        }
    }
}

/// Scales, and what is lost with them.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// One for all that share it.
    pub values: Vec<f32>,
    /// Which share of the largest magnitude is the largest integer.
    pub share: f32,
    /// The sum of squared differences between values and what comes back of them with the scales of other sequences …
    pub lost: f64,
    /// … and of the squares of these values.
    pub of: f64,
}

impl Scales {
    /// Scales for values that were measured: sequences, heads, tokens, channels.
    ///
    /// # Errors
    /// Values that are not finite, or are no whole number of heads.
    pub fn measure(values: &[f32], tokens: usize, channels: &Channels, bits: Bits) -> Result<Self> {
        let (heads, width) = (channels.heads, channels.width);
        if values.is_empty() || !values.len().is_multiple_of((heads * tokens * width).max(1)) {
            return Err(Error::new("the values of a cache are no whole number of heads; this is a bug"));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::invalid("the model's cache holds values that are not finite")
                .hint("what cannot be run cannot be quantized: see whether the package itself works here"));
        }
        let (first, second) =
            values.split_at(values.len() / heads.max(1) / tokens / width / 2 * heads * tokens * width);
        // Of one sequence alone, what was measured is all that there is to try.
        let folds = if first.is_empty() { vec![(second, second)] } else { vec![(first, second), (second, first)] };
        let reached: Vec<Vec<f32>> = folds.iter().map(|(seen, _)| channels.largest(seen, tokens)).collect();
        let error = |share: f32| -> f64 {
            let of_fold = |(reached, (_, unseen)): (&Vec<f32>, &(&[f32], &[f32]))| {
                let scales: Vec<f32> = reached.iter().map(|largest| channels.scale(*largest, share, bits)).collect();
                channels.lost(unseen, tokens, &scales, bits)
            };
            reached.iter().zip(&folds).map(of_fold).sum()
        };
        let tried = bits.shares().iter().map(|share| (*share, error(*share)));
        let (share, lost) = tried.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((1.0, 0.0));
        let values_of = channels.largest(values, tokens);
        let of = folds.iter().flat_map(|(_, unseen)| *unseen).map(|value| f64::from(*value).powi(2)).sum();
        Ok(Self {
            values: values_of.into_iter().map(|most| channels.scale(most, share, bits)).collect(),
            share,
            lost,
            of,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channels(sharing: Sharing) -> Channels {
        Channels::new(2, 4, sharing)
    }

    /// Two sequences of two heads of three tokens of four channels.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(prop_oneof![-10_f32..10.0, Just(0.0)], 2 * 2 * 3 * 4)
    }

    proptest! {
        #[test]
        fn of_8_bits_what_was_measured_comes_back_within_half_a_step(values in values(), tensor in any::<bool>()) {
            let channels = channels(if tensor { Sharing::Tensor } else { Sharing::Channel });
            let scales = Scales::measure(&values, 3, &channels, Bits::Eight).unwrap();
            prop_assert_eq!(scales.values.len(), channels.scales());
            prop_assert!(scales.values.iter().all(|scale| *scale > 0.0 && scale.is_finite()));
            for (head, row) in channels.rows(&values, 3) {
                for (channel, value) in row.iter().enumerate() {
                    let scale = scales.values[channels.scale_of(head, channel)];
                    let back = Bits::Eight.stored(*value, scale);
                    prop_assert!((value - back).abs() <= scale * 0.5001, "{} became {}", value, back);
                    // What was stored once stays.
                    prop_assert!((Bits::Eight.stored(back, scale) - back).abs() <= back.abs() * 1e-6);
                }
            }
        }

        #[test]
        fn of_4_bits_nothing_grows_beyond_its_integers(values in values()) {
            let channels = channels(Sharing::Channel);
            let scales = Scales::measure(&values, 3, &channels, Bits::Four).unwrap();
            for (head, row) in channels.rows(&values, 3) {
                for (channel, value) in row.iter().enumerate() {
                    let scale = scales.values[channels.scale_of(head, channel)];
                    let integer = Bits::Four.stored(*value, scale) / scale;
                    prop_assert!((-8.001..7.001).contains(&integer) && (integer - integer.round()).abs() < 1e-4);
                }
            }
            prop_assert!(scales.lost >= 0.0 && scales.of >= 0.0);
        }
    }

    #[test]
    fn a_scale_leaves_room_for_what_the_other_half_reaches() {
        // The second sequence reaches twice as far.
        let values: Vec<f32> =
            (0..48).map(|at| if at < 24 { 1.0 } else { 2.0 } * if at % 2 == 0 { 1.0 } else { -0.9 }).collect();
        let channels = channels(Sharing::Channel);
        let scales = Scales::measure(&values, 3, &channels, Bits::Eight).unwrap();
        assert_eq!(scales.share, 2.0);
        assert!(scales.values.iter().step_by(2).all(|scale| (scale - 2.0 * 2.0 / 127.0).abs() < 1e-6));
    }

    #[test]
    fn channels_that_turn_into_each_other_have_the_length_of_both() {
        let mut channels = Channels::new(1, 4, Sharing::Channel);
        channels.partner = vec![2, 1, 0, 3];
        let row = [3.0, 1.0, 4.0, 2.0];
        let scales = Scales::measure(&[row, row].concat(), 1, &channels, Bits::Eight).unwrap();
        let reach: Vec<f32> = scales.values.iter().map(|scale| (scale * 127.0 / scales.share).round()).collect();
        assert_eq!(reach, [5.0, 1.0, 5.0, 2.0]);
    }

    #[test]
    fn what_is_no_cache_is_refused() {
        let channels = channels(Sharing::Channel);
        for values in [Vec::new(), vec![1.0; 25]] {
            assert!(Scales::measure(&values, 3, &channels, Bits::Eight).is_err());
        }
        let error = Scales::measure(&[f32::NAN; 24], 3, &channels, Bits::Eight).unwrap_err();
        assert!(error.chain().contains("not finite"), "{}", error.chain());
        // Channels that are always zero.
        let scales = Scales::measure(&[0.0; 24], 3, &channels, Bits::Four).unwrap();
        assert!(scales.values.iter().all(|scale| *scale == 1.0) && scales.lost == 0.0);
    }
}
