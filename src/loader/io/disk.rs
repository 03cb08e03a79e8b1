//! Files open for reading past the page cache, if that holds, and what tells them from others of the same name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::ReadWriteFlags;

use super::{Direct, ReadAt};
use crate::error::{Context, Error, Result};
use crate::loader::page_cache;
use crate::package::shards::ALIGNMENT;

/// Files open for reading.
#[derive(Debug)]
pub struct Disk {
    files: Vec<File>,
    paths: Vec<PathBuf>,
    identities: Vec<Identity>,
    direct: bool,
}

/// What changes when a file is replaced, cut or written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The filesystem's number.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
    /// Bytes.
    pub bytes: u64,
    /// Nanoseconds between 1970 and the last write.
    pub written_nanos: i128,
}

impl Identity {
    /// Of an open file: the one that was opened, whatever its name stands for now.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn of(file: &File) -> io::Result<Self> {
        let data = file.metadata()?;
        Ok(Self {
            device: data.dev(),
            inode: data.ino(),
            bytes: data.len(),
            written_nanos: i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec()),
        })
    }
}

impl Disk {
    /// Opens files. An open file stays the one it was: one that takes its name later is not read.
    ///
    /// # Errors
    /// A file that cannot be opened, or [`Direct::Always`] where it does not hold.
    pub fn open(paths: &[PathBuf], direct: Direct) -> Result<Self> {
        let opened = |path: &PathBuf, flags: i32| std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
        let mut plain = Vec::with_capacity(paths.len());
        let mut identities = Vec::with_capacity(paths.len());
        for path in paths {
            let failed = || format!("cannot open `{}`", path.display());
            let file = opened(path, 0).with_context(failed)?;
            identities.push(Identity::of(&file).with_context(failed)?);
            plain.push(file);
        }
        let mut disk = Self { files: plain, paths: paths.to_owned(), identities, direct: false };
        if direct == Direct::Never {
            return Ok(disk);
        }
        let past: io::Result<Vec<File>> = paths.iter().map(|path| opened(path, libc::O_DIRECT)).collect();
        let refused = match past {
            Ok(past) => match disk.honoured(&past) {
                Ok(()) => {
                    disk.files = past;
                    disk.direct = true;
                    return Ok(disk);
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        if direct == Direct::Always {
            let folder = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new(""));
            return Err(Error::unsupported(format!("cannot read past the page cache in `{}`", folder.display()))
                .because(refused)
                .hint("put the pack on a disk's own filesystem (ext4, xfs), or choose `auto`"));
        }
        Ok(disk)
    }

    /// Whether reads really go past the page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// The files' paths.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// What the files were when they were opened.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// The open files.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Reads the first page of one file of each filesystem through `past` and asks whether the page cache took it: some
    /// filesystems accept the flag and read through the cache all the same.
    fn honoured(&self, past: &[File]) -> io::Result<()> {
        let mut seen: Vec<u64> = Vec::new();
        for ((plain, past), identity) in self.files.iter().zip(past).zip(&self.identities) {
            if seen.contains(&identity.device) || identity.bytes < ALIGNMENT {
                continue;
            }
            seen.push(identity.device);
            let mut found = passes(plain, past)?;
            for _ in 1..TRIES {
                if found {
                    break;
                }
                std::thread::sleep(PAUSE);
                found = passes(plain, past)?;
            }
            if !found {
                return Err(io::Error::other("the filesystem accepts O_DIRECT and reads through its cache"));
            }
        }
        Ok(())
    }
}

/// How often a filesystem is asked before it passes for one that reads through its cache: somebody else may read the
/// same file meanwhile, and whoever may not write the file learns of the cache only by a read that may bring it in.
const TRIES: u32 = 4;

/// Between two tries: what is on its way into the cache arrives.
const PAUSE: Duration = Duration::from_millis(2);

/// Whether a read of the first page leaves it out of the page cache.
fn passes(plain: &File, past: &File) -> io::Result<bool> {
    let page = ALIGNMENT as usize;
    let mut buffer = vec![0_u8; 2 * page];
    let start = buffer.as_ptr().align_offset(page);
    let buffer = &mut buffer[start..start + page];
    // A page that the cache holds already would tell nothing, so all of the file is dropped: caches hold several pages
    // as one, and drop them together or not at all. What is still to be written cannot be dropped; a read past the
    // cache writes it first.
    past.read_exact_at(buffer, 0)?;
    rustix::fs::fadvise(plain, 0, None, rustix::fs::Advice::DontNeed)?;
    past.read_exact_at(buffer, 0)?;
    Ok(!page_cache::holds_first_page(plain).unwrap_or(true) || !cached(plain)?)
}

/// Whether the page cache holds the first page: a read that may not wait succeeds then only. It begins to read ahead
/// all the same, so that on a fast disk a later one may succeed too.
fn cached(file: &File) -> io::Result<bool> {
    let mut byte = [0_u8; 1];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file, &mut buffers, 0, ReadWriteFlags::NOWAIT) {
        Ok(bytes) => Ok(bytes > 0),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl ReadAt for Disk {
    fn read_at(&self, file: usize, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.files[file].read_at(into, offset)
    }

    fn descriptor(&self, file: usize) -> Option<BorrowedFd<'_>> {
        self.files.get(file).map(AsFd::as_fd)
    }

    fn alignment(&self) -> usize {
        if self.direct { ALIGNMENT as usize } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_replaced_after_opening_is_read_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let disk = Disk::open(std::slice::from_ref(&path), Direct::Never).unwrap();
        std::fs::write(folder.path().join("b"), vec![2; 8192]).unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(disk.read_at(0, 4096, &mut bytes).unwrap(), 16);
        assert_eq!(bytes, [1; 16]);
        assert_eq!(Identity::of(&disk.files()[0]).unwrap(), disk.identities()[0]);
        assert_ne!(Identity::of(&File::open(&path).unwrap()).unwrap(), disk.identities()[0]);
    }

    #[test]
    fn what_was_just_written_is_read_past_the_cache_where_the_filesystem_can() {
        // Not /tmp, which may be in memory.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("a");
        let mut found = Vec::new();
        for round in 0..24 {
            std::fs::write(&path, vec![round; 64 << 10]).unwrap();
            let disk = Disk::open(std::slice::from_ref(&path), Direct::Auto).unwrap();
            // Whatever the last probe brought in.
            let again = Disk::open(std::slice::from_ref(&path), Direct::Auto).unwrap();
            found.extend([disk.direct(), again.direct()]);
        }
        assert!(found.iter().all(|direct| *direct == found[0]), "{found:?}");
    }

    #[test]
    fn memory_filesystems_do_not_pass_for_reads_past_the_cache() {
        let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
        let path = folder.path().join("a");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        assert!(!Disk::open(std::slice::from_ref(&path), Direct::Auto).unwrap().direct());
        let error = Disk::open(std::slice::from_ref(&path), Direct::Always).unwrap_err();
        assert!(error.chain().contains("past the page cache"), "{}", error.chain());
    }
}
