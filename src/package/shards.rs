//! `shards.json`: the index of a pack, which is a package whose large weights lie in shards, apart from its graph.
//!
//! A pack is written by `ortbench pack` and read by the loader. Its records stand in the order in which one pass of
//! the model uses them; each is one contiguous, aligned run of bytes, read, checked and dropped as a whole.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

mod stages;

/// The index's file in the pack's folder.
pub const FILE: &str = "shards.json";

/// The file of [`ShardIndex::routers`].
pub const ROUTERS: &str = "routers.bin";

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
    /// How mixtures choose experts, in the order of use, for guesses before they do; mixtures whose choice follows from
    /// no product with a constant have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<Router>,
}

/// What helps against an index that cannot be used.
pub(super) const PACK_AGAIN: &str = "pack it again: `ortbench pack PACKAGE --output FOLDER`";

impl ShardIndex {
    /// Reads a pack's index and checks that it can be used on this machine: its version and architecture, records
    /// that lie in order within their files without overlapping, segments that have all of them, files that are there
    /// at their sizes. The records' bytes are checked when they are read.
    ///
    /// # Errors
    /// An index that contradicts itself, its folder, or this machine.
    pub fn read(folder: &Path) -> Result<Self> {
        let index = Self::parse(folder)?;
        for file in &index.files {
            let path = folder.join(&file.file);
            let size = fs::metadata(&path).with_context(|| format!("cannot find the shard `{}`", path.display()));
            let size = size.map_err(|error| error.hint(PACK_AGAIN))?.len();
            if size != file.bytes {
                let message = format!("`{}` has {size} bytes, its index says {}", path.display(), file.bytes);
                return Err(Error::new(message).hint(PACK_AGAIN));
            }
        }
        Ok(index)
    }

    /// The same without a look at the shards' files.
    ///
    /// # Errors
    /// An index that contradicts itself or this machine.
    pub fn parse(folder: &Path) -> Result<Self> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let path = folder.join(FILE);
        let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let failed = || format!("cannot use the index `{}`", path.display());
        let head: Head = serde_json::from_slice(&bytes).with_context(failed)?;
        if head.format != FORMAT {
            let cause = format!("its format is {}, this program reads {FORMAT}", head.format);
            return Err(Error::new(failed()).because(Error::new(cause)).hint(PACK_AGAIN));
        }
        let index: Self =
            serde_json::from_slice(&bytes).with_context(failed).map_err(|error| error.hint(PACK_AGAIN))?;
        index.check().map_err(|cause| Error::new(failed()).because(Error::new(cause)).hint(PACK_AGAIN))?;
        Ok(index)
    }

    /// Refuses a pack whose matrices are laid out for other kernels.
    ///
    /// # Errors
    /// Another layout, where there are packed matrices at all.
    pub fn expect_layout(&self, layout: &str) -> Result<()> {
        if self.made.layout == layout || !self.records.iter().any(|record| record.what.is_packed()) {
            return Ok(());
        }
        let found = &self.made.layout;
        Err(Error::new(format!("the pack's weights are laid out as `{found}`, this program computes on `{layout}`"))
            .hint(PACK_AGAIN))
    }

    fn check(&self) -> Result<(), String> {
        let here = std::env::consts::ARCH;
        if self.form == Form::Operators && self.made.architecture != here {
            return Err(format!("it was made for the architecture {}, this machine is {here}", self.made.architecture));
        }
        for path in self.files.iter().map(|file| &file.file).chain(self.segments.iter().map(|segment| &segment.file)) {
            let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            if path.is_empty() || !inside {
                return Err(format!("it names `{path}`, which leads out of the pack"));
            }
        }
        let mut names = HashSet::new();
        let mut end = (0, 0);
        for record in &self.records {
            let name = &record.name;
            if !names.insert(name) {
                return Err(format!("two records have the name `{name}`"));
            }
            record.check().map_err(|cause| format!("the record `{name}` {cause}"))?;
            let Some(file) = self.files.get(record.file) else {
                return Err(format!("the record `{name}` lies in a file that is not listed"));
            };
            let last = record.offset.checked_add(record.stored).filter(|last| *last <= file.bytes);
            let Some(last) = last else {
                return Err(format!("the record `{name}` lies beyond the end of `{}`", file.file));
            };
            if (record.file, record.offset) < end {
                return Err(format!("the record `{name}` overlaps the one before it, or is out of order"));
            }
            end = (record.file, last);
        }
        for router in &self.routers {
            let experts = self.records.iter().filter(|record| record.what.is_expert_of(&router.mixture)).count();
            if experts == 0 || experts as u64 != router.experts || router.bytes().is_none() {
                return Err(format!("the router of `{}` does not fit its experts", router.mixture));
            }
        }
        self.check_segments()
    }

    fn check_segments(&self) -> Result<(), String> {
        let mut next = 0;
        for segment in &self.segments {
            let end = segment.first_record.checked_add(segment.records);
            if segment.first_record != next || end.is_none_or(|end| end > self.records.len()) {
                return Err(format!("the segment `{}` has records of another one, or none that exist", segment.file));
            }
            next += segment.records;
        }
        if next == self.records.len() { Ok(()) } else { Err("some records belong to no segment".to_owned()) }
    }
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

/// A copy of a mixture's router in [`ROUTERS`]: the matrix `[hidden, experts]` and, where it has one, the bias
/// `[experts]`, both float32 (little-endian). The highest logits choose; with a bias, the highest
/// `sigmoid(logit) + bias`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// The mixture, as its experts name it.
    pub mixture: String,
    /// Rows of the matrix.
    pub hidden: u64,
    /// Its columns.
    pub experts: u64,
    /// Whether a bias follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bias: bool,
    /// The first byte.
    pub offset: u64,
    /// XXH3 (64 bits) of the bytes, in hexadecimal.
    pub hash: String,
}

impl Router {
    /// Its length in bytes; `None` for one that cannot be.
    pub fn bytes(&self) -> Option<u64> {
        self.hidden.checked_add(u64::from(self.bias))?.checked_mul(self.experts)?.checked_mul(4)
    }
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
    pub what: What,
}

impl Record {
    fn check(&self) -> Result<(), &'static str> {
        if !self.offset.is_multiple_of(ALIGNMENT) {
            return Err("starts at an offset that is not aligned");
        }
        if self.codec == Codec::None && self.stored != self.bytes {
            return Err("is stored as it is and has two lengths");
        }
        if self.hash.len() != 16 || !self.hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("has a hash that is none");
        }
        if let What::Tensor { data_type, dims } = &self.what {
            let elements = dims.iter().try_fold(1_u64, |product, size| product.checked_mul(*size));
            let bits = super::onnx::element_bits(*data_type);
            let bytes = elements.zip(bits).and_then(|(elements, bits)| Some(elements.checked_mul(bits)?.div_ceil(8)));
            if bytes != Some(self.bytes) {
                return Err("has another length than its shape");
            }
        }
        Ok(())
    }
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
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
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

impl What {
    /// Whether the bytes are in the order of this program's kernels, rather than ONNX's.
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Matrix { .. } | Self::Expert { .. })
    }

    fn is_expert_of(&self, wanted: &str) -> bool {
        matches!(self, Self::Expert { mixture, .. } if mixture == wanted)
    }
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

    /// Whether rows and columns are as many.
    pub fn same_size(&self, other: &Self) -> bool {
        (self.rows, self.columns) == (other.rows, other.columns)
    }
}
