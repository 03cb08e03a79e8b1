//! What a group hands over between processes, where each runs some of the model's parts.

use std::collections::HashMap;

use super::Group;
use crate::error::Result;
use crate::runtime::{BufferId, HandedTensor};

/// A buffer for each tensor that comes from another process, as large as the largest of its runs.
#[derive(Debug, Default)]
pub(super) struct Received(HashMap<String, (BufferId, usize)>);

impl Group {
    /// Hands over what another process made under that name, for the run that was begun.
    ///
    /// # Errors
    /// Memory that cannot be had; bytes that do not fit their shape.
    pub fn hand_in(&mut self, name: &str, tensor: &HandedTensor) -> Result<()> {
        let bytes = tensor.bytes.len();
        let place = self.received.0.get(name).copied();
        let buffer = match place {
            Some((buffer, room)) if room >= bytes => buffer,
            _ => {
                // The pages of one that became too small go back; its addresses are lost, which costs nothing.
                if let Some((buffer, _)) = place {
                    self.bindings.release(buffer);
                }
                let buffer = self.bindings.allocate(bytes)?;
                self.received.0.insert(name.to_owned(), (buffer, bytes));
                buffer
            }
        };
        self.bindings.write::<u8>(buffer, bytes).copy_from_slice(tensor.bytes);
        self.bindings.hand_in(name, tensor.element, &tensor.dims, buffer, bytes)
    }

    /// What is handed over under that name.
    ///
    /// # Errors
    /// Nothing of that name.
    pub fn handed_over(&self, name: &str) -> Result<HandedTensor<'_>> {
        self.bindings.handed_over(name)
    }

    /// Bytes of all that is handed over now.
    pub fn handed_bytes(&self, names: &[String]) -> Result<u64> {
        names.iter().map(|name| Ok(self.handed_over(name)?.bytes.len() as u64)).sum()
    }
}
