//! The file of weights that ONNX Runtime saves, written anew in order.
//!
//! ONNX Runtime 1.31 puts the copies in its kernels' order wherever a constant ends, and some of these layouts depend on
//! the address: a copy that is not aligned as its allocator aligns memory is read wrongly, without an error. So each
//! constant and each copy is moved to where a package would have it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{Context, Error, Result};
use crate::package::FileEntry;
use crate::package::edition::Data;
use crate::package::onnx::TensorProto;

/// How the keys of external data begin that name copies in a kernel's order: `kernel|offset;length;…|…`.
const PREPACKED: &str = "prepacked";

/// What was saved.
#[derive(Debug, Default)]
pub struct Saved {
    /// Nodes of the optimized graph.
    pub nodes: u64,
    /// Constants with copies in their kernels' order …
    pub prepacked: u64,
    /// … and the bytes of these.
    pub prepacked_bytes: u64,
    /// The graph and its weights.
    pub files: Vec<FileEntry>,
}

/// Moves a constant and its copies to `data`, which is the file of that name.
pub fn bring(tensor: &mut TensorProto, from: &File, data: &mut Data, name: &str, saved: &mut Saved) -> Result<()> {
    let unreadable = || format!("its constant `{}` has external data that cannot be understood", tensor.name());
    let number = |text: &str| text.parse::<u64>().with_context(unreadable);
    let mut moved = |offset: u64, length: u64| {
        let place = data.copy(std::slice::from_ref(&(offset..offset + length)), |range| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            from.read_exact_at(&mut bytes, range.start).context("cannot read what ONNX Runtime saved")?;
            Ok(bytes)
        })?;
        forget(from, offset, length);
        Ok::<_, Error>(place)
    };
    let (offset, length) = (tensor.external("offset").unwrap_or("0"), tensor.external("length").unwrap_or(""));
    let (offset, length) = (number(offset)?, number(length)?);
    let place = moved(offset, length)?;
    let mut copies = Vec::new();
    for entry in tensor.external_data.iter().filter(|entry| entry.key().starts_with(PREPACKED)) {
        let mut parts = entry.value().split('|');
        let mut value = parts.next().unwrap_or_default().to_owned();
        for blob in parts {
            let mut fields = blob.splitn(3, ';');
            let (Some(offset), Some(length), Some(rest)) = (fields.next(), fields.next(), fields.next()) else {
                return Err(Error::new(unreadable()));
            };
            let (offset, length) = (number(offset)?, number(length)?);
            value += &format!("|{};{length};{rest}", moved(offset, length)?);
            saved.prepacked_bytes += length;
        }
        copies.push((entry.key().to_owned(), value));
    }
    saved.prepacked += u64::from(!copies.is_empty());
    *tensor = tensor.at(name, place, length);
    for (key, value) in copies {
        tensor.note_external(&key, &value);
    }
    Ok(())
}

/// Gives the disk a range back that was moved, where the file system can: both files need not fit at once.
fn forget(file: &File, offset: u64, length: u64) {
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let _ = rustix::fs::fallocate(file, flags, offset, length);
}
