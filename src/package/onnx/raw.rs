//! The bytes of a tensor that lies in the model's file, as ONNX's `raw_data` has them (little-endian).

use super::{TensorProto, element_bits};
use crate::error::{Error, Result};

impl TensorProto {
    /// The elements of a tensor inside the file, whichever field they are in.
    ///
    /// # Errors
    /// Strings, types that ONNX does not know, and a count that contradicts the dimensions.
    pub fn raw(&self) -> Result<Vec<u8>> {
        let wrong = |cause: &str| Error::new(format!("the tensor `{}` {cause}", self.name()));
        let data_type = self.data_type();
        let bits = element_bits(data_type).ok_or_else(|| wrong("is of a type without a width"))?;
        let bytes = match &self.raw_data {
            Some(raw) => raw.clone(),
            None => match data_type {
                // Complex numbers are two floats.
                1 | 14 => self.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
                11 | 15 => self.double_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
                7 => self.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
                12 => self.uint64_data.iter().flat_map(|value| (*value as u32).to_le_bytes()).collect(),
                13 => self.uint64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
                // Everything else is the low bytes of `int32_data`; narrow types are packed there already.
                _ => {
                    let width = (bits.div_ceil(8) as usize).min(4);
                    self.int32_data.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width)).collect()
                }
            },
        };
        if bytes.len() as u64 != self.bytes() {
            return Err(wrong(&format!("has {} bytes where its shape asks for {}", bytes.len(), self.bytes())));
        }
        Ok(bytes)
    }
}
