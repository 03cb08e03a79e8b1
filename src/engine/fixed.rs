//! Steps of fixed shapes at fixed addresses, which a provider can capture as one graph and replay.
//!
//! A step that decodes one token a row differs from the next in nothing but contents where the cache is updated in place
//! and the mask is as wide as the cache: attention counts the mask's ones. Inputs are copied to buffers on the device that
//! stay where they are, and the logits from one. Prompts, and steps of several tokens, run uncaptured beside them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::cell::{Backend, ProviderKind};
use crate::engine::kept::Kept;
use crate::engine::model::Ports;
use crate::engine::plan::CacheMode;
use crate::error::{Error, Result};
use crate::runtime::{Bindings, BufferId};

/// Numbers of captured graphs: buffers of another group are at other addresses.
static NEXT: AtomicI32 = AtomicI32::new(1);

/// What of a group's steps stays in place.
#[derive(Debug)]
pub(super) struct Fixed {
    /// Host buffers, where they are copied to, and bytes of a step.
    inputs: Vec<(BufferId, BufferId, usize)>,
    /// On the device.
    pub logits: BufferId,
    logits_bytes: usize,
    /// The captured graph's number, where the provider captures.
    graph: Option<i32>,
}

/// What a run is to the provider that captures.
pub(super) const UNCAPTURED: i32 = -1;

impl Fixed {
    /// Allocates for the inputs, as `(host buffer, bytes of a step)`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn new(
        kept: &Kept,
        bindings: &mut Bindings,
        inputs: &[(BufferId, usize)],
        logits_bytes: usize,
        captures: bool,
    ) -> Result<Self> {
        let inputs = inputs.iter().map(|&(host, bytes)| Ok((host, kept.allocate(bindings, bytes)?, bytes)));
        let inputs = inputs.collect::<Result<_>>()?;
        let logits = kept.allocate(bindings, logits_bytes)?;
        let graph = captures.then(|| NEXT.fetch_add(1, Ordering::Relaxed));
        Ok(Self { inputs, logits, logits_bytes, graph })
    }

    /// Where a host buffer's contents are in a step.
    pub fn place(&self, host: BufferId) -> BufferId {
        self.inputs.iter().find(|(from, _, _)| *from == host).map_or(host, |(_, to, _)| *to)
    }

    /// Copies what the host wrote.
    ///
    /// # Errors
    /// A transfer that fails.
    pub fn send(&self, kept: &Kept, bindings: &mut Bindings) -> Result<()> {
        self.inputs.iter().try_for_each(|&(from, to, bytes)| kept.copy(bindings, from, to, bytes))
    }

    /// Copies the logits to a buffer that the host reads.
    ///
    /// # Errors
    /// A transfer that fails.
    pub fn fetch(&self, kept: &Kept, bindings: &mut Bindings, to: BufferId) -> Result<()> {
        kept.copy(bindings, self.logits, to, self.logits_bytes)
    }

    /// The number under which a run is captured and replayed; `None` where nothing captures.
    pub fn graph(&self, step: bool) -> Option<i32> {
        self.graph.map(|number| if step { number } else { UNCAPTURED })
    }
}

/// Whether the backend's options ask the provider to capture.
pub(super) fn is_asked(backend: &Backend) -> Option<&'static str> {
    let option = match backend.provider {
        ProviderKind::Cuda => "enable_cuda_graph",
        ProviderKind::TensorRt => "trt_cuda_graph_enable",
        _ => return None,
    };
    is_on(&backend.options, option).then_some(option)
}

fn is_on(options: &BTreeMap<String, String>, option: &str) -> bool {
    options.get(option).is_some_and(|value| ["1", "true", "True"].contains(&value.as_str()))
}

/// Refuses to capture what changes its shape from step to step.
///
/// # Errors
/// A graph with such a tensor, which is named.
pub(super) fn check(option: &str, ports: &Ports, mode: CacheMode, cut: bool) -> Result<()> {
    let moves = if mode == CacheMode::Append {
        ports.cache.first().map(|(past, _)| format!("`{}` grows with every token", past.name))
    } else if let Some(port) = &ports.image_features {
        Some(format!("where `{}` goes is found out in every run", port.name))
    } else {
        cut.then(|| "what its parts hand over is allocated by every run".to_owned())
    };
    match moves {
        None => Ok(()),
        Some(what) => Err(Error::unsupported(format!("`{option}` needs shapes and addresses that stay, but {what}"))
            .hint("capture a `fused` graph of a text model on CUDA, in one piece, or leave the option out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Dtype, RuntimeRef};
    use crate::package::{Dim, Port, PortRole};

    fn backend(provider: ProviderKind, option: &str, value: &str) -> Backend {
        Backend {
            name: "x".into(),
            runtime: RuntimeRef::Installed("cuda".into()),
            provider,
            plugin: None,
            options: [(option.to_owned(), value.to_owned())].into(),
        }
    }

    #[test]
    fn capture_is_off_unless_its_own_option_asks() {
        let cuda = |option, value| is_asked(&backend(ProviderKind::Cuda, option, value));
        assert_eq!(cuda("enable_cuda_graph", "1"), Some("enable_cuda_graph"));
        assert_eq!(cuda("enable_cuda_graph", "0"), None);
        assert_eq!(cuda("device_id", "1"), None);
        let tensorrt = backend(ProviderKind::TensorRt, "trt_cuda_graph_enable", "true");
        assert_eq!(is_asked(&tensorrt), Some("trt_cuda_graph_enable"));
        assert_eq!(is_asked(&backend(ProviderKind::Cpu, "enable_cuda_graph", "1")), None);
    }

    #[test]
    fn what_moves_is_refused_by_name() {
        let port = |name: &str, role| Port {
            name: name.to_owned(),
            role,
            layer: None,
            dtype: Dtype::Float16,
            dims: vec![Dim::Size(1)],
        };
        let mut ports = Ports {
            input_ids: port("input_ids", PortRole::InputIds),
            attention_mask: Some(port("attention_mask", PortRole::AttentionMask)),
            position_ids: None,
            mrope: false,
            image_features: None,
            logits_positions: None,
            logits: port("logits", PortRole::Logits),
            cache: vec![(port("past.0.key", PortRole::PastKey), port("present.0.key", PortRole::PresentKey))],
        };
        assert!(check("enable_cuda_graph", &ports, CacheMode::InPlace, false).is_ok());
        let said = |ports: &Ports, mode, cut| check("enable_cuda_graph", ports, mode, cut).unwrap_err().chain();
        assert_eq!(
            said(&ports, CacheMode::Append, false),
            "`enable_cuda_graph` needs shapes and addresses that stay, but `past.0.key` grows with every token"
        );
        assert!(said(&ports, CacheMode::InPlace, true).contains("hand over"));
        ports.image_features = Some(port("image_features", PortRole::ImageFeatures));
        assert!(said(&ports, CacheMode::InPlace, false).contains("`image_features`"));
    }
}
