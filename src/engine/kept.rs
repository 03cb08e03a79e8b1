//! Memory for what is kept from run to run: of the program's own, or of the device on which the provider computes.
//!
//! On a device the cache stays there: no run copies it, and what comes back is the logits that were wanted, into memory
//! of the host that the device reaches directly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::model::Model;
use crate::error::Result;
use crate::runtime::device::{Device, ProviderMemory};
use crate::runtime::{Bindings, BufferId};

/// Whose memory it is.
#[derive(Debug)]
pub(super) struct Kept(Option<Arc<Mutex<ProviderMemory>>>);

impl Kept {
    /// Where the model keeps its caches. What its parts hand over is there as well.
    ///
    /// # Errors
    /// A memory that ONNX Runtime does not know.
    pub fn of(model: &Model, bindings: &mut Bindings) -> Result<Self> {
        let kept = Self(model.device.clone());
        if let Some(device) = kept.device() {
            bindings.hand_over_in(&device)?;
        }
        Ok(kept)
    }

    /// Whether it is ONNX Runtime's memory, which the host does not see.
    pub fn on_device(&self) -> bool {
        self.0.is_some()
    }

    /// A buffer that runs read and write; all zeros.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn allocate(&self, bindings: &mut Bindings, bytes: usize) -> Result<BufferId> {
        match self.device() {
            Some(mut device) => Ok(bindings.adopt(device.allocate_cleared(bytes)?)),
            None => bindings.allocate(bytes),
        }
    }

    /// A buffer that the host reads after a run.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn allocate_answer(&self, bindings: &mut Bindings, bytes: usize) -> Result<BufferId> {
        match self.device() {
            Some(mut device) => Ok(bindings.adopt(device.allocate_pinned(bytes)?)),
            None => bindings.allocate(bytes),
        }
    }

    /// A copy of a buffer's first bytes.
    ///
    /// # Errors
    /// A transfer that fails.
    pub fn save(&self, bindings: &Bindings, id: BufferId, bytes: usize) -> Result<Vec<u8>> {
        match self.device() {
            Some(mut device) => device.read(bindings.block(id), bytes),
            None => Ok(bindings.read::<u8>(id, bytes).to_vec()),
        }
    }

    /// Writes bytes back to the start of a buffer.
    ///
    /// # Errors
    /// A transfer that fails.
    pub fn restore(&self, bindings: &mut Bindings, id: BufferId, bytes: &[u8]) -> Result<()> {
        match self.device() {
            Some(mut device) => device.copy(bytes, bindings.block_mut(id), 0)?,
            None => bindings.write::<u8>(id, bytes.len()).copy_from_slice(bytes),
        }
        Ok(())
    }

    /// Copies the first bytes of one buffer to another.
    ///
    /// # Errors
    /// A transfer that fails.
    pub fn copy(&self, bindings: &mut Bindings, from: BufferId, to: BufferId, bytes: usize) -> Result<()> {
        let (from, to) = bindings.two_blocks(from, to);
        match self.device() {
            Some(mut device) => device.copy_block(from, to, bytes),
            None => {
                let (from, to) = (from.as_host().expect("of the host"), to.host_mut().expect("of the host"));
                to[..bytes].copy_from_slice(&from[..bytes]);
                Ok(())
            }
        }
    }

    fn device(&self) -> Option<MutexGuard<'_, ProviderMemory>> {
        self.0.as_ref().map(|device| device.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
