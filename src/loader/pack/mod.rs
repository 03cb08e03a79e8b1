//! From a package to a pack: the graph rewritten and cut between layers, the large weights in shards.
//!
//! | file | what |
//! |---|---|
//! | `borders.rs` | which layer each node belongs to |
//! | `quantized.rs` | which quantized products the kernels can compute |
//! | `rewrite.rs` | large weights taken out of the graph |
//! | `router.rs` | which product chooses experts |
//! | `types.rs`, `shapes.rs`, `cut.rs` | the whole graph and its segments as models |
//! | `record.rs` | one record: read, packed, compressed |
//! | `write.rs` | the files of a pack, in bounded memory |
//! | `output.rs`, `journal.rs` | files that get their names when they are whole; what is done already |
//! | `manifest.rs` | the pack's manifest |
//! | `open.rs`, `verify.rs` | a pack that is there |

mod borders;
mod cut;
mod journal;
mod manifest;
mod open;
mod output;
mod quantized;
mod record;
mod rewrite;
mod router;
mod shapes;
mod types;
mod verify;
mod write;

pub use open::{check, open};
pub use types::Types;
pub use verify::{Damage, Verified, verify};

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::loader::kernels;
use crate::package::onnx::Source;
use crate::package::shards::{FORMAT, Form, Made, ShardIndex};
use crate::package::{Package, PortRole};

/// How a package is packed.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How the graph takes its weights.
    pub form: Form,
    /// How records are compressed.
    pub codec: CodecChoice,
    /// Constants of at most so many bytes stay in the graph, quantized products aside.
    pub threshold: u64,
    /// Bytes of weights that may be in memory at a time.
    pub memory: u64,
    /// Pack quantized products whose graph does not ask for activations of 8 bits.
    pub int8_activations: bool,
    /// Replace a finished pack.
    pub force: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            form: Form::Operators,
            codec: CodecChoice::None,
            threshold: 256 << 10,
            memory: 1 << 30,
            int8_activations: false,
            force: false,
        }
    }
}

/// How records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CodecChoice {
    /// Not at all.
    #[default]
    None,
    /// Zstandard, where a record shrinks.
    Zstd,
    /// LZ4, where a record shrinks.
    Lz4,
    /// Low and high bytes apart, each Zstandard, where a record shrinks.
    Planes,
    /// What fits a record's elements, where it saves one byte in twenty.
    Auto,
}

/// Told what happens. Bytes are those read from the source.
pub trait Progress: Sync {
    /// So many bytes of weights are to be packed.
    fn started(&self, bytes: u64);
    /// So many more were.
    fn advanced(&self, bytes: u64);
    /// A shard is whole, one of so many; `resumed` if it was before.
    fn shard(&self, number: usize, shards: usize, file: &str, bytes: u64, resumed: bool);
    /// Nothing more will be told.
    fn finished(&self);
}

/// Says nothing.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn started(&self, _bytes: u64) {}
    fn advanced(&self, _bytes: u64) {}
    fn shard(&self, _number: usize, _shards: usize, _file: &str, _bytes: u64, _resumed: bool) {}
    fn finished(&self) {}
}

/// What a finished pack is.
#[derive(Debug)]
pub struct Summary {
    /// Its index.
    pub index: ShardIndex,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Bytes of weights that went into records.
    pub source_bytes: u64,
    /// Those of them that this run packed; the others were there.
    pub packed_bytes: u64,
    /// Bytes of the source package's own files.
    pub package_bytes: u64,
    /// Bytes of constants that stayed beside the graph, which ONNX Runtime maps.
    pub kept_bytes: u64,
    /// The largest of them.
    pub kept_largest: Vec<(String, u64)>,
    /// Quantized nodes that kept their stock operator: operator, reason, count, bytes of weights.
    pub stock: Vec<(String, &'static str, usize, u64)>,
    /// Wall time.
    pub time: Duration,
}

/// Packs a package into a folder; continues what an interrupted run left there.
///
/// # Errors
/// A package that is a pack already or whose graph cannot be cut, a folder that holds something else, a disk without
/// room, memory that is too little for the largest record.
pub fn pack(package: &Package, folder: &Path, options: &Options, progress: &dyn Progress) -> Result<Summary> {
    let start = Instant::now();
    if package.manifest.pack.is_some() {
        return Err(Error::new(format!("`{}` is a pack already", package.root.display()))
            .hint("pack the package that it was made of"));
    }
    let decoder = package.decoder()?;
    let source = Source::open(package, decoder)?;
    let layers = package.manifest.shape.layers as usize;
    let past = [PortRole::PastKey, PortRole::PastValue].into_iter().flat_map(|role| decoder.layers(role));
    let cache: HashMap<String, usize> =
        past.filter_map(|port| Some((port.name.clone(), usize::try_from(port.layer?).ok()?))).collect();
    let parts = borders::assign(&source.graph, layers, &cache);
    let choice = rewrite::Choice {
        form: options.form,
        threshold: options.threshold,
        int8_activations: options.int8_activations,
    };
    let rewritten = rewrite::rewrite(&source, &parts, choice);
    check_memory(&source, &rewritten, options)?;

    let made = Made {
        layout: kernels::LAYOUT.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        source: package.hash.clone(),
    };
    let plan = write::Files { package, decoder, source: &source, rewritten: &rewritten, layers, options };
    let written = plan.write(folder, &made, progress)?;
    progress.finished();

    let index = ShardIndex {
        format: FORMAT,
        form: options.form,
        made,
        files: written.shards,
        segments: written.segments,
        records: written.records,
        routers: written.routers,
    };
    let mut output = written.output;
    write::index(&mut output, &index)?;
    let manifest = manifest::of_pack(package, decoder, options.form, &output.files);
    let bytes = output.files.iter().map(|file| file.bytes).sum();
    output.finish(&manifest)?;
    let stock =
        rewritten.stock.into_iter().map(|((operator, reason), (count, bytes))| (operator, reason, count, bytes));
    Ok(Summary {
        index,
        bytes,
        source_bytes: written.source_bytes,
        packed_bytes: written.packed_bytes,
        package_bytes: package.bytes(),
        kept_bytes: written.kept.iter().map(|(_, bytes)| bytes).sum(),
        kept_largest: {
            let mut kept = written.kept;
            kept.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            kept.truncate(4);
            kept
        },
        stock: stock.collect(),
        time: start.elapsed(),
    })
}

/// Refuses a bound that the largest record alone exceeds, and names one that would do.
fn check_memory(source: &Source, rewritten: &rewrite::Rewritten, options: &Options) -> Result<()> {
    let needs = rewritten.records.iter().map(|plan| (plan.memory(source, options.codec), &plan.name));
    let Some((least, name)) = needs.max().filter(|(least, _)| *least > options.memory) else { return Ok(()) };
    let message = format!("the memory of {} is too little: `{name}` alone takes {least} bytes", options.memory);
    Err(Error::new(message).hint(format!("allow `--memory {}MiB`", least.div_ceil(1 << 20))))
}
