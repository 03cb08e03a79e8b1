//! A package loaded on a backend.

use crate::cell::Backend;
use crate::engine::plan::{CacheMode, Plan};
use crate::error::{Error, Result};
use crate::package::{CacheUpdate, Graph, Manifest, Package, Padding, Port, PortRole};
use crate::runtime::{Runtime, Session, SessionOptions, providers};

/// A loaded model: the session, the graph's interface, and how its cache is kept.
#[derive(Debug)]
pub struct Model {
    pub(super) session: Session,
    pub(super) ports: Ports,
    pub(super) cache_mode: CacheMode,
    pub(super) padding: Padding,
    manifest: Manifest,
}

/// The graph's interface by purpose.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    pub input_ids: Port,
    pub attention_mask: Option<Port>,
    pub position_ids: Option<Port>,
    pub logits_positions: Option<Port>,
    pub logits: Port,
    /// Past and present of every key and value, in pairs.
    pub cache: Vec<(Port, Port)>,
}

impl Model {
    /// Loads the package's decoder.
    ///
    /// # Errors
    /// What [`Session::open`] refuses, and a plan that the package or the provider cannot follow.
    pub fn load(runtime: &Runtime, package: &Package, backend: &Backend, plan: &Plan) -> Result<Self> {
        let graph = package.decoder()?;
        let ports = Ports::of(graph)?;
        let provider = providers::of(backend.provider);
        let shareable = package.manifest.cache.update == CacheUpdate::InPlaceOrAppend && provider.shares_cache_buffer();
        let cache_mode = match plan.cache {
            None if shareable => CacheMode::InPlace,
            None => CacheMode::Append,
            Some(CacheMode::InPlace) if !shareable => {
                let message = format!(
                    "the key/value cache cannot be updated in place by a {} graph on {}",
                    package.manifest.flavour,
                    provider.canonical_name()
                );
                return Err(Error::unsupported(message).hint("leave the cache mode to the program"));
            }
            Some(mode) => mode,
        };
        let padding = plan.padding.unwrap_or(*package.manifest.padding.first().unwrap_or(&Padding::Right));
        if !package.manifest.padding.contains(&padding) {
            let message = format!("{padding:?} padding does not work with a {} graph", package.manifest.flavour);
            return Err(Error::unsupported(message.to_lowercase()));
        }
        let options = SessionOptions { threads: plan.threads, config: plan.session_config.clone() };
        let session = Session::open(runtime, &package.root.join(&graph.file), backend, &options)?;
        ports.agree_with(&session, graph)?;
        Ok(Self { session, ports, cache_mode, padding, manifest: package.manifest.clone() })
    }

    /// What the package promises.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The session, for its placement.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How the cache is kept.
    pub fn cache_mode(&self) -> CacheMode {
        self.cache_mode
    }

    /// Whether a prefill computes the logits of the last position only.
    pub fn computes_selected_logits(&self) -> bool {
        self.ports.logits_positions.is_some()
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
        let need = |role, word| {
            graph
                .port(role)
                .cloned()
                .ok_or_else(|| Error::new(format!("the graph `{}` has no tensor for {word}", graph.file)))
        };
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
        Ok(Self {
            input_ids: need(PortRole::InputIds, "the token ids")?,
            attention_mask: graph.port(PortRole::AttentionMask).cloned(),
            position_ids: graph.port(PortRole::PositionIds).cloned(),
            logits_positions: graph.port(PortRole::LogitsPositions).cloned(),
            logits: need(PortRole::Logits, "the logits")?,
            cache,
        })
    }

    /// The manifest and the ONNX file must name the same tensors: binding by a stale name fails late and obscurely.
    fn agree_with(&self, session: &Session, graph: &Graph) -> Result<()> {
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
}
