//! Placing a build of ONNX Runtime: fetch the pinned wheel with pip, check its hash, unpack its shared libraries.
//!
//! Everything happens in a temporary folder beside the final one, which is renamed when it is whole: an interrupted
//! installation leaves nothing under the final name, and of two at once one wins.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use zip::ZipArchive;

use super::catalog::{self, Installed, MARKER, Pin};
use crate::digest;
use crate::error::{Context, Error, Kind, Result};
use crate::units;

/// What an installation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already; nothing was done.
    AlreadyThere(PathBuf),
    /// It was placed in this folder.
    Placed(PathBuf),
}

/// Installs a runtime below `root`, from `wheel` where one is at hand, else through pip.
///
/// # Errors
/// No pip, no network, a wheel with another hash, a full disk, a folder that cannot be written; nothing is left under
/// the final name then.
pub fn install(root: &Path, pin: &Pin, wheel: Option<&Path>) -> Result<Outcome> {
    let target = catalog::place(root, pin);
    if catalog::installed(&target).is_some() {
        return Ok(Outcome::AlreadyThere(target));
    }
    let failed = || format!("cannot install the runtime `{}`", pin.name);
    let temporary = prepare(root, pin).with_context(failed)?;
    let wheel = match wheel {
        Some(file) => file.to_owned(),
        None => download(pin, temporary.path()).with_context(failed)?,
    };
    check_hash(&wheel, pin).with_context(failed)?;
    let unpacked = temporary.path().join("unpacked");
    unpack(&wheel, &unpacked, pin).with_context(|| format!("{}: cannot unpack `{}`", failed(), wheel.display()))?;
    // A folder without its marker is the rest of something that went wrong.
    if target.exists() && catalog::installed(&target).is_none() {
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove `{}`", target.display()))?;
    }
    match fs::rename(&unpacked, &target) {
        Ok(()) => Ok(Outcome::Placed(target)),
        // Another installation was faster.
        Err(_) if catalog::installed(&target).is_some() => Ok(Outcome::AlreadyThere(target)),
        Err(error) => Err(Error::environment(failed()).because(error)),
    }
}

/// A temporary folder on the disk of the final one, which must have room for the wheel and its contents.
fn prepare(root: &Path, pin: &Pin) -> Result<tempfile::TempDir> {
    let unwritable = || format!("cannot write to `{}`", root.display());
    let elsewhere = "set ORTBENCH_CACHE to a folder that this user may write";
    let environment = |error: Error| error.kind(Kind::Environment).hint(elsewhere);
    fs::create_dir_all(root).with_context(unwritable).map_err(environment)?;
    let disk = rustix::fs::statvfs(root).with_context(unwritable).map_err(environment)?;
    let (free, needed) = (disk.f_bavail * disk.f_frsize, 2 * pin.unpacked_bytes);
    if free < needed {
        let message =
            format!("`{}` has {} free, and {} are needed", root.display(), units::bytes(free), units::bytes(needed));
        return Err(Error::environment(message).hint("free some room, or set ORTBENCH_CACHE to a folder with more"));
    }
    tempfile::Builder::new().prefix(".installing-").tempdir_in(root).with_context(unwritable).map_err(environment)
}

/// Fetches the wheel with the user's pip, whose settings (index, proxy, certificates) hold.
fn download(pin: &Pin, folder: &Path) -> Result<PathBuf> {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let offline = format!("or fetch the wheel elsewhere and pass it with `--wheel` (SHA-256 {})", pin.sha256);
    let output = Command::new(&python)
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12"])
        .args(["--platform", pin.platform, "--dest"])
        .arg(folder)
        .arg(format!("{}=={}", pin.project, pin.version))
        .output()
        .map_err(|error| {
            Error::environment(format!("cannot run `{}`", python.display()))
                .because(error)
                .hint(format!("install Python 3.10 or later with pip, or set PYTHON; {offline}"))
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let no_pip = text.contains("No module named pip");
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
        let hint = if no_pip {
            format!("install pip (Debian: `apt install python3-pip`), {offline}")
        } else {
            format!("check the network and pip's settings, {offline}")
        };
        return Err(Error::environment(format!("pip cannot fetch {} {}", pin.project, pin.version))
            .because(io::Error::other(last))
            .hint(hint));
    }
    let files = fs::read_dir(folder).context("cannot read the download's folder")?;
    files
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Error::environment("pip ended well but left no wheel"))
}

fn check_hash(wheel: &Path, pin: &Pin) -> Result<()> {
    let failed = || format!("cannot read the wheel `{}`", wheel.display());
    let found = digest::sha256_file(wheel).with_context(failed)?;
    if found != pin.sha256 {
        return Err(Error::new(format!("`{}` is not the pinned wheel of {}", wheel.display(), pin.project))
            .because(io::Error::other(format!("its SHA-256 is {found}, pinned is {}", pin.sha256)))
            .hint(format!("the wheel must be {} {} for {}", pin.project, pin.version, pin.platform)));
    }
    Ok(())
}

/// Unpacks the shared libraries below `onnxruntime/capi/` into a new folder and writes its marker.
fn unpack(wheel: &Path, folder: &Path, pin: &Pin) -> Result<()> {
    fs::create_dir(folder).context("cannot make its folder")?;
    let mut archive = ZipArchive::new(File::open(wheel).context("cannot open it")?).context("it is no wheel")?;
    let mut library = None;
    // Wheels hold no links: each versioned name of a library is a copy, which becomes a hard link here.
    let mut copies: HashMap<(u32, u64), PathBuf> = HashMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).context("it is damaged")?;
        let name = entry.name().context("it is damaged")?.into_owned();
        let Some(name) = wanted(&name).map(str::to_owned) else { continue };
        let path = folder.join(&name);
        write(&path, &mut entry).with_context(|| format!("cannot write `{name}`"))?;
        match copies.get(&(entry.crc32(), entry.size())) {
            // Equal sums and sizes are not yet equal bytes.
            Some(first) if same(first, &path)? => {
                let failed = || format!("cannot link `{name}`");
                fs::remove_file(&path).with_context(failed)?;
                fs::hard_link(first, &path).with_context(failed)?;
            }
            _ => {
                copies.insert((entry.crc32(), entry.size()), path);
            }
        }
        if name.starts_with("libonnxruntime.so") {
            library = Some(name);
        }
    }
    let library = library.ok_or_else(|| Error::new("it holds no libonnxruntime"))?;
    let marker = Installed {
        name: pin.name.to_owned(),
        version: pin.version.to_owned(),
        wheel_sha256: pin.sha256.to_owned(),
        library,
    };
    let text = serde_json::to_vec_pretty(&marker).context("cannot describe the installation")?;
    write(&folder.join(MARKER), &mut text.as_slice()).context("cannot write its marker")?;
    File::open(folder).and_then(|folder| folder.sync_all()).context("cannot sync its folder")
}

/// The file name of an entry that is to be unpacked: shared libraries of the runtime, not Python's module. A name
/// alone, so no entry can lead out of the folder.
fn wanted(entry: &str) -> Option<&str> {
    let name = entry.strip_prefix("onnxruntime/capi/")?;
    let library = name.contains(".so") && name.starts_with("lib");
    (library && !name.contains('/')).then_some(name)
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
        let Outcome::Placed(place) = install(&root, &pin, Some(&path)).unwrap() else { panic!() };
        let mut names: Vec<_> =
            fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["installed.json", "libonnxruntime.so.1.31.1", "libx.so", "libx.so.2"]);
        assert_eq!(install(&root, &pin, None).unwrap(), Outcome::AlreadyThere(place));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "the temporary folder stayed");
    }

    #[test]
    fn refuses_what_is_not_the_pinned_wheel_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let root = folder.path().join("cache");
        let other = Pin { sha256: "00", ..pin };
        assert!(install(&root, &other, Some(&path)).unwrap_err().chain().contains("not the pinned wheel"));
        assert!(install(&root, &pin, Some(&folder.path().join("none.whl"))).is_err());
        fs::write(&path, "no zip").unwrap();
        let hash = digest::sha256("no zip");
        let torn = Pin { sha256: hash.leak(), ..pin };
        assert!(install(&root, &torn, Some(&path)).unwrap_err().chain().contains("no wheel"));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn the_rest_of_an_interrupted_installation_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let root = folder.path().join("cache");
        fs::create_dir_all(catalog::place(&root, &pin)).unwrap();
        assert!(matches!(install(&root, &pin, Some(&path)).unwrap(), Outcome::Placed(_)));
    }

    #[test]
    fn a_disk_without_room_is_refused_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let (path, pin) = wheel(folder.path(), GOOD);
        let huge = Pin { unpacked_bytes: u64::MAX / 4, ..pin };
        let error = install(&folder.path().join("cache"), &huge, Some(&path)).unwrap_err();
        assert!(error.chain().contains("are needed"), "{}", error.chain());
        assert_eq!(error.exit_code(), 3);
    }
}
