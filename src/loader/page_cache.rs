//! Files and the page cache: putting them out of it, and counting what stayed.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{Context, Result};

/// What is asked about at once: a byte of answer for each page of it.
const WINDOW: u64 = 1 << 30;

/// Puts every file of a folder, and of those below it, out of the page cache, and returns how many bytes of them are
/// still in it: pages that another process maps, or that the file system keeps. A folder that is not there has none.
///
/// # Errors
/// A folder that cannot be listed, a file that cannot be read.
pub fn evict(folder: &Path) -> Result<u64> {
    let mut cached = 0;
    for path in files(folder)? {
        cached += evict_file(&path)?;
    }
    Ok(cached)
}

/// The same of one file.
///
/// # Errors
/// A file that cannot be read.
pub fn evict_file(path: &Path) -> Result<u64> {
    let failed = || format!("cannot put `{}` out of the page cache", path.display());
    let file = File::open(path).with_context(failed)?;
    // What is not yet on the disk cannot be dropped.
    file.sync_data().with_context(failed)?;
    fadvise(&file, 0, None, Advice::DontNeed).with_context(failed)?;
    cached_bytes(&file).with_context(failed)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    folders.retain(|folder| folder.is_dir());
    while let Some(folder) = folders.pop() {
        let failed = || format!("cannot list `{}`", folder.display());
        for entry in fs::read_dir(&folder).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            // A link to a folder is not followed: it could lead back.
            if entry.file_type().with_context(failed)?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// Bytes of a file that are in the page cache, in whole pages. The kernel tells only who may write the file; to others
/// all of it counts as cached.
///
/// # Errors
/// A file that cannot be mapped.
pub fn cached_bytes(file: &File) -> Result<u64> {
    let length = file.metadata().context("cannot read its length")?.len();
    let page = rustix::param::page_size();
    let mut cached = 0;
    for start in (0..length).step_by(WINDOW as usize) {
        let window = (length - start).min(WINDOW) as usize;
        cached += resident_pages(file, start, window, page)? as u64;
    }
    Ok(cached * page as u64)
}

/// Whether a file's first page is in the page cache. As [`cached_bytes`], this is true of everything to those who may
/// not write the file.
///
/// # Errors
/// A file that is empty or cannot be mapped.
pub fn holds_first_page(file: &File) -> Result<bool> {
    let page = rustix::param::page_size();
    Ok(resident_pages(file, 0, page, page)? > 0)
}

/// Pages of a window of a file that are in memory. Nothing is read: the mapping is only asked about.
fn resident_pages(file: &File, start: u64, length: usize, page: usize) -> Result<usize> {
    let mut pages = vec![0_u8; length.div_ceil(page)];
    // SAFETY: a new mapping at an address of the kernel's choice, without any access; it is unmapped below.
    let address =
        unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::empty(), MapFlags::SHARED, file.as_fd(), start) }
            .context("cannot map it")?;
    // SAFETY: the range is the mapping above, whole pages from its start, and `pages` has a byte for each of them.
    let answer = unsafe { libc::mincore(address, length, pages.as_mut_ptr()) };
    let failure = (answer != 0).then(std::io::Error::last_os_error);
    // SAFETY: the mapping above, of which nothing was handed out.
    unsafe { munmap(address, length) }.context("cannot unmap it")?;
    match failure {
        Some(error) => Err(error).context("cannot learn what of it is in memory"),
        None => Ok(pages.iter().filter(|page| *page & 1 == 1).count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_cached_and_then_is_not() {
        // Not /tmp: a file system in memory has nothing else than the page cache.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let below = folder.path().join("below");
        fs::create_dir(&below).unwrap();
        let path = below.join("weights");
        fs::write(&path, vec![1; 3 << 20]).unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        assert_eq!(cached_bytes(&File::open(&path).unwrap()).unwrap(), 3 << 20);
        let left = evict(folder.path()).unwrap();
        if left > 0 {
            eprintln!("skipped: the file system below this crate keeps {left} bytes");
            return;
        }
        assert_eq!(cached_bytes(&File::open(&path).unwrap()).unwrap(), 0);
        assert_eq!(fs::read(&path).unwrap(), vec![1; 3 << 20]);
    }

    #[test]
    fn a_folder_that_is_not_there_has_nothing_in_the_cache() {
        assert_eq!(evict(Path::new("/does/not/exist")).unwrap(), 0);
    }
}
