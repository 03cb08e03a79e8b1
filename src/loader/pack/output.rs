//! The folder that a pack is written to: files under temporary names until they are whole, the manifest last.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::journal::{self, Header, Journal, Line};
use crate::error::{Context, Error, Kind, Result};
use crate::package::shards::{self, Record};
use crate::package::{FileEntry, Manifest};

/// The ending of a file that is not whole.
const UNFINISHED: &str = ".part";

/// The folder of shards.
pub const SHARDS: &str = "shards";

/// The manifest, whose presence says that the pack is whole.
pub const MANIFEST: &str = "manifest.json";

/// A pack's folder that is open for one writer.
#[derive(Debug)]
pub struct Output {
    /// The folder.
    pub folder: PathBuf,
    journal: Journal,
    /// Every file that is whole, in the order in which they were asked for.
    pub files: Vec<FileEntry>,
}

impl Output {
    /// Opens a new or unfinished pack, or replaces a finished one.
    ///
    /// # Errors
    /// A folder that holds something else, a finished pack where `force` is not given, a folder that cannot be written.
    pub fn open(folder: &Path, header: &Header, force: bool) -> Result<Self> {
        let failed = || format!("cannot pack into `{}`", folder.display());
        let environment = |error: Error| error.kind(Kind::Environment);
        if folder.join(MANIFEST).exists() {
            if !force {
                return Err(Error::new(format!("`{}` is a finished package or pack", folder.display()))
                    .hint("choose another folder, or replace a pack by `--force`"));
            }
            clear(folder)?;
        }
        fs::create_dir_all(folder.join(SHARDS)).with_context(failed).map_err(environment)?;
        if !folder.join(journal::FILE).exists() {
            let mut entries = fs::read_dir(folder).with_context(failed)?;
            if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != SHARDS)) {
                // What was made above goes again, unless it was there.
                let _ = fs::remove_dir(folder.join(SHARDS));
                return Err(Error::new(format!("`{}` holds files that are no pack's", folder.display()))
                    .hint("choose a folder that is empty or does not exist"));
            }
        }
        let journal = Journal::open(folder, header).with_context(failed)?;
        for stale in &journal.stale {
            remove(folder, stale)?;
        }
        for place in [folder.to_owned(), folder.join(SHARDS)] {
            for entry in fs::read_dir(&place).with_context(failed)? {
                let path = entry.with_context(failed)?.path();
                if path.to_string_lossy().ends_with(UNFINISHED) {
                    fs::remove_file(&path).with_context(failed)?;
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), journal, files: Vec::new() })
    }

    /// The journal's line of a file that is whole already.
    pub fn done(&self, path: &str) -> Option<&Line> {
        let found = self.journal.done(path)?;
        let size = fs::metadata(self.folder.join(path)).ok()?.len();
        (size == found.entry.bytes).then_some(found)
    }

    /// Writes a file, unless it is whole already; says which records are in it.
    ///
    /// # Errors
    /// What `write` fails on, a disk that is full. Nothing is left under the final name then.
    pub fn file(&mut self, path: &str, write: impl FnOnce(&mut NewFile) -> Result<Vec<Record>>) -> Result<Vec<Record>> {
        if let Some(line) = self.done(path) {
            let line = line.clone();
            self.files.push(line.entry);
            return Ok(line.records);
        }
        let mut file = NewFile::create(&self.folder, path)?;
        let records = write(&mut file)?;
        let entry = file.finish(path)?;
        self.journal.add(&Line { entry: entry.clone(), records: records.clone() })?;
        self.files.push(entry);
        Ok(records)
    }

    /// Writes the manifest, which makes the pack whole, and forgets the journal.
    ///
    /// # Errors
    /// A disk that is full.
    pub fn finish(self, manifest: &Manifest) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(manifest).context("cannot describe the pack")?;
        text.push(b'\n');
        let mut file = NewFile::create(&self.folder, MANIFEST)?;
        file.write(&text)?;
        file.finish(MANIFEST)?;
        fs::remove_file(self.folder.join(journal::FILE)).context("cannot remove the journal")
    }
}

/// Removes a pack's own files, its manifest first.
fn clear(folder: &Path) -> Result<()> {
    let read = |name: &str| fs::read(folder.join(name)).with_context(|| format!("cannot read `{name}`"));
    let no_pack = || {
        Error::new(format!("`{}` is no pack", folder.display())).hint("only packs are replaced; choose another folder")
    };
    let manifest = Manifest::parse(&read(MANIFEST)?).map_err(|error| no_pack().because(error))?;
    if manifest.pack.is_none() {
        return Err(no_pack());
    }
    remove(folder, MANIFEST)?;
    remove(folder, shards::FILE)?;
    remove(folder, journal::FILE)?;
    manifest.files.iter().try_for_each(|file| remove(folder, &file.path))
}

fn remove(folder: &Path, path: &str) -> Result<()> {
    if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(());
    }
    match fs::remove_file(folder.join(path)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::environment(format!("cannot remove `{path}`")).because(error))
        }
        _ => Ok(()),
    }
}

/// A file that gets its name when it is whole; dropped before, it leaves nothing.
#[derive(Debug)]
pub struct NewFile {
    folder: PathBuf,
    temporary: PathBuf,
    target: PathBuf,
    file: Option<File>,
    hasher: Sha256,
    /// Bytes written.
    pub bytes: u64,
}

impl NewFile {
    fn create(folder: &Path, path: &str) -> Result<Self> {
        let target = folder.join(path);
        let mut temporary = target.clone().into_os_string();
        temporary.push(UNFINISHED);
        let temporary = PathBuf::from(temporary);
        let parent = target.parent().unwrap_or(folder).to_owned();
        let file = fs::create_dir_all(&parent)
            .and_then(|()| File::create(&temporary))
            .map_err(|error| Error::environment(format!("cannot create `{}`", temporary.display())).because(error))?;
        Ok(Self { folder: parent, temporary, target, file: Some(file), hasher: Sha256::new(), bytes: 0 })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// A disk that is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes).map_err(|error| cannot_write(&self.target, error))?;
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Appends zeros until the length is a multiple of `alignment`.
    ///
    /// # Errors
    /// A disk that is full.
    pub fn pad(&mut self, alignment: u64) -> Result<()> {
        let missing = self.bytes.next_multiple_of(alignment) - self.bytes;
        self.write(&vec![0; missing as usize])
    }

    fn finish(mut self, path: &str) -> Result<FileEntry> {
        let named = self.file.take().map_or(Ok(()), |file| file.sync_all()).and_then(|()| {
            fs::rename(&self.temporary, &self.target)?;
            File::open(&self.folder)?.sync_all()
        });
        named.map_err(|error| cannot_write(&self.target, error))?;
        let sha256 = crate::digest::hex(&std::mem::take(&mut self.hasher).finalize());
        Ok(FileEntry { path: path.to_owned(), bytes: self.bytes, sha256 })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::environment(format!("cannot write `{}`", path.display()))
        .because(error)
        .hint("free some room and run the same command again: it continues with the first file that is not whole")
}

/// Bytes of a finished pack that would be replaced; 0 where there is none.
pub fn replaced_bytes(folder: &Path) -> u64 {
    let manifest = fs::read(folder.join(MANIFEST)).ok().and_then(|bytes| Manifest::parse(&bytes).ok());
    let pack = manifest.filter(|manifest| manifest.pack.is_some());
    pack.map_or(0, |manifest| manifest.files.iter().map(|file| file.bytes).sum())
}

/// Refuses a folder whose disk has too little room, counting what is about to be removed from it as free.
///
/// # Errors
/// Fewer bytes free than needed; both are named.
pub fn check_room(folder: &Path, needed: u64, removed: u64) -> Result<()> {
    let place = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
    let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
    let Ok(disk) = rustix::fs::statvfs(place) else { return Ok(()) };
    compare_room(folder, needed, disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(removed))
}

fn compare_room(folder: &Path, needed: u64, free: u64) -> Result<()> {
    if needed <= free {
        return Ok(());
    }
    use crate::units::bytes;
    let message = format!(
        "the disk of `{}` has {} ({free} bytes) free, the pack needs up to {} ({needed} bytes)",
        folder.display(),
        bytes(free),
        bytes(needed)
    );
    Err(Error::environment(message).hint("free some room, or choose a folder on another disk by `--output`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_names_both_sizes() {
        let error = compare_room(Path::new("there"), 3 << 30, 1 << 20).unwrap_err();
        assert!(error.chain().contains("1048576 bytes") && error.chain().contains("3.0 GiB"), "{}", error.chain());
        assert_eq!(error.exit_code(), 3);
        assert!(compare_room(Path::new("there"), 5, 5).is_ok());
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = NewFile::create(folder.path(), "shards/000.bin").unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path().join("shards")).unwrap().count(), 0);
        let mut file = NewFile::create(folder.path(), "a").unwrap();
        file.write(b"abc").unwrap();
        file.pad(8).unwrap();
        let entry = file.finish("a").unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"abc\0\0\0\0\0");
        assert_eq!(entry.sha256, crate::digest::sha256(b"abc\0\0\0\0\0"));
    }
}
