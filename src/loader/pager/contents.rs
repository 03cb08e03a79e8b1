//! What a pack promises of its records, and whether the bytes keep it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::RecordId;
use super::failure::Failure;
use crate::error::{Error, Kind, Result};
use crate::loader::codec;
use crate::loader::io::{Disk, Identity};
use crate::package::shards::{ALIGNMENT, Codec, ShardIndex};
use crate::units;

const DAMAGED: &str = "copy the pack again from where it is whole, or make it anew with `ortbench pack`";

/// An index whose places were checked, with what is looked up in it.
#[derive(Debug)]
pub(super) struct Contents {
    pub index: std::sync::Arc<ShardIndex>,
    pub folder: PathBuf,
    hashes: Vec<u64>,
    names: HashMap<String, RecordId>,
    verify: bool,
}

impl Contents {
    /// Checks that an index describes something that can be read: places within files, aligned, apart from what is in
    /// the files.
    pub fn new(folder: &Path, index: &std::sync::Arc<ShardIndex>, verify: bool) -> Result<Self> {
        let mut hashes = Vec::with_capacity(index.records.len());
        let mut names = HashMap::with_capacity(index.records.len());
        for (id, record) in index.records.iter().enumerate() {
            let wrong = |what: String| {
                Error::new(format!("the index of the pack `{}` is wrong", folder.display()))
                    .because(io::Error::other(format!("record `{}` {what}", record.name)))
                    .hint(DAMAGED)
            };
            let Some(file) = index.files.get(record.file) else {
                return Err(wrong(format!("names file {} of {}", record.file, index.files.len())));
            };
            let end = record.stored.max(1).checked_next_multiple_of(ALIGNMENT);
            if end.and_then(|bytes| bytes.checked_add(record.offset)).is_none_or(|end| end > file.bytes) {
                return Err(wrong(format!("reaches beyond the end of `{}`", file.file)));
            }
            if !record.offset.is_multiple_of(ALIGNMENT) {
                return Err(wrong(format!("starts at {}, which is no multiple of {ALIGNMENT}", record.offset)));
            }
            if record.codec == Codec::None && record.stored != record.bytes {
                return Err(wrong(format!("stores {} bytes of {} without a codec", record.stored, record.bytes)));
            }
            if record.bytes > 1 << 46 {
                return Err(wrong(format!("claims {} bytes", record.bytes)));
            }
            let hash = u64::from_str_radix(&record.hash, 16);
            hashes.push(hash.map_err(|_| wrong(format!("has the hash `{}`", record.hash)))?);
            if names.insert(record.name.clone(), id).is_some() {
                return Err(wrong("stands there twice".to_owned()));
            }
        }
        Ok(Self { index: std::sync::Arc::clone(index), folder: folder.to_owned(), hashes, names, verify })
    }

    /// The shards' paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.index.files.iter().map(|file| self.folder.join(&file.file)).collect()
    }

    /// Checks the files' lengths.
    pub fn check_files(&self, disk: &Disk) -> Result<()> {
        for ((file, found), path) in self.index.files.iter().zip(disk.identities()).zip(disk.paths()) {
            if found.bytes != file.bytes {
                let how = if found.bytes < file.bytes { "was cut" } else { "is of another pack" };
                return Err(Error::new(format!("the shard `{}` {how}", path.display()))
                    .because(io::Error::other(format!("it has {} bytes, not {}", found.bytes, file.bytes)))
                    .hint(DAMAGED));
            }
        }
        Ok(())
    }

    pub fn find(&self, name: &str) -> Option<RecordId> {
        self.names.get(name).copied()
    }

    /// An error for a number that is no record's.
    pub fn check_id(&self, id: RecordId) -> Result<()> {
        if id < self.index.records.len() {
            return Ok(());
        }
        let (count, folder) = (self.index.records.len(), self.folder.display());
        Err(Error::new(format!("the pack `{folder}` has {count} records, and no record {id}")))
    }

    /// `record NAME of FILE`.
    fn place(&self, id: RecordId) -> String {
        let record = &self.index.records[id];
        format!("record `{}` of `{}`", record.name, self.folder.join(&self.index.files[record.file].file).display())
    }

    /// A read that failed.
    pub fn unread(&self, id: RecordId, error: &io::Error) -> Failure {
        let message = format!("cannot read {}", self.place(id));
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Failure::new(Kind::Input, message, DAMAGED).because(error)
        } else {
            let hint = "the disk or its connection failed: see the system's log (`dmesg`); a later run may succeed";
            Failure::new(Kind::Environment, message, hint).because(error)
        }
    }

    /// A file that is no longer what it was when it was opened and mapped.
    pub fn check_same(&self, id: RecordId, before: &Identity, now: &Identity) -> Result<()> {
        if before == now {
            return Ok(());
        }
        let how = if now.bytes < before.bytes {
            format!("it was cut from {} to {} bytes", before.bytes, now.bytes)
        } else {
            "it was written to".to_owned()
        };
        Err(Failure::new(
            Kind::Input,
            format!("cannot use {}", self.place(id)),
            "run again on a pack that nobody changes",
        )
        .because(&format!("{how} while it was mapped"))
        .error())
    }

    /// Compares a record's stored bytes with its hash.
    pub fn check(&self, id: RecordId, stored: &[u8]) -> Result<(), Failure> {
        if !self.verify {
            return Ok(());
        }
        let (hash, wanted) = (xxh3_64(stored), self.hashes[id]);
        if hash == wanted {
            return Ok(());
        }
        let record = &self.index.records[id];
        Err(Failure::new(Kind::Input, format!("{} is damaged", self.place(id)), DAMAGED).because(&format!(
            "its {} at byte {} hash to {hash:016x}, not {wanted:016x}",
            units::bytes(record.stored),
            record.offset
        )))
    }

    /// Decodes a record.
    pub fn decode(&self, id: RecordId, stored: &[u8], into: &mut [u8]) -> Result<(), Failure> {
        codec::decode(self.index.records[id].codec, stored, into).map_err(|error| {
            Failure::new(Kind::Input, format!("cannot decode {}", self.place(id)), DAMAGED).because(&error.chain())
        })
    }
}
