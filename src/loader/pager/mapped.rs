//! Records in mapped files: the operating system decides what is in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::contents::Contents;
use super::plan::is_expert;
use super::shared::Bytes;
use super::{RecordId, Statistics};
use crate::error::{Context, Error, Result};
use crate::loader::io::{Disk, Guard, Identity};
use crate::package::shards::Codec;

/// The shards of a pack, mapped read-only.
///
/// A mapping stays the file it was made of: a file that takes its name later is not seen. A file that is cut or written
/// to is found at the next lease; a page read after a cut and before the next lease ends the process, with a message
/// that names the pack.
pub(super) struct Mapped {
    pub contents: Contents,
    disk: Disk,
    maps: Vec<Map>,
    checked: Vec<AtomicBool>,
    wanted: AtomicU64,
}

struct Map {
    start: *const u8,
    bytes: usize,
    _guard: Guard,
}

// SAFETY: the mappings are read-only and live as long as the value.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    pub fn open(contents: Contents, disk: Disk) -> Result<Self> {
        if let Some(record) = contents.index.records.iter().find(|record| record.codec != Codec::None) {
            return Err(Error::new(format!("the pack `{}` cannot be mapped", contents.folder.display()))
                .because(std::io::Error::other(format!("record `{}` is compressed", record.name)))
                .hint("pack the model again without a codec, or choose another residency"));
        }
        let mut maps = Vec::with_capacity(disk.files().len());
        for ((file, path), identity) in disk.files().iter().zip(disk.paths()).zip(disk.identities()) {
            let bytes = identity.bytes as usize;
            if bytes == 0 {
                maps.push(Map { start: std::ptr::null(), bytes, _guard: Guard::none() });
                continue;
            }
            // SAFETY: a new mapping at an address that the kernel chooses touches nobody's memory.
            let start =
                unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file, 0) };
            let start = start.map_err(std::io::Error::from);
            let start = start.with_context(|| format!("cannot map `{}`", path.display()))?;
            let message = format!(
                "error: cannot read the pack `{}`: the mapped shard `{}` was cut, or its disk failed, while it was in \
                 use\nhint: run again on a pack that nobody changes; `dmesg` tells of a failing disk\n",
                contents.folder.display(),
                path.display()
            );
            maps.push(Map { start: start.cast(), bytes, _guard: Guard::new(start as usize, bytes, message) });
        }
        let checked = contents.index.records.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self { contents, disk, maps, checked, wanted: AtomicU64::new(0) })
    }

    /// A record's bytes, after a look whether its file is still what it was.
    pub fn acquire(&self, id: RecordId) -> Result<Bytes> {
        self.contents.check_id(id)?;
        let record = &self.contents.index.records[id];
        let path = || format!("cannot look at `{}`", self.disk.paths()[record.file].display());
        let now = Identity::of(&self.disk.files()[record.file]).with_context(path)?;
        self.contents.check_same(id, &self.disk.identities()[record.file], &now)?;
        let map = &self.maps[record.file];
        assert!(record.offset + record.bytes <= map.bytes as u64, "a record outside of its mapping");
        // SAFETY: within the mapping, as asserted.
        let start = unsafe { map.start.add(record.offset as usize) };
        let length = record.bytes as usize;
        if !self.checked[id].load(Ordering::Acquire) {
            // SAFETY: the mapping is read-only and lives as long as this; a file that is cut meanwhile is the one thing
            // that can go wrong, and ends the process with a message.
            let bytes = unsafe { std::slice::from_raw_parts(start, length) };
            self.contents.check(id, bytes).map_err(|failure| failure.error())?;
            self.checked[id].store(true, Ordering::Release);
        }
        Ok(Bytes { start, length })
    }

    pub fn count(&self, ids: &[RecordId]) {
        let records = &self.contents.index.records;
        let experts = ids.iter().filter(|id| records.get(**id).is_some_and(is_expert)).count();
        self.wanted.fetch_add(experts as u64, Ordering::Relaxed);
    }

    pub fn statistics(&self) -> Statistics {
        Statistics { experts_wanted: self.wanted.load(Ordering::Relaxed), ..Statistics::default() }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for map in self.maps.drain(..).filter(|map| map.bytes > 0) {
            // SAFETY: made by `open`; leases keep the value, so none is left.
            let _ = unsafe { rustix::mm::munmap(map.start.cast_mut().cast(), map.bytes) };
        }
    }
}
