//! What a cell will need in memory, from its package's manifest: before anything runs.

use crate::cell::{Cell, Flavour, GraphPlan, InputPlan, OutputPlan, Precision, ProviderKind, Residency, Workload};
use crate::package::{CacheUpdate, Graph, GraphRole, Manifest, PortRole, Shape};

/// Bytes, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The weights as the runtime or the loader holds them: prepacked, converted, mapped, or those that a budget leaves
    /// room for.
    pub weights: u64,
    /// Experts that a plain mixture gathers for a prompt.
    pub experts: u64,
    /// The key/value cache at full length.
    pub cache: u64,
    /// The logits of one run.
    pub logits: u64,
    /// The images of all rows, and a run of the vision tower over one of them.
    pub vision: u64,
    /// A graph's inputs and those of its outputs whose shapes are known.
    pub tensors: u64,
    /// Process, runtime library and arena.
    pub program: u64,
}

/// Process, runtime library and arena of the smallest models, as measured.
const PROGRAM_BYTES: u64 = 96 << 20;

impl MemoryEstimate {
    /// The sum.
    pub fn total(&self) -> u64 {
        [self.weights, self.experts, self.cache, self.logits, self.vision, self.tensors, self.program]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl MemoryEstimate {
    /// The parts that there are, by name.
    pub fn parts(&self) -> String {
        let parts = [
            ("weights", self.weights),
            ("gathered experts", self.experts),
            ("cache", self.cache),
            ("logits", self.logits),
            ("images", self.vision),
            ("inputs and outputs", self.tensors),
            ("program", self.program),
        ];
        let named = parts.iter().filter(|(_, bytes)| *bytes > 0);
        named.map(|(name, bytes)| format!("{name} {}", crate::units::bytes(*bytes))).collect::<Vec<_>>().join(", ")
    }
}

/// Estimates a cell; `pack_weights` are the bytes of the weights of a pack, as stored.
pub fn memory(cell: &Cell, manifest: &Manifest, pack_weights: u64) -> MemoryEstimate {
    let workload = &cell.workload;
    let batch = u64::from(workload.batch);
    let tokens = u64::from(workload.prompt_tokens) + u64::from(workload.generate_tokens);
    // The vision tower stays on the disk where no prompt has an image.
    let loaded = |graph: &&Graph| graph.role == GraphRole::Decoder || workload.image.is_some();
    let external = manifest.graphs.iter().filter(loaded).flat_map(|graph| &graph.external_data);
    let files = external.filter_map(|name| manifest.files.iter().find(|file| file.path == *name));
    let stored = files.map(|file| file.bytes).fold(0, u64::saturating_add);
    // Only the CPU provider updates the cache in place; the others write past and new tokens to a second buffer.
    let in_place = manifest.cache.update == CacheUpdate::InPlaceOrAppend && cell.backend.provider == ProviderKind::Cpu;
    let selected = manifest.graphs.iter().any(|graph| graph.port(PortRole::LogitsPositions).is_some());
    let positions = if selected { 1 } else { u64::from(workload.prompt_tokens) };
    let estimate = MemoryEstimate {
        weights: (stored as f64 * held(cell)) as u64,
        experts: gathered_experts(cell, &manifest.shape),
        cache: product([batch, tokens, manifest.cache.bytes_per_token, if in_place { 1 } else { 2 }]),
        logits: product([batch, positions, manifest.shape.vocab_size, 4]),
        vision: vision(workload, manifest),
        tensors: 0,
        program: PROGRAM_BYTES,
    };
    let estimate = match cell.memory.offload {
        true => MemoryEstimate { cache: in_memory(cell, &manifest.shape, estimate.cache), ..estimate },
        false => estimate,
    };
    match cell.memory.residency {
        None => estimate,
        Some(residency) => of_pack(estimate, residency, cell.memory.budget_bytes, pack_weights),
    }
}

/// Estimates a cell of a graph whose file, with those beside it, has that many bytes. What its nodes hand to each other
/// is known to nobody beforehand.
pub fn graph(plan: &GraphPlan, file_bytes: u64) -> MemoryEstimate {
    let inputs = plan.inputs.iter().map(InputPlan::bytes).fold(0, u64::saturating_add);
    let output = |output: &OutputPlan| {
        let shape = output.shape.iter().flatten().copied();
        let elements = output.shape.as_ref().map_or(0, |_| shape.fold(1, u64::saturating_mul));
        elements.saturating_mul(output.element.size() as u64)
    };
    let outputs = plan.outputs.iter().map(output).fold(0, u64::saturating_add);
    MemoryEstimate {
        weights: file_bytes,
        experts: 0,
        cache: 0,
        logits: 0,
        vision: 0,
        tensors: inputs.saturating_add(outputs),
        program: PROGRAM_BYTES,
    }
}

/// Of caches that wait on disk, those of the layer and the sequences that run, that come next, and that are on their
/// way out are in memory.
fn in_memory(cell: &Cell, shape: &Shape, cache: u64) -> u64 {
    let groups = cell.workload.batch.div_ceil(cell.memory.micro_batch.unwrap_or(u32::MAX).max(1));
    let turns = shape.layers.saturating_mul(u64::from(groups)).max(1);
    cache.min(cache.saturating_mul(3) / turns)
}

/// A pack's kernels compute on the weights as they are stored, so its loader decides how many are in memory.
fn of_pack(estimate: MemoryEstimate, residency: Residency, budget: Option<u64>, weights: u64) -> MemoryEstimate {
    let without = MemoryEstimate { weights: 0, experts: 0, ..estimate };
    let held = match (residency, budget) {
        (Residency::Resident, _) | (Residency::Stream | Residency::Experts, None) => weights,
        // Pages of files give way to whatever needs memory.
        (Residency::Mapped, _) => 0,
        (Residency::Stream | Residency::Experts, Some(budget)) => budget.saturating_sub(without.total()).min(weights),
    };
    MemoryEstimate { weights: held, ..without }
}

/// Bytes of memory for a byte of a package's weights, as measured (`docs/measurements/memory-estimate`): kernels prepack,
/// fp16 is computed in fp32, and OpenVINO unpacks the integers of contrib operators that it does not know.
fn held(cell: &Cell) -> f64 {
    use {Flavour::*, Precision::*};
    match (cell.backend.provider, cell.precision, cell.flavour) {
        (ProviderKind::OpenVino, Fp16, _) => 4.5,
        (ProviderKind::OpenVino, Int8, Fused) => 8.6,
        (ProviderKind::OpenVino, Int4, Fused) => 15.0,
        (ProviderKind::OpenVino, Int4, Plain) => 1.1,
        (ProviderKind::Cpu, Fp16, _) => 2.5,
        (ProviderKind::Cpu, Int8 | Int4, Fused) => 1.2,
        (ProviderKind::Cpu, Int8 | Int4, Plain) => 1.7,
        _ => 1.0,
    }
}

/// A prompt of a few tokens chooses nearly every expert, and a plain graph gathers those of one layer: from that
/// measurement, in multiples of a layer's experts in fp32.
fn gathered_experts(cell: &Cell, shape: &Shape) -> u64 {
    let (Some(experts), Some(width), Flavour::Plain) = (shape.experts, shape.expert_intermediate_size, cell.flavour)
    else {
        return 0;
    };
    let multiple = match cell.precision {
        Precision::Fp32 => 1.2,
        Precision::Fp16 | Precision::Int8 => 2.3,
        Precision::Int4 => 3.6,
    };
    // Gate, up and down.
    let layer = product([experts, width.saturating_mul(3), shape.hidden_size, 4]);
    (layer as f64 * multiple) as u64
}

/// What images need: as drawn, as patches and as features in every row; the tower runs on one after the other.
fn vision(workload: &Workload, manifest: &Manifest) -> u64 {
    let (Some(size), Some(image)) = (workload.image, &manifest.image) else { return 0 };
    let Ok(grid) = image.spec().grid(u32::from(size.width), u32::from(size.height)) else { return 0 };
    let drawn = 3 * u64::from(size.width) * u64::from(size.height);
    let rows = drawn.saturating_add(image.held_bytes(grid)).saturating_mul(u64::from(workload.batch));
    manifest.vision_run_bytes(image, grid.patches() as u64).saturating_add(rows)
}

/// A manifest may say anything; what no machine holds need not be exact.
fn product(factors: [u64; 4]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}
