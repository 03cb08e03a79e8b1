//! What of a group waits on disk while others have their turn: when it leaves, and when it comes back.

use std::sync::{Arc, Mutex};

use super::Group;
use crate::engine::hidden::Hidden;
use crate::engine::model::Model;
use crate::error::Result;
use crate::loader::spill::Spill;

impl Group {
    /// Lets hidden states wait on disk as well, where they are large and other groups have their turn meanwhile.
    pub fn offload_hidden(&mut self, model: &Model, spill: &Arc<Mutex<Spill>>) {
        let width = model.manifest().shape.hidden_size as usize;
        self.hidden = Some(Hidden::new(spill, model.offload_codec, width));
    }

    /// Waits until what the group sent to disk of its hidden states has left.
    pub fn settle(&mut self) -> Result<()> {
        self.hidden.as_mut().map_or(Ok(()), Hidden::settle)
    }

    /// Bytes of hidden states in memory.
    pub fn hidden_bytes(&self) -> usize {
        let theirs: usize = self.bindings.handed().map(|(_, bytes)| bytes).sum();
        theirs + self.hidden.as_ref().map_or(0, Hidden::bytes)
    }

    /// Begins to bring a part's cache in from disk, where it waits there.
    pub fn prefetch(&mut self, model: &Model, place: usize) {
        if let Some(hidden) = &mut self.hidden {
            hidden.prefetch(&model.parts[place].takes, &self.bindings);
        }
        let Some(offload) = &mut self.offload else { return };
        for &tensor in &model.parts[place].caches {
            let extent = self.cache[tensor].extent(self.batch, self.capacity, self.columns, false);
            offload.prefetch(tensor, extent, self.columns, &self.bindings);
        }
    }

    pub(super) fn bring_in(&mut self, model: &Model, place: usize) -> Result<()> {
        if let Some(hidden) = &mut self.hidden {
            hidden.bring_in(&model.parts[place].takes, &self.bindings)?;
        }
        let Some(offload) = &mut self.offload else { return Ok(()) };
        for &tensor in &model.parts[place].caches {
            let extent = self.cache[tensor].extent(self.batch, self.capacity, self.columns, false);
            offload.bring_in(tensor, extent, self.columns, &self.bindings)?;
        }
        Ok(())
    }

    pub(super) fn send_out(&mut self, model: &Model, place: usize) {
        let Some(offload) = &mut self.offload else { return };
        let total = self.columns + self.new;
        for &tensor in &model.parts[place].caches {
            let layer = &self.cache[tensor];
            let extent = layer.extent(self.batch, self.capacity, total, true);
            let from = if layer.back.is_some() { 0 } else { self.written_from };
            offload.send_out(tensor, extent, from..total, &self.bindings);
        }
    }
}
