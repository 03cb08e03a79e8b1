//! Placing a build of ONNX Runtime: fetch the pinned wheel, check its hash, unpack its shared libraries.
//!
//! Everything happens in a temporary folder beside the final one, which is renamed when it is whole: an interrupted
//! installation leaves nothing under the final name. Of two at once, the second waits and finds the first's work done.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use super::catalog::{self, Installed, MARKER, Pin};
use super::fetch;
use crate::digest;
use crate::error::{Context, Error, Kind, Result};
use crate::units;

/// How the names of temporary folders begin.
const TEMPORARY: &str = ".installing-";

/// What an installation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already; nothing was done.
    AlreadyThere(PathBuf),
    /// It was placed in this folder.
    Placed(PathBuf),
}

/// Installs a runtime below `root`, from `wheel` where one is at hand, else through pip. `say` hears of steps that
/// take long.
///
/// # Errors
/// No pip, no network, a wheel with another hash, a full disk, a folder that cannot be written; nothing is left under
/// the final name then.
pub fn install(root: &Path, pin: &Pin, wheel: Option<&Path>, say: &dyn Fn(&str)) -> Result<Outcome> {
    let target = catalog::place(root, pin);
    if catalog::installed(&target).is_some() {
        return Ok(Outcome::AlreadyThere(target));
    }
    let failed = || format!("cannot install the runtime `{}`", pin.name);
    make_writable(root).with_context(failed)?;
    let lock = lock(root, say);
    if catalog::installed(&target).is_some() {
        return Ok(Outcome::AlreadyThere(target));
    }
    if lock.is_some() {
        sweep(root);
    }
    check_room(root, pin, wheel.is_none()).with_context(failed)?;
    let temporary = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(root);
    let temporary = temporary.with_context(|| unwritable(root)).map_err(elsewhere).with_context(failed)?;

    let file = match wheel {
        Some(file) => file.to_owned(),
        None => {
            say(&format!("fetching {} {} ({})", pin.project, pin.version, units::bytes(pin.wheel_bytes)));
            fetch::fetch(&fetch::pips(), pin, temporary.path()).with_context(failed)?
        }
    };
    let hash = check_hash(&file, pin, wheel.is_none()).with_context(failed)?;
    let unpacked = temporary.path().join("unpacked");
    unpack(&file, &unpacked, pin, hash)
        .with_context(|| format!("{}: cannot unpack `{}`", failed(), file.display()))
        .map_err(|error| error.kind(Kind::Environment))?;
    // A folder without its marker is the rest of something that went wrong.
    if target.exists() && catalog::installed(&target).is_none() {
        fs::remove_dir_all(&target)
            .with_context(|| format!("{}: cannot remove `{}`", failed(), target.display()))
            .map_err(elsewhere)?;
    }
    match fs::rename(&unpacked, &target) {
        Ok(()) => Ok(Outcome::Placed(target)),
        // Another installation was faster, on a disk that has no locks.
        Err(_) if catalog::installed(&target).is_some() => Ok(Outcome::AlreadyThere(target)),
        Err(error) => Err(Error::environment(failed()).because(error)),
    }
}

fn unwritable(root: &Path) -> String {
    format!("cannot write to `{}`", root.display())
}

/// Errors of the folder have the same kind and remedy.
fn elsewhere(error: Error) -> Error {
    error.kind(Kind::Environment).hint("set ORTBENCH_CACHE to a folder that this user may write")
}

fn make_writable(root: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| unwritable(root)).map_err(elsewhere)?;
    // Asked before a download rather than after it.
    rustix::fs::access(root, rustix::fs::Access::WRITE_OK).with_context(|| unwritable(root)).map_err(elsewhere)
}

/// Waits until no other installation works below `root`. `None` on a disk without locks, where the rename alone
/// decides.
fn lock(root: &Path, say: &dyn Fn(&str)) -> Option<File> {
    let folder = File::open(root).ok()?;
    match folder.try_lock() {
        Ok(()) => Some(folder),
        Err(TryLockError::WouldBlock) => {
            say("another installation is under way; waiting for it to end");
            folder.lock().ok().map(|()| folder)
        }
        Err(TryLockError::Error(_)) => None,
    }
}

/// Removes what killed installations left. Only the holder of the lock may.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            // What cannot be removed costs room and nothing else.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The disk must hold the wheel, if it is to be fetched, and its contents.
fn check_room(root: &Path, pin: &Pin, fetching: bool) -> Result<()> {
    let disk = rustix::fs::statvfs(root).with_context(|| unwritable(root)).map_err(elsewhere)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = pin.unpacked_bytes + if fetching { pin.wheel_bytes } else { 0 };
    if free < needed {
        let message =
            format!("`{}` has {} free, and {} are needed", root.display(), units::bytes(free), units::bytes(needed));
        return Err(Error::environment(message).hint("free some room, or set ORTBENCH_CACHE to a folder with more"));
    }
    Ok(())
}

/// The hash of a wheel that is the pinned one.
fn check_hash(wheel: &Path, pin: &Pin, fetched: bool) -> Result<String> {
    let found = digest::sha256_file(wheel).with_context(|| format!("cannot read the wheel `{}`", wheel.display()))?;
    if found == pin.sha256 || pin.sha256.is_empty() {
        return Ok(found);
    }
    let error = Error::new(format!("`{}` is not the pinned wheel of {}", wheel.display(), pin.project))
        .because(io::Error::other(format!("its SHA-256 is {found}, pinned is {}", pin.sha256)));
    Err(if fetched {
        error.kind(Kind::Environment).hint("the package index that pip uses serves another file under this name")
    } else {
        error.hint(format!(
            "the wheel must be {} {} for CPython {} and {}",
            pin.project, pin.version, pin.python, pin.platform
        ))
    })
}

/// Unpacks a wheel's shared libraries into a new folder and writes its marker.
fn unpack(wheel: &Path, folder: &Path, pin: &Pin, hash: String) -> Result<()> {
    fs::create_dir(folder).context("cannot make its folder")?;
    let mut archive = ZipArchive::new(File::open(wheel).context("cannot open it")?).context("it is no wheel")?;
    let mut library = None;
    // Wheels hold no links: each versioned name of a library is a copy, which becomes a hard link here.
    let mut copies: HashMap<(u32, u64), PathBuf> = HashMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).context("it is damaged")?;
        let name = entry.name().context("it is damaged")?.into_owned();
        let Some(name) = wanted(&name, pin).map(str::to_owned) else { continue };
        let path = folder.join(&name);
        write(&path, &mut entry).with_context(|| format!("cannot write `{name}`"))?;
        match copies.get(&(entry.crc32(), entry.size())) {
            // Equal sums and sizes are not yet equal bytes.
            Some(first) if same(first, &path)? => {
                // On a disk without hard links the copy stays.
                let link = folder.join("link");
                if fs::hard_link(first, &link).is_ok() {
                    fs::rename(&link, &path).with_context(|| format!("cannot link `{name}`"))?;
                }
            }
            _ => {
                copies.insert((entry.crc32(), entry.size()), path);
            }
        }
        if name.starts_with(pin.main) {
            library = Some(name);
        }
    }
    let library = library.ok_or_else(|| Error::new(format!("it holds no {}", pin.main)))?;
    let marker = Installed { name: pin.name.to_owned(), version: pin.version.to_owned(), wheel_sha256: hash, library };
    let text = serde_json::to_vec_pretty(&marker).context("cannot describe the installation")?;
    write(&folder.join(MARKER), &mut text.as_slice()).context("cannot write its marker")?;
    File::open(folder).and_then(|folder| folder.sync_all()).context("cannot sync its folder")
}

/// The file name of an entry that is to be unpacked: shared libraries of the runtime, not Python's module. A name
/// alone, so no entry can lead out of the folder.
fn wanted<'a>(entry: &'a str, pin: &Pin) -> Option<&'a str> {
    let name = entry.strip_prefix(pin.inside)?;
    let library = name.contains(".so") && name.starts_with("lib");
    let chosen = pin.libraries.is_empty() || pin.libraries.contains(&name);
    (library && chosen && !name.contains('/')).then_some(name)
}

fn same(first: &Path, second: &Path) -> Result<bool> {
    let failed = "cannot read back what was unpacked";
    Ok(digest::sha256_file(first).context(failed)? == digest::sha256_file(second).context(failed)?)
}

fn write(path: &Path, content: &mut impl Read) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    io::copy(content, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A wheel with these entries, and a pin that it satisfies.
    fn wheel(folder: &Path, entries: &[(&str, &str)]) -> (PathBuf, Pin) {
        let path = folder.join("a.whl");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in entries {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(content.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        let hash = digest::sha256_file(&path).unwrap();
        let pin = Pin { sha256: hash.leak(), ..catalog::PINS[0] };
        (path, pin)
    }

    fn quiet(_: &str) {}

    const GOOD: &[(&str, &str)] = &[
        ("onnxruntime/capi/libonnxruntime.so.1.31.1", "main"),
        ("onnxruntime/capi/libx.so", "copy"),
        ("onnxruntime/capi/libx.so.2", "copy"),
        ("onnxruntime/capi/onnxruntime_pybind11_state.so", "python"),
        ("onnxruntime/capi/../../libescape.so", "bad"),
        ("onnxruntime/__init__.py", ""),
    ];

    #[test]
    fn places_libraries_once_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let root = folder.path().join("cache");
        let Outcome::Placed(place) = install(&root, &pin, Some(&path), &quiet).unwrap() else { panic!() };
        let mut names: Vec<_> =
            fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["installed.json", "libonnxruntime.so.1.31.1", "libx.so", "libx.so.2"]);
        assert_eq!(install(&root, &pin, None, &quiet).unwrap(), Outcome::AlreadyThere(place));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "the temporary folder stayed");
    }

    #[test]
    fn refuses_what_is_not_the_pinned_wheel_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let root = folder.path().join("cache");
        let other = Pin { sha256: "00", ..pin };
        assert!(install(&root, &other, Some(&path), &quiet).unwrap_err().chain().contains("not the pinned wheel"));
        assert!(install(&root, &pin, Some(&folder.path().join("none.whl")), &quiet).is_err());
        fs::write(&path, "no zip").unwrap();
        let hash = digest::sha256("no zip");
        let torn = Pin { sha256: hash.leak(), ..pin };
        assert!(install(&root, &torn, Some(&path), &quiet).unwrap_err().chain().contains("no wheel"));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn a_companion_brings_its_libraries_and_a_wheel_without_a_pin_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let entries = [
            ("nvidia/cu13/lib/libcudart.so.13", "main"),
            ("nvidia/cu13/lib/libcudart.alt.so.13", "other"),
            ("nvidia/cu13/lib/deep/libcudart.so.13", "other"),
            ("nvidia/cu13/include/cuda.h", ""),
        ];
        let (path, pin) = wheel(folder.path(), &entries);
        let pin = Pin {
            sha256: "",
            inside: "nvidia/cu13/lib/",
            main: "libcudart.so.13",
            libraries: &["libcudart.so.13"],
            ..pin
        };
        let root = folder.path().join("cache");
        let Outcome::Placed(place) = install(&root, &pin, Some(&path), &quiet).unwrap() else { panic!() };
        let installed = catalog::installed(&place).unwrap();
        assert_eq!(installed.library, "libcudart.so.13");
        assert_eq!(installed.wheel_sha256, digest::sha256_file(&path).unwrap());
        assert_eq!(fs::read_dir(&place).unwrap().count(), 2);
        let other = Pin { main: "libnvinfer.so.10", version: "2", ..pin };
        let error = install(&root, &other, Some(&path), &quiet).unwrap_err();
        assert!(error.chain().ends_with("it holds no libnvinfer.so.10"), "{}", error.chain());
    }

    #[test]
    fn the_rest_of_an_interrupted_installation_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let root = folder.path().join("cache");
        fs::create_dir_all(catalog::place(&root, &pin)).unwrap();
        fs::create_dir_all(root.join(TEMPORARY.to_owned() + "x/unpacked")).unwrap();
        assert!(matches!(install(&root, &pin, Some(&path), &quiet).unwrap(), Outcome::Placed(_)));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "what was left was not swept");
    }

    #[test]
    fn of_two_at_once_one_places_it_and_the_other_waits() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let root = folder.path().join("cache");
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| install(&root, &pin, Some(&path), &quiet).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let placed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Placed(_))).count();
        assert_eq!((placed, fs::read_dir(&root).unwrap().count()), (1, 1));
    }

    #[test]
    fn a_folder_that_is_a_file_names_the_variable() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let error = install(&path.join("cache"), &pin, Some(&path), &quiet).unwrap_err();
        assert!(error.chain().contains("cannot write to"), "{}", error.chain());
        assert!(error.find_hint().unwrap().contains("ORTBENCH_CACHE"));
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_disk_without_room_is_refused_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let huge = Pin { unpacked_bytes: u64::MAX / 4, ..pin };
        let error = install(&folder.path().join("cache"), &huge, Some(&path), &quiet).unwrap_err();
        assert!(error.chain().contains("are needed"), "{}", error.chain());
        assert_eq!(error.exit_code(), 3);
    }
}
