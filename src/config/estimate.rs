//! What a cell will need in memory, from its package's manifest: before anything runs.

use crate::cell::{Cell, ProviderKind, Workload};
use crate::package::{CacheUpdate, Graph, GraphRole, Manifest, PortRole};

/// Bytes, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The weights as the runtime holds them: prepacked or mapped, once.
    pub weights: u64,
    /// The key/value cache at full length.
    pub cache: u64,
    /// The logits of one run.
    pub logits: u64,
    /// A run of the vision tower over one image.
    pub vision: u64,
    /// Process, runtime library and arena.
    pub program: u64,
}

/// Process, runtime library and arena of the smallest models, as measured.
const PROGRAM_BYTES: u64 = 96 << 20;

impl MemoryEstimate {
    /// The sum.
    pub fn total(&self) -> u64 {
        [self.weights, self.cache, self.logits, self.vision, self.program].into_iter().fold(0, u64::saturating_add)
    }
}

/// Estimates a cell.
pub fn memory(cell: &Cell, manifest: &Manifest) -> MemoryEstimate {
    let workload = &cell.workload;
    let batch = u64::from(workload.batch);
    let tokens = u64::from(workload.prompt_tokens) + u64::from(workload.generate_tokens);
    // The vision tower stays on the disk where no prompt has an image.
    let loaded = |graph: &&Graph| graph.role == GraphRole::Decoder || workload.image.is_some();
    let external = manifest.graphs.iter().filter(loaded).flat_map(|graph| &graph.external_data);
    let weights = external.filter_map(|name| manifest.files.iter().find(|file| file.path == *name));
    // Only the CPU provider updates the cache in place; the others write past and new tokens to a second buffer.
    let in_place = manifest.cache.update == CacheUpdate::InPlaceOrAppend && cell.backend.provider == ProviderKind::Cpu;
    let selected = manifest.graphs.iter().any(|graph| graph.port(PortRole::LogitsPositions).is_some());
    let positions = if selected { 1 } else { u64::from(workload.prompt_tokens) };
    MemoryEstimate {
        weights: weights.map(|file| file.bytes).fold(0, u64::saturating_add),
        cache: product([batch, tokens, manifest.cache.bytes_per_token, if in_place { 1 } else { 2 }]),
        logits: product([batch, positions, manifest.shape.vocab_size, 4]),
        vision: vision(workload, manifest),
        program: PROGRAM_BYTES,
    }
}

/// What the image of one prompt needs: images run one after the other.
fn vision(workload: &Workload, manifest: &Manifest) -> u64 {
    let (Some(size), Some(image)) = (workload.image, &manifest.image) else { return 0 };
    let grid = image.spec().grid(u32::from(size.width), u32::from(size.height));
    grid.map_or(0, |grid| manifest.vision_run_bytes(image, grid.patches() as u64))
}

/// A manifest may say anything; what no machine holds need not be exact.
fn product(factors: [u64; 4]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}
