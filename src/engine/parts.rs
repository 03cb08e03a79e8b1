//! The sessions of a model: one, or one for each of the segments that its pack is cut into.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cell::Backend;
use crate::engine::model::Ports;
use crate::error::Result;
use crate::package::shards::ShardIndex;
use crate::package::{Graph, Package};
use crate::runtime::custom::Weights;
use crate::runtime::{Runtime, Session, SessionOptions};

/// A part of the model with a session of its own; the whole model where it is not cut.
#[derive(Debug)]
pub(super) struct Part {
    pub session: Session,
    /// Names of its inputs.
    pub inputs: BTreeSet<String>,
    /// Whether it ends in the logits.
    pub has_logits: bool,
    /// Places of its tensors in [`Ports::cache`].
    pub caches: Vec<usize>,
    /// Tensors that earlier parts made.
    pub takes: Vec<String>,
    /// Tensors that later parts take.
    pub makes: Vec<String>,
    /// Those of `takes` that no later part takes.
    pub taken_last: Vec<String>,
}

impl Part {
    fn new(session: Session, ports: &Ports) -> Self {
        let inputs: BTreeSet<String> = session.input_names().map(ToOwned::to_owned).collect();
        let has_logits = session.output_names().any(|name| name == ports.logits.name);
        let (takes, makes, taken_last) = (Vec::new(), Vec::new(), Vec::new());
        let mut part = Self { session, inputs, has_logits, caches: Vec::new(), takes, makes, taken_last };
        part.place_caches(ports);
        part
    }

    /// Finds its caches among the ports.
    fn place_caches(&mut self, ports: &Ports) {
        let places = ports.cache.iter().enumerate().filter(|(_, (past, _))| self.inputs.contains(&past.name));
        self.caches = places.map(|(place, _)| place).collect();
    }
}

/// Leaves those caches among the ports that some part has: the others are other processes'.
pub(super) fn leave_own_caches(parts: &mut [Part], ports: &mut Ports) {
    ports.cache.retain(|(past, _)| parts.iter().any(|part| part.inputs.contains(&past.name)));
    parts.iter_mut().for_each(|part| part.place_caches(ports));
}

/// The most bytes that a group of so many sequences, of so many tokens each, keeps between two parts for later ones.
pub(super) fn handed_bytes(parts: &[Part], sequences: u64, tokens: u64) -> u64 {
    // Tensors that were made and are still to be taken, with their bytes.
    let (mut waiting, mut most) = (BTreeMap::new(), 0);
    for (place, part) in parts.iter().enumerate() {
        for name in &part.makes {
            let taker = parts[place + 1..].iter().find(|later| later.takes.contains(name));
            let bytes = taker.and_then(|taker| taker.session.input_bytes(name, sequences, tokens));
            waiting.insert(name, bytes.unwrap_or(0));
        }
        waiting.retain(|name, _| !part.taken_last.contains(name));
        most = waiting.values().fold(0, |all: u64, bytes| all.saturating_add(*bytes)).max(most);
    }
    most
}

/// What every session of a model is opened with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening<'a> {
    pub runtime: &'a Runtime,
    pub package: &'a Package,
    pub backend: &'a Backend,
    pub options: &'a SessionOptions,
    pub weights: Option<&'a Arc<dyn Weights>>,
}

impl Opening<'_> {
    /// The whole graph in one session.
    pub fn whole(&self, graph: &Graph, ports: &Ports) -> Result<Vec<Part>> {
        let session = self.session(&graph.file)?;
        super::model::agree(&session, graph)?;
        Ok(vec![Part::new(session, ports)])
    }

    /// One session a segment. Other processes may take some of what these make after them.
    pub fn cut(&self, index: &ShardIndex, ports: &Ports, taken_later: &BTreeSet<String>) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(index.segments.len());
        for segment in &index.segments {
            let mut part = Part::new(self.session(&segment.file)?, ports);
            part.takes.clone_from(&segment.takes);
            part.makes.clone_from(&segment.makes);
            parts.push(part);
        }
        let mut later = taken_later.clone();
        for part in parts.iter_mut().rev() {
            part.taken_last = part.takes.iter().filter(|name| !later.contains(*name)).cloned().collect();
            later.extend(part.takes.iter().cloned());
        }
        Ok(parts)
    }

    fn session(&self, file: &str) -> Result<Session> {
        Session::open_with(self.runtime, &self.package.root.join(file), self.backend, self.options, self.weights)
    }
}
