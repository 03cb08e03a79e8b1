//! What TensorRT is told of a model: precisions, the shapes that runs will have, where its engines are kept.
//!
//! Without the shapes TensorRT builds an engine for those that it meets, and builds it anew for every longer cache: once
//! a token. Whoever names `trt_profile_…_shapes` in the provider's options gives all of them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cell::{Backend, Dtype, ProviderKind};
use crate::engine::model::Ports;
use crate::engine::plan::Plan;
use crate::engine::scoring::Budget;
use crate::error::Result;
use crate::package::{Dim, Package, Port, PortRole};
use crate::runtime::engines::{EngineCache, Key};
use crate::runtime::{Runtime, catalog, nvidia};

/// The backend as sessions get it, and where its engines are.
pub(super) struct Engines {
    /// For the decoder's graph.
    pub decoder: Backend,
    /// For other graphs, whose inputs have other names.
    pub others: Backend,
    cache: Option<EngineCache>,
}

/// Where engines came from, and how long the sessions took that built them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineFacts {
    /// `built`, `reused` or `none`.
    pub origin: &'static str,
    /// Seconds of the creation of sessions, where engines were built.
    pub build_seconds: Option<f64>,
}

impl Engines {
    /// What the backend's provider is told. Of other providers than TensorRT nothing changes.
    ///
    /// # Errors
    /// A cache folder that cannot be written.
    pub fn of(runtime: &Runtime, package: &Package, backend: &Backend, plan: &Plan, ports: &Ports) -> Result<Self> {
        let (mut decoder, mut others, mut cache) = (backend.clone(), backend.clone(), None);
        if backend.provider != ProviderKind::TensorRt {
            return Ok(Self { decoder, others, cache });
        }
        let mut options = precisions(ports);
        if !plan.cuts_the_graph() && !names_shapes(&backend.options) {
            let context = package.manifest.shape.context_length as usize;
            options.extend(profiles(ports, &Bounds::of(plan, context)));
        }
        extend(&mut decoder.options, options);
        extend(&mut others.options, precisions(ports));
        if !backend.options.contains_key("trt_engine_cache_enable") {
            let gpus = nvidia::gpu_models(Path::new("/")).join(", ");
            let (build, version) = (runtime.build_info(), runtime.version()?);
            let runtime = format!("{version} {build}");
            let key = Key { package: &package.hash, runtime: &runtime, gpu: &gpus, options: &decoder.options };
            let opened = EngineCache::open(&catalog::cache_folder()?, &key)?;
            extend(&mut decoder.options, opened.options());
            extend(&mut others.options, opened.options());
            cache = Some(opened);
        }
        Ok(Self { decoder, others, cache })
    }

    /// What became of the engines of sessions that took that long to create; `None` where this program keeps none.
    pub fn facts(&self, seconds: f64) -> Option<EngineFacts> {
        let origin = self.cache.as_ref()?.origin();
        let built = origin == crate::runtime::engines::Origin::Built;
        Some(EngineFacts { origin: origin.name(), build_seconds: built.then_some(seconds) })
    }
}

/// The sizes that a run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    /// Sequences, as a rule and at most.
    rows: (usize, usize),
    /// Tokens of each, prompt and generated, as a rule and at most.
    tokens: (usize, usize),
}

impl Bounds {
    fn of(plan: &Plan, context: usize) -> Self {
        let rows = plan.at_once().max(1) as usize;
        let tokens = if plan.tokens == 0 { context } else { plan.tokens as usize };
        match plan.any_shape {
            true => Self { rows: (rows, rows.max(Budget::default().rows)), tokens: (tokens, context.max(tokens)) },
            false => Self { rows: (rows, rows), tokens: (tokens, tokens) },
        }
    }
}

/// The user's options win over ours.
fn extend(options: &mut BTreeMap<String, String>, ours: BTreeMap<String, String>) {
    for (key, value) in ours {
        options.entry(key).or_insert(value);
    }
}

fn names_shapes(options: &BTreeMap<String, String>) -> bool {
    options.keys().any(|key| key.starts_with("trt_profile_"))
}

/// Half precisions must be allowed for graphs that are written in them.
fn precisions(ports: &Ports) -> BTreeMap<String, String> {
    let used = |dtype| {
        std::iter::once(&ports.logits).chain(ports.cache.iter().map(|(past, _)| past)).any(|port| port.dtype == dtype)
    };
    [(Dtype::Float16, "trt_fp16_enable"), (Dtype::BFloat16, "trt_bf16_enable")]
        .into_iter()
        .filter(|(dtype, _)| used(*dtype))
        .map(|(_, option)| (option.to_owned(), "1".to_owned()))
        .collect()
}

/// The smallest, usual and largest shape of every input: decoding is what engines are tuned for.
fn profiles(ports: &Ports, bounds: &Bounds) -> BTreeMap<String, String> {
    let optional = [&ports.attention_mask, &ports.position_ids, &ports.image_features, &ports.logits_positions];
    let inputs = || {
        let cache = ports.cache.iter().map(|(past, _)| past);
        std::iter::once(&ports.input_ids).chain(optional.iter().filter_map(|port| port.as_ref())).chain(cache)
    };
    let (rows, tokens) = (bounds.rows, bounds.tokens);
    let sizes = [
        ("min", Sizes { rows: 1, new: 1, past: 0, total: 1, features: 0 }),
        ("opt", Sizes { rows: rows.0, new: 1, past: tokens.0 - 1, total: tokens.0, features: 0 }),
        ("max", Sizes { rows: rows.1, new: tokens.1, past: tokens.1, total: tokens.1, features: rows.1 * tokens.1 }),
    ];
    let written = sizes.map(|(name, sizes)| {
        let shapes: Vec<_> = inputs().map(|port| format!("{}:{}", port.name, sizes.shape(port))).collect();
        (format!("trt_profile_{name}_shapes"), shapes.join(","))
    });
    written.into()
}

/// Sizes of the dimensions that change from run to run.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    new: usize,
    past: usize,
    total: usize,
    features: usize,
}

impl Sizes {
    fn shape(&self, port: &Port) -> String {
        let last = port.dims.len().saturating_sub(1);
        let size = |(place, dim): (usize, &Dim)| match dim {
            Dim::Size(size) => *size as usize,
            Dim::Symbol(_) => match port.role {
                PortRole::PastKey | PortRole::PastValue if place == 0 => self.rows,
                PortRole::PastKey | PortRole::PastValue => self.past,
                PortRole::ImageFeatures => self.features,
                PortRole::AttentionMask if place == last => self.total,
                _ if place == last => self.new,
                _ => self.rows,
            },
        };
        port.dims.iter().enumerate().map(|dim| size(dim).to_string()).collect::<Vec<_>>().join("x")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, role: PortRole, dtype: Dtype, dims: &[&str]) -> Port {
        let dim = |text: &&str| text.parse().map_or_else(|_| Dim::Symbol((*text).to_owned()), Dim::Size);
        Port { name: name.to_owned(), role, layer: None, dtype, dims: dims.iter().map(dim).collect() }
    }

    fn ports(dtype: Dtype) -> Ports {
        let past = port("past.0.key", PortRole::PastKey, dtype, &["batch", "2", "past", "32"]);
        let present = port("present.0.key", PortRole::PresentKey, dtype, &["batch", "2", "total", "32"]);
        Ports {
            input_ids: port("input_ids", PortRole::InputIds, Dtype::Int64, &["batch", "sequence"]),
            attention_mask: Some(port("mask", PortRole::AttentionMask, Dtype::Int64, &["batch", "total"])),
            position_ids: Some(port("position", PortRole::MropePositionIds, Dtype::Int64, &["3", "batch", "sequence"])),
            mrope: true,
            image_features: Some(port("features", PortRole::ImageFeatures, dtype, &["image_tokens", "64"])),
            logits_positions: Some(port("wanted", PortRole::LogitsPositions, Dtype::Int64, &["batch", "selected"])),
            logits: port("logits", PortRole::Logits, Dtype::Float32, &["batch", "selected", "300"]),
            cache: vec![(past, present)],
        }
    }

    #[test]
    fn shapes_cover_prefill_and_decode() {
        let plan = Plan { sequences: 4, tokens: 48, ..Plan::with_threads(1) };
        let found = profiles(&ports(Dtype::Float16), &Bounds::of(&plan, 512));
        assert_eq!(
            found["trt_profile_min_shapes"],
            "input_ids:1x1,mask:1x1,position:3x1x1,features:0x64,wanted:1x1,past.0.key:1x2x0x32"
        );
        assert_eq!(
            found["trt_profile_opt_shapes"],
            "input_ids:4x1,mask:4x48,position:3x4x1,features:0x64,wanted:4x1,past.0.key:4x2x47x32"
        );
        assert_eq!(
            found["trt_profile_max_shapes"],
            "input_ids:4x48,mask:4x48,position:3x4x48,features:192x64,wanted:4x48,past.0.key:4x2x48x32"
        );
    }

    #[test]
    fn scoring_may_have_any_shape_and_plans_without_tokens_the_context() {
        let plan = Plan { sequences: 1, tokens: 48, any_shape: true, ..Plan::with_threads(1) };
        let bounds = Bounds::of(&plan, 512);
        assert_eq!((bounds.rows, bounds.tokens), ((1, Budget::default().rows), (48, 512)));
        assert_eq!(Bounds::of(&Plan::with_threads(1), 512).tokens, (512, 512));
    }

    #[test]
    fn half_precisions_are_allowed_where_the_graph_has_them_and_the_user_wins() {
        assert!(precisions(&ports(Dtype::Float32)).is_empty());
        assert_eq!(precisions(&ports(Dtype::BFloat16)).into_keys().collect::<Vec<_>>(), ["trt_bf16_enable"]);
        let mut options = BTreeMap::from([("trt_fp16_enable".to_owned(), "0".to_owned())]);
        extend(&mut options, precisions(&ports(Dtype::Float16)));
        assert_eq!(options["trt_fp16_enable"], "0");
        assert!(!names_shapes(&options));
        options.insert("trt_profile_min_shapes".to_owned(), String::new());
        assert!(names_shapes(&options));
    }
}
