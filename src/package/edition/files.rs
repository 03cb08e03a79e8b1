//! Files of an edited package, as they are written.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::digest;
use crate::error::{Context, Error, Kind, Result};
use crate::package::{FileEntry, Package};

/// Large constants outside begin at a page, so that they can be mapped; others at a cache line. As the exporter has it.
const LARGE: u64 = 1 << 20;
const LARGE_ALIGNMENT: u64 = 4096;
const SMALL_ALIGNMENT: u64 = 64;
/// Bytes that are copied at a time.
const PIECE: usize = 8 << 20;

/// Brings a file of a package into the folder of another.
pub(crate) fn link(package: &Package, folder: &Path, name: &str) -> Result<FileEntry> {
    let (from, to) = (package.root.join(name), folder.join(name));
    let failed = || format!("cannot copy `{}`", from.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(failed)?;
    }
    let linked = fs::hard_link(&from, &to);
    if linked.is_err() {
        fs::copy(&from, &to).with_context(failed).map_err(|error| error.kind(Kind::Environment))?;
    }
    let bytes = fs::metadata(&to).with_context(failed)?.len();
    let known = package.manifest.files.iter().find(|entry| entry.path == name);
    let sha256 = match known {
        Some(entry) => entry.sha256.clone(),
        None => digest::sha256_file(&to).with_context(failed)?,
    };
    Ok(FileEntry { path: name.to_owned(), bytes, sha256 })
}

/// A folder that is removed unless it got another name.
pub(crate) struct Unfinished(PathBuf);

impl Unfinished {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Beside the folder that it will be.
    pub fn beside(folder: &Path) -> Result<Self> {
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = || format!("cannot write into `{}`", parent.display());
        fs::create_dir_all(parent).with_context(failed)?;
        let made = tempfile::Builder::new().prefix(".part-").tempdir_in(parent).with_context(failed)?;
        Ok(Self(made.keep()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The file of constants that is being written.
pub(crate) struct Data {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Data {
    /// An empty file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Self { path: path.to_owned(), file, hasher: Sha256::new(), bytes: 0 })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        let path = &self.path;
        self.file.write_all(bytes).map_err(|error| {
            Error::environment(format!("cannot write `{}`", path.display())).because(error).hint("free some room")
        })
    }

    /// Room for a constant of so many bytes; returns where it begins.
    fn begin(&mut self, length: u64) -> Result<u64> {
        let alignment = if length >= LARGE { LARGE_ALIGNMENT } else { SMALL_ALIGNMENT };
        let missing = self.bytes.next_multiple_of(alignment) - self.bytes;
        self.put(&vec![0; missing as usize])?;
        Ok(self.bytes)
    }

    /// Adds a constant; returns where it begins.
    pub fn add(&mut self, bytes: &[u8]) -> Result<u64> {
        let offset = self.begin(bytes.len() as u64)?;
        self.put(bytes)?;
        Ok(offset)
    }

    /// Copies a constant that lies in these ranges; returns where it begins.
    pub fn copy(&mut self, ranges: &[Range<u64>], read: impl Fn(Range<u64>) -> Result<Vec<u8>>) -> Result<u64> {
        let offset = self.begin(ranges.iter().map(|range| range.end - range.start).sum())?;
        for range in ranges {
            for start in range.clone().step_by(PIECE) {
                self.put(&read(start..range.end.min(start + PIECE as u64))?)?;
            }
        }
        Ok(offset)
    }

    /// The finished file, unless nothing came into it.
    pub fn finish(self, name: &str) -> Result<Option<FileEntry>> {
        if self.bytes == 0 {
            let _ = fs::remove_file(&self.path);
            return Ok(None);
        }
        self.file.sync_all().with_context(|| format!("cannot write `{}`", self.path.display()))?;
        let sha256 = digest::hex(&self.hasher.finalize());
        Ok(Some(FileEntry { path: name.to_owned(), bytes: self.bytes, sha256 }))
    }
}

/// Writes a small file.
pub(crate) fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<FileEntry> {
    let path = folder.join(name);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| {
        Error::environment(format!("cannot write `{}`", path.display())).because(error).hint("free some room")
    })?;
    Ok(FileEntry { path: name.to_owned(), bytes: bytes.len() as u64, sha256: digest::sha256(bytes) })
}
