//! One record: from constants of the source to the bytes that are stored.

use std::ops::Range;

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::CodecChoice;
use super::quantized::code_bytes;
use crate::error::{Context, Error, Result};
use crate::loader::codec;
use crate::loader::kernels;
use crate::package::onnx::Source;
use crate::package::onnx::element_bits;
use crate::package::shards::{Codec, NBits, What};

/// A record that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The part of the graph that uses it.
    pub part: usize,
    /// What it holds.
    pub content: Content,
}

/// What a record holds, by the names of the source's constants.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Matrix { shape: NBits, codes: String, scales: String, zero_points: Option<String> },
    Expert { mixture: String, expert: u32, gate_up: NBits, down: NBits, constants: [String; 4] },
    Tensor { name: String },
}

/// A record's bytes.
#[derive(Debug)]
pub struct Made {
    /// As they are stored.
    pub stored: Vec<u8>,
    /// Their number once decoded.
    pub bytes: u64,
    /// How they are stored.
    pub codec: Codec,
    /// XXH3 of what is stored, in hexadecimal.
    pub hash: String,
    /// What they are.
    pub what: What,
}

impl Plan {
    /// Bytes that are read to make it.
    pub fn source_bytes(&self, source: &Source) -> u64 {
        let of = |name: &String| source.tensor(name).map_or(0, |stored| stored.bytes);
        match &self.content {
            Content::Matrix { codes, scales, zero_points, .. } => {
                of(codes) + of(scales) + zero_points.as_ref().map_or(0, of)
            }
            Content::Expert { gate_up, down, .. } => {
                [gate_up, down].map(|shape| code_bytes(shape) + scale_bytes(shape)).iter().sum()
            }
            Content::Tensor { name } => of(name),
        }
    }

    /// The most bytes that it can have, decoded or stored.
    pub fn most_bytes(&self, source: &Source) -> u64 {
        match &self.content {
            Content::Matrix { shape, .. } => kernels::packed_bytes(shape) as u64,
            Content::Expert { gate_up, down, .. } => kernels::expert_bytes(gate_up, down) as u64,
            Content::Tensor { .. } => self.source_bytes(source),
        }
    }

    /// Bytes of memory that making it takes at most.
    pub fn memory(&self, source: &Source, codec: CodecChoice) -> u64 {
        let most = self.most_bytes(source);
        let packed = if matches!(self.content, Content::Tensor { .. }) { 0 } else { most };
        // A codec writes beside what it reads; planes lie apart for a time as well.
        let encoded = match codec {
            CodecChoice::None => 0,
            CodecChoice::Zstd | CodecChoice::Lz4 => most + most / 8,
            CodecChoice::Planes | CodecChoice::Auto => 2 * most + most / 8,
        };
        self.source_bytes(source) + packed + encoded
    }

    /// Reads, packs and compresses it.
    ///
    /// # Errors
    /// A source that cannot be read, weights that the kernels refuse.
    pub fn make(&self, source: &Source, choice: CodecChoice) -> Result<Made> {
        let (bytes, what) = self.content.make(source).with_context(|| format!("cannot pack `{}`", self.name))?;
        let count = bytes.len() as u64;
        let (stored, codec) = compress(bytes, choice, &what)?;
        let hash = hash(&stored);
        Ok(Made { stored, bytes: count, codec, hash, what })
    }
}

/// The hash of stored bytes.
pub fn hash(stored: &[u8]) -> String {
    format!("{:016x}", xxh3_64(stored))
}

impl Content {
    fn make(&self, source: &Source) -> Result<(Vec<u8>, What)> {
        match self {
            Self::Tensor { name } => {
                let stored = source.tensor(name).ok_or_else(|| Error::new("there are no such weights"))?;
                let what = What::Tensor { data_type: stored.data_type, dims: stored.dims.clone() };
                Ok((source.read_all(name)?, what))
            }
            Self::Matrix { shape, codes, scales, zero_points } => {
                let scales = floats(&source.read_all(scales)?);
                let shape = with_scales(shape, &scales);
                let codes = source.read_all(codes)?;
                let zero_points = zero_points.as_ref().map(|name| source.read_all(name)).transpose()?;
                let mut packed = vec![0; kernels::packed_bytes(&shape)];
                pack(&shape, &codes, &scales, zero_points.as_deref(), &mut packed)?;
                Ok((packed, What::Matrix { shape }))
            }
            Self::Expert { mixture, expert, gate_up, down, constants } => {
                let [gate_codes, gate_scales, down_codes, down_scales] = constants;
                let part = |name: &String, bytes: u64| source.read(name, range(*expert, bytes));
                let first = floats(&part(gate_scales, scale_bytes(gate_up))?);
                let second = floats(&part(down_scales, scale_bytes(down))?);
                let (gate_up, down) = (with_scales(gate_up, &first), with_scales(down, &second));
                let mut packed = vec![0; kernels::expert_bytes(&gate_up, &down)];
                let (head, tail) = packed.split_at_mut(kernels::down_offset(&gate_up));
                let codes = part(gate_codes, code_bytes(&gate_up))?;
                let head = &mut head[..kernels::packed_bytes(&gate_up)];
                kernels::pack(&gate_up, &codes, &first, None, head)?;
                let codes = part(down_codes, code_bytes(&down))?;
                kernels::pack(&down, &codes, &second, None, &mut tail[..kernels::packed_bytes(&down)])?;
                Ok((packed, What::Expert { mixture: mixture.clone(), expert: *expert, gate_up, down }))
            }
        }
    }
}

/// Rows that one thread packs at a time: a multiple of the layout's groups of 16.
const BAND: usize = 512;

/// Packs a matrix by bands of rows, on all threads.
fn pack(shape: &NBits, codes: &[u8], scales: &[f32], zero_points: Option<&[u8]>, into: &mut [u8]) -> Result<()> {
    let rows = |count| NBits { rows: count, ..*shape };
    let scales_of = BAND * shape.blocks();
    let codes_of = code_bytes(&rows(BAND)) as usize;
    let zeros_of = BAND * (shape.blocks() * usize::from(shape.bits)).div_ceil(8);
    into.par_chunks_mut(kernels::packed_bytes(&rows(BAND))).enumerate().try_for_each(|(band, into)| {
        let count = BAND.min(shape.rows - band * BAND);
        let codes = band_of(codes, band, codes_of);
        let zero_points = zero_points.map(|zeros| band_of(zeros, band, zeros_of));
        kernels::pack(&rows(count), codes, band_of(scales, band, scales_of), zero_points, into)
    })
}

/// The elements of one band, or those that are left of them.
fn band_of<T>(all: &[T], band: usize, length: usize) -> &[T] {
    let start = (band * length).min(all.len());
    &all[start..all.len().min(start + length)]
}

fn scale_bytes(shape: &NBits) -> u64 {
    (shape.rows * shape.blocks() * 4) as u64
}

fn range(expert: u32, bytes: u64) -> Range<u64> {
    let start = u64::from(expert) * bytes;
    start..start + bytes
}

/// The shape with scales of two bytes, where that loses nothing.
fn with_scales(shape: &NBits, scales: &[f32]) -> NBits {
    NBits { half_scales: kernels::half_scales_lose_nothing(scales), ..*shape }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

/// Bytes of a record on which codecs are tried before all of it is compressed.
const SAMPLE: usize = 1 << 20;

/// Stores bytes by the codec that was asked for, if it saves one byte in twenty.
fn compress(bytes: Vec<u8>, choice: CodecChoice, what: &What) -> Result<(Vec<u8>, Codec)> {
    let halves = matches!(what, What::Tensor { data_type, .. } if element_bits(*data_type) == Some(16));
    let codec = match choice {
        CodecChoice::None => return Ok((bytes, Codec::None)),
        CodecChoice::Zstd => Codec::Zstd,
        CodecChoice::Lz4 => Codec::Lz4,
        CodecChoice::Planes => Codec::PlanesZstd,
        CodecChoice::Auto if halves => Codec::PlanesZstd,
        CodecChoice::Auto => Codec::Zstd,
    };
    let pays = |stored: usize, bytes: usize| stored as u64 * 20 <= bytes as u64 * 19;
    if choice == CodecChoice::Auto {
        // The middle: borders of packed matrices may be padding.
        let start = (bytes.len().saturating_sub(SAMPLE) / 2).next_multiple_of(2).min(bytes.len());
        let sample = &bytes[start..bytes.len().min(start + SAMPLE)];
        if !pays(codec::encode(codec, sample)?.len(), sample.len()) {
            return Ok((bytes, Codec::None));
        }
    }
    let stored = codec::encode(codec, &bytes)?;
    // What does not shrink is stored as it is, whichever codec was asked for.
    let kept = if choice == CodecChoice::Auto { pays(stored.len(), bytes.len()) } else { stored.len() < bytes.len() };
    Ok(if kept { (stored, codec) } else { (bytes, Codec::None) })
}
