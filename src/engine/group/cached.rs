//! What caches hold, for whoever measures them.

use super::{Group, Layer};
use crate::cell::Dtype;
use crate::error::{Error, Result};

impl Group {
    /// The values of a cache tensor, by the name of its past: sequences, heads, columns that are filled, width.
    ///
    /// # Errors
    /// A tensor that does not exist, waits on disk or is quantized, a copy out of a device's memory that fails.
    pub(in crate::engine) fn cached(&self, past: &str) -> Result<Vec<f32>> {
        let found = self.cache.iter().find(|layer| layer.past.name == past);
        let layer = found.ok_or_else(|| Error::new(format!("there is no cache tensor `{past}`")))?;
        if self.offload.is_some() {
            return Err(Error::new(format!("the cache tensor `{past}` waits on disk")));
        }
        let rows = self.batch * layer.heads;
        let stride = if layer.back.is_some() { self.columns } else { self.capacity };
        let bytes = self.kept.save(&self.bindings, layer.front, rows * stride * column_bytes(layer))?;
        let mut values = Vec::with_capacity(rows * self.columns * layer.width);
        for row in bytes.chunks_exact((stride * column_bytes(layer)).max(1)) {
            convert(&row[..self.columns * column_bytes(layer)], layer, &mut values)?;
        }
        Ok(values)
    }
}

fn column_bytes(layer: &Layer) -> usize {
    layer.width * layer.past.dtype.size()
}

fn convert(bytes: &[u8], layer: &Layer, into: &mut Vec<f32>) -> Result<()> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match layer.past.dtype {
        Dtype::Float32 => into.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
        Dtype::Float16 => into.extend(halves().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32())),
        Dtype::BFloat16 => into.extend(halves().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32())),
        other => {
            return Err(Error::new(format!("the cache tensor `{}` is of {other:?}, not of floats", layer.past.name)));
        }
    }
    Ok(())
}
