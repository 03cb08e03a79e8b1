//! A pack that is there, for this program's kernels.

use std::path::Path;

use crate::error::{Error, Result};
use crate::loader::kernels;
use crate::package::onnx::element_bits;
use crate::package::shards::{ShardIndex, What};

/// Reads a pack's index, and checks that its matrices are laid out for the kernels of this program and as long as
/// their shapes ask for.
///
/// # Errors
/// As [`ShardIndex::read`]; another layout; a matrix of another length.
pub fn open(folder: &Path) -> Result<ShardIndex> {
    let index = ShardIndex::read(folder)?;
    check(&index)?;
    Ok(index)
}

/// The same for an index that was read.
///
/// # Errors
/// Another layout; a matrix or tensor of another length than its shape asks for.
pub fn check(index: &ShardIndex) -> Result<()> {
    index.expect_layout(kernels::LAYOUT)?;
    for record in &index.records {
        let bytes = match &record.what {
            What::Matrix { shape } => kernels::check(shape).map(|()| kernels::packed_bytes(shape)),
            What::Expert { gate_up, down, .. } => {
                kernels::check(gate_up).and(kernels::check(down)).map(|()| kernels::expert_bytes(gate_up, down))
            }
            What::Tensor { data_type, dims } => tensor_bytes(*data_type, dims),
        };
        let wrong = || {
            Error::new(format!("the record `{}` is not as long as its shape asks for", record.name))
                .hint("pack it again: `ortbench pack PACKAGE --output FOLDER`")
        };
        let bytes = bytes.map_err(|error| wrong().because(error))?;
        if bytes as u64 != record.bytes {
            return Err(wrong());
        }
    }
    Ok(())
}

/// Bytes of a tensor as ONNX lays it out.
fn tensor_bytes(data_type: i32, dims: &[u64]) -> Result<usize> {
    let bits =
        element_bits(data_type).ok_or_else(|| Error::new(format!("elements of type {data_type} have no width")))?;
    let bits = dims.iter().try_fold(bits, |product, size| product.checked_mul(*size));
    let bytes = bits.map(|bits| bits.div_ceil(8)).and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| Error::new(format!("a tensor of the shape {dims:?} is too large")))
}
