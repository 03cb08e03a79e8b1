//! `shards.json`: the index of a pack, which is a package whose large weights lie in shards, apart from its graph.
//!
//! A pack is written by `ortbench pack` and read by the loader. Its records stand in the order in which one pass of
//! the model uses them; each is one contiguous, aligned run of bytes, read, checked and dropped as a whole.

use serde::{Deserialize, Serialize};

/// The index's file in the pack's folder.
pub const FILE: &str = "shards.json";

/// The version of the index that this program writes and reads.
pub const FORMAT: u32 = 1;

/// Offsets of records are multiples of this many bytes, and files are padded to it: what reads past the page cache
/// (`O_DIRECT`) ask for.
pub const ALIGNMENT: u64 = 4096;

/// The index of a pack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardIndex {
    /// [`FORMAT`].
    pub format: u32,
    /// How the graph takes its weights.
    pub form: Form,
    /// What the pack was made for, and out of.
    pub made: Made,
    /// The shards' files.
    pub files: Vec<ShardFile>,
    /// The graph cut between layers, in order of execution.
    pub segments: Vec<Segment>,
    /// Every record, in the order in which one pass of the model uses them; the experts of a layer by number.
    pub records: Vec<Record>,
}

/// How a pack's graph takes the weights that lie in shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Operators of this program, in the domain `ortbench`, ask the loader for them.
    Operators,
    /// They are inputs of the graph's segments, bound before each run: every provider can run it.
    Inputs,
}

/// What a pack was made for, and out of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// The order of weights in [`What::Matrix`] and [`What::Expert`], by the name of the kernels that read it.
    pub layout: String,
    /// The processor's architecture, as Rust names it (`x86_64`).
    pub architecture: String,
    /// The version of this program.
    pub program: String,
    /// SHA-256 of the source's `manifest.json`.
    pub source: String,
}

/// A file of shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardFile {
    /// Its path within the pack.
    pub file: String,
    /// Its length in bytes, a multiple of [`ALIGNMENT`].
    pub bytes: u64,
}

/// A part of the graph: what runs between two borders of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Its ONNX file within the pack.
    pub file: String,
    /// The layer it is, or `None` for what comes before the first and after the last one.
    pub layer: Option<u32>,
    /// Tensors that earlier segments made and this one takes.
    pub takes: Vec<String>,
    /// Tensors that it makes and later segments take.
    pub makes: Vec<String>,
    /// Its records: the first one's place in [`ShardIndex::records`] …
    pub first_record: usize,
    /// … and their number.
    pub records: usize,
}

/// One run of bytes in a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Unique within the pack; for [`Form::Inputs`] the name of the graph's input.
    pub name: String,
    /// The file's place in [`ShardIndex::files`].
    pub file: usize,
    /// The first byte, a multiple of [`ALIGNMENT`].
    pub offset: u64,
    /// Bytes as they are stored, without padding.
    pub stored: u64,
    /// Bytes once decoded.
    pub bytes: u64,
    /// How they are stored.
    #[serde(default, skip_serializing_if = "Codec::is_none")]
    pub codec: Codec,
    /// XXH3 (64 bits) of the stored bytes, in hexadecimal.
    pub hash: String,
    /// The layer it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// What the bytes are.
    #[serde(flatten)]
    pub what: What,
}

/// How a record's bytes are stored. All are lossless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// As they are.
    #[default]
    None,
    /// Zstandard.
    Zstd,
    /// LZ4 blocks.
    Lz4,
    /// The bytes of 16-bit elements by place (all low bytes, then all high bytes), each plane Zstandard.
    PlanesZstd,
}

impl Codec {
    /// True for bytes as they are.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// What a record's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A block-wise quantized matrix of `MatMulNBits`.
    Matrix {
        /// Its shape.
        shape: NBits,
    },
    /// One routed expert of a mixture: its gate and up projection (rows interleaved, gate first), then its down
    /// projection at the next multiple of 64 bytes.
    Expert {
        /// The name of the mixture it belongs to.
        mixture: String,
        /// Its number there.
        expert: u32,
        /// `2 × intermediate` rows.
        gate_up: NBits,
        /// `hidden` rows.
        down: NBits,
    },
    /// A tensor as ONNX lays it out.
    Tensor {
        /// The element type by ONNX's number (`TensorProto.DataType`).
        data_type: i32,
        /// Its dimensions.
        dims: Vec<u64>,
    },
}

/// The shape of a block-wise quantized matrix, `rows` × `columns` (ONNX's N × K).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NBits {
    /// Outputs (N).
    pub rows: usize,
    /// Inputs (K).
    pub columns: usize,
    /// Consecutive inputs that share a scale: a power of two, at least 16.
    pub block: usize,
    /// Bits of a code: 4 or 8. A code stands for `code − 2^(bits−1)` unless there are zero points.
    pub bits: u8,
    /// Whether each block has a zero point of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_points: bool,
    /// Whether scales are stored in two bytes: only where that loses nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub half_scales: bool,
}

impl NBits {
    /// Blocks of one row; the last one may be partly padding.
    pub fn blocks(&self) -> usize {
        self.columns.div_ceil(self.block)
    }
}
