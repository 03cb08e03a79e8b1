//! The weights of a pack whose graphs take them as inputs: who brings them, and which stay.

use std::sync::Arc;

use crate::cell::{Backend, Residency};
use crate::engine::parts::Part;
use crate::engine::plan::Plan;
use crate::engine::weights::Weights;
use crate::error::{Error, Result};
use crate::loader::feed::{Ahead, Feeder, Lend, SETS, copier, weights_of_parts};
use crate::package::shards::Form;
use crate::runtime::device::ProviderMemory;
use crate::runtime::providers::{self, Computes};
use crate::runtime::{PartWeights, Runtime};

/// Bytes of the host's memory to which the weights of a pack are copied beside the loader's own: where a plan asks for
/// copies on a provider that computes there.
///
/// # Errors
/// A pack of the form `inputs` with records that no input can be.
pub(super) fn copied_bytes(backend: &Backend, plan: &Plan, weights: &Weights) -> Result<u64> {
    let host = providers::of(backend.provider).computes() == Computes::Host;
    if weights.index().form != Form::Inputs || !plan.copies_weights || !host {
        return Ok(0);
    }
    let parts = weights_of_parts(weights.index())?;
    let sets = if weights.residency() == Residency::Resident { parts.len() } else { SETS };
    Ok(Ahead::bytes(&parts, sets))
}

/// Brings each part its weights.
#[derive(Debug)]
pub(super) struct Feed {
    feeder: Box<dyn Feeder>,
    /// Those of each part that was fed, where all of them stay.
    kept: Option<Vec<Option<Arc<PartWeights>>>>,
}

impl Feed {
    /// For the opened weights of a pack; `None` where operators ask for them.
    ///
    /// # Errors
    /// A device that cannot be had, or not so much of its memory.
    pub fn of(runtime: &Runtime, backend: &Backend, plan: &Plan, weights: &Weights) -> Result<Option<Self>> {
        if weights.index().form != Form::Inputs {
            return Ok(None);
        }
        let pager = weights.pager()?;
        let parts = weights_of_parts(weights.index())?;
        let count = parts.len();
        let keeps = weights.residency() == Residency::Resident;
        let feeder: Box<dyn Feeder> =
            if plan.copies_weights || providers::of(backend.provider).computes() == Computes::Cuda {
                let device = ProviderMemory::open(runtime, backend, &copier())?;
                Box::new(Ahead::new(pager, parts, Box::new(device), if keeps { count } else { SETS })?)
            } else {
                Box::new(Lend::new(pager, parts))
            };
        Ok(Some(Self { feeder, kept: keeps.then(|| vec![None; count]) }))
    }

    /// The weights of a part, once they are there.
    pub fn part(&mut self, part: usize) -> Result<Arc<PartWeights>> {
        let Some(kept) = &mut self.kept else { return self.feeder.part(part) };
        if let Some(weights) = &kept[part] {
            return Ok(Arc::clone(weights));
        }
        let weights = self.feeder.part(part)?;
        kept[part] = Some(Arc::clone(&weights));
        Ok(weights)
    }

    /// Whether weights that were bound stay so.
    pub fn keeps(&self) -> bool {
        self.kept.is_some()
    }
}

/// A part's graph and the index must name the same weights.
///
/// # Errors
/// A record that is no input of its segment, an input that nothing is bound to.
pub(super) fn agree(parts: &[Part], weights: &Weights, known: &dyn Fn(&str) -> bool) -> Result<()> {
    if weights.index().form != Form::Inputs {
        return Ok(());
    }
    let named = weights_of_parts(weights.index())?;
    for ((part, named), segment) in parts.iter().zip(&named).zip(&weights.index().segments) {
        let names: Vec<&str> = named.iter().map(|weight| weight.input.name.as_str()).collect();
        let wrong = |message: String| Err(Error::new(message).hint("pack the model again with `--form inputs`"));
        if let Some(name) = names.iter().find(|name| !part.inputs.contains(**name)) {
            return wrong(format!("the segment `{}` has no input for the record `{name}`", segment.file));
        }
        let bound = |name: &&String| {
            let name = name.as_str();
            names.contains(&name) || segment.takes.iter().any(|taken| taken == name) || known(name)
        };
        if let Some(name) = part.inputs.iter().find(|name| !bound(name)) {
            return wrong(format!("the segment `{}` wants the input `{name}`, which nothing gives it", segment.file));
        }
    }
    Ok(())
}
