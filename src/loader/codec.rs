//! How a record's bytes are stored: as they are, or compressed without loss.

use crate::error::{Context, Error, Result};
use crate::package::shards::Codec;

/// Zstandard's level: higher ones gain little on weights.
const LEVEL: i32 = 3;

/// Bytes in front of planes: the length of the first one's frame.
const HEAD: usize = 8;

/// Compresses bytes.
///
/// # Errors
/// A compressor that fails, which it does for lack of memory only.
pub fn encode(codec: Codec, bytes: &[u8]) -> Result<Vec<u8>> {
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, LEVEL).context("cannot compress");
    match codec {
        Codec::None => Ok(bytes.to_vec()),
        Codec::Zstd => zstd(bytes),
        Codec::Lz4 => Ok(lz4_flex::block::compress(bytes)),
        Codec::PlanesZstd => {
            let plane = |start: usize| bytes.iter().skip(start).step_by(2).copied().collect::<Vec<u8>>();
            let (low, high) = (zstd(&plane(0))?, zstd(&plane(1))?);
            Ok([&(low.len() as u64).to_le_bytes()[..], &low, &high].concat())
        }
    }
}

/// Restores bytes into a buffer of exactly their length.
///
/// # Errors
/// Stored bytes that were not made by [`encode`] with that codec, or out of another number of bytes.
pub fn decode(codec: Codec, stored: &[u8], into: &mut [u8]) -> Result<()> {
    match codec {
        Codec::None => {
            if stored.len() != into.len() {
                return Err(wrong_length(stored.len(), into.len()));
            }
            into.copy_from_slice(stored);
            Ok(())
        }
        Codec::Zstd => unzstd(stored, into),
        Codec::Lz4 => {
            let length = lz4_flex::block::decompress_into(stored, into).context("it is no LZ4 block")?;
            if length == into.len() { Ok(()) } else { Err(wrong_length(length, into.len())) }
        }
        Codec::PlanesZstd => {
            let (head, frames) = stored.split_at_checked(HEAD).ok_or_else(|| Error::new("it is cut off"))?;
            let length = head.iter().rev().fold(0_u64, |length, byte| length << 8 | u64::from(*byte));
            let frames = usize::try_from(length).ok().and_then(|length| frames.split_at_checked(length));
            let (low, high) = frames.ok_or_else(|| Error::new("it is cut off"))?;
            let mut plane = vec![0; into.len().div_ceil(2)];
            for (start, frame) in [low, high].into_iter().enumerate() {
                let count = (into.len() + 1 - start) / 2;
                unzstd(frame, &mut plane[..count])?;
                for (place, byte) in into.iter_mut().skip(start).step_by(2).zip(&plane) {
                    *place = *byte;
                }
            }
            Ok(())
        }
    }
}

fn unzstd(stored: &[u8], into: &mut [u8]) -> Result<()> {
    // Even nothing has a frame; without one, nothing would be restored from nothing.
    if stored.is_empty() {
        return Err(Error::new("it is cut off"));
    }
    let length = zstd::bulk::decompress_to_buffer(stored, into).context("it is no Zstandard frame of that length")?;
    if length == into.len() { Ok(()) } else { Err(wrong_length(length, into.len())) }
}

fn wrong_length(found: usize, expected: usize) -> Error {
    Error::new(format!("it holds {found} bytes where {expected} are expected"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Codec; 4] = [Codec::None, Codec::Zstd, Codec::Lz4, Codec::PlanesZstd];

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..2000),
            // Runs, which compress.
            proptest::collection::vec((any::<u8>(), 1..200_usize), 0..30)
                .prop_map(|runs| runs.into_iter().flat_map(|(byte, count)| vec![byte; count]).collect()),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(bytes in bytes()) {
            for codec in ALL {
                let stored = encode(codec, &bytes).unwrap();
                let mut restored = vec![0; bytes.len()];
                decode(codec, &stored, &mut restored).unwrap();
                prop_assert_eq!(&restored, &bytes);
                // Another length is refused.
                prop_assert!(decode(codec, &stored, &mut vec![0; bytes.len() + 1]).is_err());
                if !bytes.is_empty() {
                    prop_assert!(decode(codec, &stored, &mut restored[1..]).is_err());
                }
            }
        }

        #[test]
        fn damage_never_panics(bytes in bytes(), at in any::<prop::sample::Index>(), bit in 0..8_u8, keep in any::<prop::sample::Index>()) {
            for codec in ALL {
                let mut stored = encode(codec, &bytes).unwrap();
                let mut restored = vec![0; bytes.len()];
                if stored.is_empty() {
                    continue;
                }
                let cut = keep.index(stored.len());
                prop_assert!(decode(codec, &stored[..cut], &mut restored).is_err() || codec == Codec::Lz4);
                let at = at.index(stored.len());
                stored[at] ^= 1 << bit;
                // The record's hash finds damage; a codec must only survive it.
                let _ = decode(codec, &stored, &mut restored);
            }
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..500), length in 0..3000_usize) {
            for codec in ALL {
                let _ = decode(codec, &noise, &mut vec![0; length]);
            }
        }
    }

    #[test]
    fn planes_pay_for_halves_of_similar_size() {
        let values =
            (0..20_000_u32).map(|n| half::f16::from_f32((n.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5) / 8.0));
        let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
        let (planes, whole) = (encode(Codec::PlanesZstd, &bytes).unwrap(), encode(Codec::Zstd, &bytes).unwrap());
        assert!(
            planes.len() < whole.len() && planes.len() * 100 < bytes.len() * 95,
            "{} {}",
            planes.len(),
            whole.len()
        );
    }
}
