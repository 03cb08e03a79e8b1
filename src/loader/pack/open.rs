//! A pack that is there, for this program's kernels.

use std::path::Path;

use crate::error::{Error, Result};
use crate::loader::kernels;
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
pub(super) fn check(index: &ShardIndex) -> Result<()> {
    index.expect_layout(kernels::LAYOUT)?;
    for record in &index.records {
        let bytes = match &record.what {
            What::Matrix { shape } => kernels::check(shape).map(|()| kernels::packed_bytes(shape)),
            What::Expert { gate_up, down, .. } => {
                kernels::check(gate_up).and(kernels::check(down)).map(|()| kernels::expert_bytes(gate_up, down))
            }
            What::Tensor { .. } => continue,
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
