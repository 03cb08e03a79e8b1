//! What waits on disk in fewer bytes: compressed without loss, or floats as integers of 8 bits.
//!
//! Floats hardly compress as they are. Their bytes do where each stands with its like: signs and exponents of neighbours
//! are similar, the rest is noise and stays as it is (`planes`). With loss, groups of floats become integers of 8 bits
//! and a scale, of which the largest becomes 127: what comes back and is stored again is the same then.

use half::f16;

use crate::cell::named_enum;
use crate::error::{Context, Error, Result};
use crate::loader::codec;
use crate::package::shards;

named_enum! {
    /// How what waits on disk is stored.
    SpillCodec {
        /// As it is.
        None => "none",
        /// LZ4.
        Lz4 => "lz4",
        /// Zstandard.
        Zstd => "zstd",
        /// Bytes of equal significance together, each such plane Zstandard where it shrinks.
        Planes => "planes",
        /// Floats as 8 bits and a scale a group; what is no float, `planes`.
        Int8 => "int8",
    }
}

/// Zstandard's level: what waits is written and read in every step.
const LEVEL: i32 = 1;

/// Larger magnitudes, as masks have them, are not rounded.
const LARGEST: f32 = 1e30;

/// What bytes are, and how they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// How.
    pub codec: SpillCodec,
    /// Bytes of an element.
    pub size: usize,
    /// Elements that share a scale; `None` where elements are no floats, or must come back as they were.
    pub group: Option<usize>,
}

/// How a stripe of bytes was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As it was.
    Plain,
    /// As Zstandard or LZ4.
    Whole(shards::Codec),
    /// In planes.
    Planes,
    /// As integers.
    Integers,
}

impl Coding {
    /// Encodes bytes, where that saves at least one in twenty.
    ///
    /// # Errors
    /// A compressor that fails, which it does for lack of memory only.
    pub fn encode(&self, bytes: &[u8]) -> Result<(Stored, Vec<u8>)> {
        let (stored, encoded) = match self.codec {
            SpillCodec::None => return Ok((Stored::Plain, Vec::new())),
            SpillCodec::Lz4 => (Stored::Whole(shards::Codec::Lz4), codec::encode(shards::Codec::Lz4, bytes)?),
            SpillCodec::Zstd => (Stored::Whole(shards::Codec::Zstd), compress(bytes)?),
            SpillCodec::Planes => (Stored::Planes, planes(bytes, self.size)?),
            SpillCodec::Int8 => match self.group.and_then(|group| integers(bytes, self.size, group)) {
                Some(integers) => (Stored::Integers, integers),
                None => (Stored::Planes, planes(bytes, self.size)?),
            },
        };
        if encoded.len() * 20 > bytes.len() * 19 {
            return Ok((Stored::Plain, Vec::new()));
        }
        Ok((stored, encoded))
    }

    /// Restores bytes into a buffer of exactly their length.
    ///
    /// # Errors
    /// Stored bytes that were not made by [`Coding::encode`], or out of another number of bytes.
    pub fn decode(&self, stored: Stored, encoded: &[u8], into: &mut [u8]) -> Result<()> {
        match stored {
            Stored::Plain => codec::decode(shards::Codec::None, encoded, into),
            Stored::Whole(codec) => codec::decode(codec, encoded, into),
            Stored::Planes => from_planes(encoded, self.size, into),
            Stored::Integers => from_integers(encoded, self.size, self.group.unwrap_or(1), into),
        }
    }
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL).context("cannot compress")
}

fn cut_off() -> Error {
    Error::new("what waited on disk is cut off")
}

/// Each plane with its length and whether it is compressed.
fn planes(bytes: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut all = Vec::with_capacity(bytes.len());
    for start in 0..size {
        let plane: Vec<u8> = bytes.iter().skip(start).step_by(size).copied().collect();
        let packed = compress(&plane)?;
        let shrinks = packed.len() * 20 < plane.len() * 19;
        let kept = if shrinks { &packed } else { &plane };
        all.push(u8::from(shrinks));
        all.extend((kept.len() as u64).to_le_bytes());
        all.extend(kept);
    }
    Ok(all)
}

fn from_planes(encoded: &[u8], size: usize, into: &mut [u8]) -> Result<()> {
    let mut rest = encoded;
    let mut plane = Vec::new();
    for start in 0..size {
        let ((head, length), after) = rest
            .split_first_chunk::<9>()
            .map(|(head, after)| ((head[0], u64::from_le_bytes(head[1..].try_into().unwrap_or_default())), after))
            .ok_or_else(cut_off)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (kept, after) = after.split_at_checked(length).ok_or_else(cut_off)?;
        rest = after;
        plane.resize(into.len().saturating_sub(start).div_ceil(size), 0);
        let codec = if head == 1 { shards::Codec::Zstd } else { shards::Codec::None };
        codec::decode(codec, kept, &mut plane)?;
        for (place, byte) in into.iter_mut().skip(start).step_by(size).zip(&plane) {
            *place = *byte;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(Error::new("what waited on disk is longer than it was")) }
}

/// Scales, then integers; nothing where values are not finite, too large, or of another size than floats or halves.
fn integers(bytes: &[u8], size: usize, group: usize) -> Option<Vec<u8>> {
    let values = floats(bytes, size)?;
    if values.iter().any(|value| value.is_nan() || value.abs() >= LARGEST) {
        return None;
    }
    let mut encoded = Vec::with_capacity(values.len() + values.len().div_ceil(group) * size_of::<f32>());
    let scale = |group: &[f32]| group.iter().fold(0f32, |most, value| most.max(value.abs())) / 127.0;
    values.chunks(group).for_each(|group| encoded.extend(scale(group).to_le_bytes()));
    for group in values.chunks(group) {
        let scale = scale(group);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        encoded.extend(group.iter().map(|value| nearest(value * inverse) as u8));
    }
    Some(encoded)
}

/// The nearest integer from -127 to 127.
fn nearest(value: f32) -> i8 {
    /// Adding it leaves no room for fractions, and the processor rounds.
    const SHIFT: f32 = 12_582_912.0;
    ((value.clamp(-127.0, 127.0) + SHIFT) - SHIFT) as i8
}

fn floats(bytes: &[u8], size: usize) -> Option<Vec<f32>> {
    match size {
        4 if bytes.len().is_multiple_of(4) => {
            Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        2 if bytes.len().is_multiple_of(2) => {
            Some(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
        }
        _ => None,
    }
}

fn from_integers(encoded: &[u8], size: usize, group: usize, into: &mut [u8]) -> Result<()> {
    let count = into.len() / size.max(1);
    let scales = count.div_ceil(group);
    if encoded.len() != scales * size_of::<f32>() + count {
        return Err(cut_off());
    }
    let (scales, integers) = encoded.split_at(scales * size_of::<f32>());
    let scales = scales.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    for ((scale, integers), into) in scales.zip(integers.chunks(group)).zip(into.chunks_mut(group * size)) {
        let values = integers.iter().map(|integer| f32::from(integer.cast_signed()) * scale);
        if size == 4 {
            into.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(slot, value)| *slot = value.to_le_bytes());
        } else {
            let halves = values.map(f16::from_f32);
            into.as_chunks_mut::<2>().0.iter_mut().zip(halves).for_each(|(slot, half)| *slot = half.to_le_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOSSLESS: [SpillCodec; 4] = [SpillCodec::None, SpillCodec::Lz4, SpillCodec::Zstd, SpillCodec::Planes];

    fn round_trip(coding: Coding, bytes: &[u8]) -> (Vec<u8>, usize) {
        let (stored, encoded) = coding.encode(bytes).unwrap();
        let mut restored = vec![0; bytes.len()];
        let kept = if stored == Stored::Plain { bytes } else { &encoded };
        coding.decode(stored, kept, &mut restored).unwrap();
        (restored, kept.len())
    }

    fn bytes_of(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn without_loss_bytes_come_back(
            bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..3000),
            size in prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)],
        ) {
            for codec in LOSSLESS {
                let coding = Coding { codec, size, group: Some(16) };
                prop_assert_eq!(&round_trip(coding, &bytes).0, &bytes);
            }
            // No floats, no loss.
            let coding = Coding { codec: SpillCodec::Int8, size, group: None };
            prop_assert_eq!(&round_trip(coding, &bytes).0, &bytes);
        }

        #[test]
        fn of_8_bits_values_come_back_within_half_a_step(
            values in proptest::collection::vec(-1e4_f32..1e4, 64..600),
            group in 1_usize..80,
        ) {
            let coding = Coding { codec: SpillCodec::Int8, size: 4, group: Some(group) };
            let (restored, _) = round_trip(coding, &bytes_of(&values));
            let restored = floats(&restored, 4).unwrap();
            for (values, restored) in values.chunks(group).zip(restored.chunks(group)) {
                let step = values.iter().fold(0_f32, |most, value| most.max(value.abs())) / 127.0;
                for (value, back) in values.iter().zip(restored) {
                    prop_assert!((value - back).abs() <= step * 0.501, "{} became {} with steps of {}", value, back, step);
                }
            }
            // What came back is stored again in every step: nothing more is lost.
            let again = floats(&round_trip(coding, &bytes_of(&restored)).0, 4).unwrap();
            for (back, again) in restored.iter().zip(&again) {
                prop_assert!((back - again).abs() <= back.abs() * 1e-6, "{} became {}", back, again);
            }
        }

        #[test]
        fn damage_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..500), length in 0..900_usize) {
            for stored in [Stored::Plain, Stored::Whole(shards::Codec::Lz4), Stored::Planes, Stored::Integers] {
                for size in [1, 2, 4] {
                    let coding = Coding { codec: SpillCodec::Int8, size, group: Some(7) };
                    let _ = coding.decode(stored, &noise, &mut vec![0; length]);
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_comes_back_as_it_was() {
        for odd in [f32::INFINITY, f32::NEG_INFINITY, f32::MIN, f32::NAN] {
            let mut values = vec![0.5_f32; 4096];
            values[17] = odd;
            let bytes = bytes_of(&values);
            let coding = Coding { codec: SpillCodec::Int8, size: 4, group: Some(64) };
            assert_eq!(round_trip(coding, &bytes).0, bytes, "{odd}");
        }
    }

    #[test]
    fn floats_shrink_in_planes_and_by_four_as_integers() {
        let values: Vec<f32> =
            (0..40_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5) * 3.0).collect();
        let bytes = bytes_of(&values);
        let share = |codec| {
            let coding = Coding { codec, size: 4, group: Some(64) };
            round_trip(coding, &bytes).1 as f64 / bytes.len() as f64
        };
        assert!((share(SpillCodec::Int8) - 17.0 / 64.0).abs() < 1e-3);
        assert!(share(SpillCodec::Planes) < 0.9, "{}", share(SpillCodec::Planes));
        assert!(share(SpillCodec::Lz4) == 1.0);
        // Halves.
        let halves: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let coding = Coding { codec: SpillCodec::Int8, size: 2, group: Some(64) };
        let (restored, kept) = round_trip(coding, &halves);
        assert_eq!(kept * 32, halves.len() * 17);
        let apart = floats(&restored, 2).unwrap().iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0_f32, f32::max);
        assert!(apart < 0.01, "{apart}");
    }
}
