//! `ortbench pack --verify`: all of a pack's bytes against its index and manifest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;

use super::output::MANIFEST;
use super::{open, record};
use crate::digest;
use crate::error::{Context, Error, Result};
use crate::loader::codec;
use crate::package::Manifest;
use crate::package::shards::{Codec, Record, ShardIndex};

/// What was read.
#[derive(Debug)]
pub struct Verified {
    /// Records.
    pub records: usize,
    /// Bytes of records and other files.
    pub bytes: u64,
    /// What is not as it was written, records first.
    pub damage: Vec<Damage>,
}

/// A record or file that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The record or file.
    pub name: String,
    /// The file that it lies in.
    pub file: String,
    /// What is wrong.
    pub cause: String,
}

/// Reads every record and file of a pack and compares hashes.
///
/// # Errors
/// A folder that is no pack, an index that cannot be used.
pub fn verify(folder: &Path) -> Result<Verified> {
    let path = folder.join(MANIFEST);
    let failed = || format!("cannot read the pack `{}`", folder.display());
    let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display())).map_err(|error| {
        Error::new(failed()).because(error).hint("a pack has a manifest.json, written last; pack it again to finish it")
    })?;
    let manifest = Manifest::parse(&bytes).with_context(failed)?;
    if manifest.pack.is_none() {
        return Err(Error::new(format!("`{}` is no pack", folder.display())).hint("name a folder that `pack` wrote"));
    }
    let index = ShardIndex::parse(folder)?;
    open::check(&index)?;

    let mut damage: Vec<Damage> =
        index.records.par_iter().filter_map(|record| damaged(folder, &index, record)).collect();
    let others = manifest.files.iter().filter(|entry| !index.files.iter().any(|shard| shard.file == entry.path));
    let others: Vec<_> = others.collect();
    damage.par_extend(others.par_iter().filter_map(|entry| {
        let cause = match digest::sha256_file(&folder.join(&entry.path)) {
            Err(error) => error.to_string(),
            Ok(found) if found != entry.sha256 => format!("its SHA-256 is {found}, the manifest says {}", entry.sha256),
            Ok(_) => return None,
        };
        Some(Damage { name: entry.path.clone(), file: entry.path.clone(), cause })
    }));
    let bytes = index.records.iter().map(|record| record.stored).chain(others.iter().map(|entry| entry.bytes)).sum();
    Ok(Verified { records: index.records.len(), bytes, damage })
}

fn damaged(folder: &Path, index: &ShardIndex, record: &Record) -> Option<Damage> {
    let file = &index.files[record.file].file;
    check(&folder.join(file), record).err().map(|error| Damage {
        name: record.name.clone(),
        file: file.clone(),
        cause: error.chain(),
    })
}

fn check(path: &Path, record: &Record) -> Result<()> {
    let file = File::open(path).context("it cannot be opened")?;
    let size = file.metadata().context("it cannot be opened")?.len();
    if size < record.offset + record.stored {
        return Err(Error::new(format!("the file ends after {size} bytes")));
    }
    let mut stored = vec![0; record.stored as usize];
    file.read_exact_at(&mut stored, record.offset).context("it cannot be read")?;
    let found = record::hash(&stored);
    if found != record.hash {
        return Err(Error::new(format!("its hash is {found}, the index says {}", record.hash)));
    }
    if record.codec != Codec::None {
        codec::decode(record.codec, &stored, &mut vec![0; record.bytes as usize])?;
    }
    Ok(())
}
