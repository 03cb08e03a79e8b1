//! A package loaded on a backend.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::cell::{Backend, Dtype, Flavour, ProviderKind};
use crate::engine::feed::{self, Feed};
use crate::engine::fixed;
use crate::engine::offload::{Size, aligned_capacity};
use crate::engine::parts::{Opening, Part, handed_bytes, leave_own_caches};
use crate::engine::placing::Setting;
use crate::engine::plan::{CacheMode, Plan};
use crate::engine::prompt::Prompt;
use crate::engine::tensorrt::{EngineFacts, Engines};
use crate::engine::vision::{Features, Vision};
use crate::engine::weights::Weights;
use crate::error::{Error, Result};
use crate::loader::feed::copier;
use crate::loader::pager::{PagerFacts, Statistics};
use crate::loader::spill::{Coding, Spill, SpillCodec};
use crate::package::shards::{ALIGNMENT, Form};
use crate::package::{Dim, Graph, Manifest, Package, Padding, Port, PortRole};
use crate::runtime::device::ProviderMemory;
use crate::runtime::{Arena, PartWeights, Placement, Runtime, Session, SessionOptions, providers};

/// A loaded model: the sessions, the decoder's interface, and how its cache is kept.
#[derive(Debug)]
pub struct Model {
    /// The graph, or its parts in order of execution.
    pub(super) parts: Vec<Part>,
    /// Sequences that go through a part together; `None` for all of a batch.
    pub(super) micro_batch: Option<usize>,
    // Before the weights: what it lends is theirs.
    feed: Option<Feed>,
    weights: Option<Weights>,
    /// The folder for caches that wait on disk.
    offload: Option<PathBuf>,
    /// How they are stored there.
    pub(super) offload_codec: SpillCodec,
    vision: Option<Vision>,
    pub(super) ports: Ports,
    pub(super) cache_mode: CacheMode,
    /// The memory of the provider's device, where caches are kept there.
    pub(super) device: Option<Arc<Mutex<ProviderMemory>>>,
    /// Whether steps have fixed shapes, and whether the provider captures them.
    pub(super) fixed_steps: bool,
    pub(super) captures: bool,
    /// Whether the arena gives memory back after each run of a prompt.
    pub(super) shrinks: bool,
    pub(super) padding: Padding,
    manifest: Manifest,
    engines: Option<EngineFacts>,
}

/// Logits stand in a buffer, in ONNX Runtime's memory, and gathered.
const LOGITS: u64 = 3;

/// The graph's interface by purpose.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    pub input_ids: Port,
    pub attention_mask: Option<Port>,
    /// One position a token, or three of them where `mrope` is set.
    pub position_ids: Option<Port>,
    pub mrope: bool,
    pub image_features: Option<Port>,
    pub logits_positions: Option<Port>,
    pub logits: Port,
    /// Past and present of every key and value, in pairs.
    pub cache: Vec<(Port, Port)>,
}

impl Model {
    /// Loads the package's decoder, and its vision tower where the plan has images.
    ///
    /// # Errors
    /// What [`Session::open`] refuses, and a plan that the package or the provider cannot follow.
    pub fn load(runtime: &Runtime, package: &Package, backend: &Backend, plan: &Plan) -> Result<Self> {
        Self::load_segments(runtime, package, backend, plan, None)
    }

    /// The same of some of a pack's segments only; other processes run the others. The plan cuts the graph.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub(super) fn load_segments(
        runtime: &Runtime,
        package: &Package,
        backend: &Backend,
        plan: &Plan,
        segments: Option<&Range<usize>>,
    ) -> Result<Self> {
        let graph = package.decoder()?;
        let mut ports = Ports::of(graph)?;
        let provider = providers::of(backend.provider);
        let setting = Setting {
            computes: provider.computes(),
            shares: provider.shares_cache_buffer(),
            update: package.manifest.cache.update,
            on_disk: plan.offload.is_some(),
            copies: plan.copies_caches,
        };
        let places = setting.places();
        let cache_mode = match plan.cache {
            None => places.best_mode(),
            Some(CacheMode::InPlace) if !places.shareable => {
                let message = format!(
                    "the key/value cache cannot be updated in place by a {} graph on {}",
                    package.manifest.flavour,
                    providers::name_of(backend)
                );
                return Err(Error::unsupported(message).hint("leave the cache mode to the program"));
            }
            Some(mode) => mode,
        };
        let capturing = fixed::is_asked(backend);
        let padding = plan.padding.unwrap_or(*package.manifest.padding.first().unwrap_or(&Padding::Right));
        if !package.manifest.padding.contains(&padding) {
            let message = format!("{padding:?} padding does not work with a {} graph", package.manifest.flavour);
            return Err(Error::unsupported(message.to_lowercase()));
        }
        let mut options = SessionOptions {
            config: plan.session_config.clone(),
            arena: plan.arena.unwrap_or(if plan.cuts_the_graph() { Arena::Off } else { Arena::Doubling }),
            memory_pattern: plan.memory_pattern.unwrap_or(!plan.cuts_the_graph()),
            ..SessionOptions::with_threads(plan.threads)
        };
        if plan.shrink && (options.arena == Arena::Off || backend.provider != ProviderKind::Cpu) {
            return Err(Error::unsupported("there is no arena of the CPU provider that could shrink")
                .hint("leave the arena on, or `shrink` off"));
        }
        if !plan.spins() {
            options.config.entry("session.intra_op.allow_spinning".to_owned()).or_insert_with(|| "0".to_owned());
        }
        let weights = Weights::of(package, plan, segments)?;
        if let Some(weights) = &weights {
            weights.expect_form(backend.provider)?;
        }
        if let Some(option) = capturing {
            let form = weights.as_ref().map(|weights| weights.index().form);
            let cut = plan.cuts_the_graph() || form == Some(Form::Inputs);
            fixed::check(option, &ports, cache_mode, cut)?;
        }
        let engines = Engines::of(runtime, package, backend, plan, &ports)?;
        let loading = Instant::now();
        let given = weights.as_ref().map(Weights::operators);
        let decoder_options = SessionOptions { optimize: plan.optimize_graph, ..options.clone() };
        let opening =
            Opening { runtime, package, backend: &engines.decoder, options: &decoder_options, weights: given.as_ref() };
        if weights.is_none() && plan.cuts_the_graph() {
            return Err(Error::unsupported(format!(
                "`{}` is no pack: its graph runs in one piece",
                package.root.display()
            ))
            .hint("make one with `ortbench pack`, or leave `micro_batch` and `offload` out"));
        }
        let mut parts = match &weights {
            // A graph whose weights are inputs is there in segments only.
            Some(weights) if plan.cuts_the_graph() || weights.index().form == Form::Inputs => {
                let parts = opening.cut(weights.index(), &ports, weights.taken_later())?;
                feed::agree(&parts, weights, &|name| graph.inputs.iter().any(|port| port.name == name))?;
                parts
            }
            _ => opening.whole(graph, &ports)?,
        };
        let mut manifest = package.manifest.clone();
        let all = ports.cache.len().max(1) as u64;
        leave_own_caches(&mut parts, &mut ports);
        manifest.cache.bytes_per_token = manifest.cache.bytes_per_token * ports.cache.len() as u64 / all;
        let vision = match (plan.images, &package.manifest.image) {
            (false, _) => None,
            (true, Some(image)) => Some(Vision::load(runtime, package, &engines.others, &options, image)?),
            (true, None) => return Err(package.takes_no_images()),
        };
        let engines = engines.facts(loading.elapsed().as_secs_f64());
        let device = match places.on_device {
            true => Some(Arc::new(Mutex::new(ProviderMemory::open(runtime, backend, &copier())?))),
            false => None,
        };
        let mut model = Self {
            fixed_steps: capturing.is_some()
                || (plan.fixed_steps && cache_mode == CacheMode::InPlace && device.is_some()),
            captures: capturing.is_some(),
            shrinks: plan.shrink,
            parts,
            device,
            feed: None,
            micro_batch: plan.micro_batch.map(|size| size as usize),
            weights,
            offload: plan.offload.clone(),
            offload_codec: plan.offload_codec,
            vision,
            ports,
            cache_mode,
            padding,
            manifest,
            engines,
        };
        let sequences = plan.at_once();
        let cache = model.cache_bytes(sequences as usize, plan.tokens as usize);
        let logits = LOGITS * u64::from(sequences) * model.manifest.shape.vocab_size * size_of::<f32>() as u64;
        let mut reserve = cache;
        let together = plan.micro_batch.map_or(sequences, |size| size.min(sequences)).max(1);
        let groups = u64::from(sequences.div_ceil(together));
        let mut waiting = groups.saturating_sub(1);
        if plan.offload.is_some() {
            // The part that runs, the next one, and the one on its way out.
            reserve = 3 * cache / (model.parts.len() as u64 * groups.max(1));
            waiting = waiting.min(2);
        }
        reserve += waiting * model.hidden_bytes(together.into(), plan.tokens.into());
        if let Some(weights) = &model.weights {
            // Last, when everything else that the process holds shows.
            reserve += feed::copied_bytes(backend, plan, weights)?;
            let tokens = u64::from(together) * u64::from(plan.tokens);
            weights.bring_in(reserve + logits, tokens, model.parts.len() as u64)?;
            model.feed = Feed::of(runtime, backend, plan, weights)?;
        }
        Ok(model)
    }

    /// Runs the vision tower over the images of a batch, one run an image. Prompts without images have no features.
    ///
    /// # Errors
    /// Images for a model that was loaded without its vision tower, a failed run.
    pub fn see(&mut self, prompts: &[Prompt]) -> Result<Features> {
        if prompts.iter().all(|prompt| prompt.images.is_empty()) {
            return Ok(Features::default());
        }
        match &mut self.vision {
            Some(vision) => vision.encode(prompts),
            None => Err(Error::new("the model was loaded without its vision tower, and a prompt has an image")),
        }
    }

    /// What the package promises.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// ONNX Runtime's name of the provider that was asked for.
    pub fn provider(&self) -> &str {
        self.parts[0].session.provider()
    }

    /// Which provider runs which node of the graphs that were loaded.
    pub fn placement(&self) -> Placement {
        let mut placement = Placement::default();
        for part in &self.parts {
            placement.add(part.session.placement());
        }
        if let Some(vision) = &self.vision {
            placement.add(vision.session.placement());
        }
        placement
    }

    /// What became of TensorRT's engines, where this program keeps them between runs.
    pub fn engines(&self) -> Option<EngineFacts> {
        self.engines
    }

    /// How the cache is kept.
    pub fn cache_mode(&self) -> CacheMode {
        self.cache_mode
    }

    /// Whether a prefill computes the logits of the last position only.
    pub fn computes_selected_logits(&self) -> bool {
        self.ports.logits_positions.is_some()
    }

    /// Whether the logits are computed here, and not by another process.
    pub(super) fn has_logits(&self) -> bool {
        self.parts.iter().any(|part| part.has_logits)
    }

    /// Whether several tokens can be appended to every row of a batch at once: fused attention kernels do so for one
    /// row only.
    pub fn extends_batches(&self) -> bool {
        self.manifest.flavour == Flavour::Plain
    }

    /// Whether sequences that run can go on in other groups than they began in: where their caches are kept in place in
    /// the program's memory, and begin at the first column.
    pub(super) fn regroups(&self) -> bool {
        let here = self.cache_mode == CacheMode::InPlace && self.device.is_none() && self.offload.is_none();
        here && self.padding == Padding::Right
    }

    /// Bytes that a sequence of so many tokens takes for its caches and logits.
    pub(super) fn sequence_bytes(&self, capacity: usize) -> u64 {
        self.cache_bytes(1, capacity) + LOGITS * self.manifest.shape.vocab_size * size_of::<f32>() as u64
    }

    /// A file for the caches of a decoder of this size, where they wait on disk.
    pub(super) fn spill(&self, batch: usize, capacity: usize) -> Result<Option<Arc<Mutex<Spill>>>> {
        let Some(folder) = &self.offload else { return Ok(None) };
        let spill = Spill::new(folder, self.offload_bytes(batch, capacity))?;
        Ok(Some(Arc::new(Mutex::new(spill))))
    }

    /// Bytes on disk for caches that wait there: rows begin at whole pages.
    fn offload_bytes(&self, batch: usize, capacity: usize) -> u64 {
        let widest = |(past, _): &(Port, Port)| match past.dims.as_slice() {
            [_, _, _, Dim::Size(width)] => aligned_capacity(capacity, *width as usize * past.dtype.size()),
            _ => capacity,
        };
        let capacity = self.ports.cache.iter().map(widest).max().unwrap_or(capacity);
        let together = self.micro_batch.unwrap_or(batch).clamp(1, batch.max(1));
        let of = |(past, _): &(Port, Port)| {
            let [_, Dim::Size(heads), _, Dim::Size(width)] = past.dims[..] else { return 0 };
            let (heads, width) = (heads as usize, width as usize);
            let room = |sequences: usize| {
                let (rows, column) = (sequences * heads, width * past.dtype.size());
                Size { rows, column, capacity, coding: self.coding(past.dtype, width) }.room() + ALIGNMENT
            };
            let last = batch % together;
            (batch / together) as u64 * room(together) + if last == 0 { 0 } else { room(last) }
        };
        self.ports.cache.iter().map(of).sum()
    }

    /// Whether what waits on disk is encoded there.
    pub fn encodes_what_waits(&self) -> bool {
        self.offload_codec != SpillCodec::None
    }

    /// How elements of that type are stored while they wait on disk; so many of them, which follow each other, share a
    /// scale where they lose some of their digits.
    pub(super) fn coding(&self, dtype: Dtype, group: usize) -> Coding {
        let group = matches!(dtype, Dtype::Float32 | Dtype::Float16).then_some(group);
        Coding { codec: self.offload_codec, size: dtype.size(), group }
    }

    /// Image tokens of the prompts: the places for rows of features.
    pub(super) fn image_tokens(&self, prompts: &[Prompt]) -> usize {
        let Some(image) = &self.manifest.image else { return 0 };
        prompts.iter().flat_map(|prompt| &prompt.tokens).filter(|token| **token == image.image_token).count()
    }

    /// What the loader did since the model was loaded, where its weights come from one.
    pub fn pager_statistics(&self) -> Option<Statistics> {
        self.weights.as_ref().and_then(Weights::statistics)
    }

    /// How the loader works here, where the weights come from one.
    pub fn pager_facts(&self) -> Option<PagerFacts> {
        self.weights.as_ref().and_then(Weights::facts)
    }

    /// Gives memory back where the process holds more than its budget.
    pub(super) fn keep_within_budget(&self) -> Result<()> {
        self.weights.as_ref().map_or(Ok(()), Weights::keep_within_budget)
    }

    /// The weights of a part, once they are there, where they are inputs of its graph.
    pub(super) fn feed(&mut self, part: usize) -> Result<Option<Arc<PartWeights>>> {
        self.feed.as_mut().map(|feed| feed.part(part)).transpose()
    }

    /// Whether weights that were bound to a part stay so.
    pub(super) fn keeps_fed(&self) -> bool {
        self.feed.as_ref().is_some_and(Feed::keeps)
    }

    /// The most bytes of hidden states that a group of so many sequences, of so many tokens each, keeps while other groups
    /// have their turn at a part; an estimate.
    pub fn hidden_bytes(&self, sequences: u64, tokens: u64) -> u64 {
        handed_bytes(&self.parts, sequences, tokens)
    }

    /// Bytes of cache that a decoder of this size allocates.
    pub fn cache_bytes(&self, batch: usize, capacity: usize) -> u64 {
        let one = (batch * capacity) as u64 * self.manifest.cache.bytes_per_token;
        match self.cache_mode {
            CacheMode::InPlace => one,
            CacheMode::Append => 2 * one,
        }
    }
}

impl Ports {
    fn of(graph: &Graph) -> Result<Self> {
        let mut cache = Vec::new();
        for (past_role, present_role) in
            [(PortRole::PastKey, PortRole::PresentKey), (PortRole::PastValue, PortRole::PresentValue)]
        {
            let (past, present) = (graph.layers(past_role), graph.layers(present_role));
            if past.len() != present.len() || past.iter().zip(&present).any(|(a, b)| a.layer != b.layer) {
                return Err(Error::new(format!("the graph `{}` has a past without a present", graph.file)));
            }
            cache.extend(past.into_iter().cloned().zip(present.into_iter().cloned()));
        }
        let mrope = graph.port(PortRole::MropePositionIds);
        Ok(Self {
            input_ids: graph.need(PortRole::InputIds, "the token ids")?,
            attention_mask: graph.port(PortRole::AttentionMask).cloned(),
            position_ids: graph.port(PortRole::PositionIds).or(mrope).cloned(),
            mrope: mrope.is_some(),
            image_features: graph.port(PortRole::ImageFeatures).cloned(),
            logits_positions: graph.port(PortRole::LogitsPositions).cloned(),
            logits: graph.need(PortRole::Logits, "the logits")?,
            cache,
        })
    }
}

/// The manifest and the ONNX file must name the same tensors: binding by a stale name fails late and obscurely.
pub(super) fn agree(session: &Session, graph: &Graph) -> Result<()> {
    for name in session.input_names() {
        if !graph.inputs.iter().any(|port| port.name == name) {
            return Err(Error::new(format!(
                "the graph `{}` wants the input `{name}`, which its manifest does not name",
                graph.file
            )));
        }
    }
    for port in &graph.outputs {
        if !session.output_names().any(|name| name == port.name) {
            return Err(Error::new(format!(
                "the manifest names the output `{}`, which the graph `{}` does not have",
                port.name, graph.file
            )));
        }
    }
    Ok(())
}
