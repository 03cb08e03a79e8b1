//! Which builds of ONNX Runtime are known, pinned and installed. Nothing here loads a library.

use std::env;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cell::RuntimeRef;
use crate::error::{Context, Error, Result};

/// A build that `ortbench runtime install` can place: one pinned wheel of an official PyPI project.
///
/// Only the wheel's shared libraries are used, so its Python version does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The name in matrices and commands.
    pub name: &'static str,
    /// The project on PyPI.
    pub project: &'static str,
    /// Its version, which is ONNX Runtime's.
    pub version: &'static str,
    /// Processor, as Rust names it.
    pub arch: &'static str,
    /// The wheel's platform tag.
    pub platform: &'static str,
    /// The version of Python that the pinned wheel was built for.
    pub python: &'static str,
    /// Size of the wheel.
    pub wheel_bytes: u64,
    /// SHA-256 of the wheel, in hex; empty where the wheel is not on PyPI and is taken as it is given.
    pub sha256: &'static str,
    /// Bytes on the disk once unpacked, rounded up.
    pub unpacked_bytes: u64,
    /// The folder in the wheel that holds its libraries.
    pub inside: &'static str,
    /// How the file name of its main library begins.
    pub main: &'static str,
    /// The libraries that are unpacked; none names all.
    pub libraries: &'static [&'static str],
    /// What it offers, in a few words.
    pub about: &'static str,
}

/// Every build, one row each.
pub const PINS: &[Pin] = &[
    Pin {
        name: "cpu",
        project: "onnxruntime",
        version: "1.31.1",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        python: "3.12",
        wheel_bytes: 23_760_988,
        sha256: "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
        unpacked_bytes: 30 << 20,
        inside: "onnxruntime/capi/",
        main: "libonnxruntime.so",
        libraries: &[],
        about: "CPU provider",
    },
    Pin {
        name: "cpu",
        project: "onnxruntime",
        version: "1.31.1",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        python: "3.12",
        wheel_bytes: 21_420_803,
        sha256: "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
        unpacked_bytes: 30 << 20,
        inside: "onnxruntime/capi/",
        main: "libonnxruntime.so",
        libraries: &[],
        about: "CPU provider",
    },
    Pin {
        name: "openvino",
        project: "onnxruntime-openvino",
        version: "1.24.1",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        python: "3.12",
        wheel_bytes: 84_433_207,
        sha256: "d617fac2f59a6ab5ea59a788c3e1592240a129642519aaeaa774761dfe35150e",
        unpacked_bytes: 180 << 20,
        inside: "onnxruntime/capi/",
        main: "libonnxruntime.so",
        libraries: &[],
        about: "CPU and OpenVINO providers, with OpenVINO's libraries",
    },
    Pin {
        name: "cuda",
        project: "onnxruntime-gpu",
        version: "1.31.1",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        python: "3.12",
        wheel_bytes: 255_569_273,
        sha256: "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7",
        unpacked_bytes: 400 << 20,
        inside: "onnxruntime/capi/",
        main: "libonnxruntime.so",
        libraries: &[],
        about: "CPU, CUDA and TensorRT providers; brings CUDA 13 and cuDNN 9, needs an NVIDIA GPU and its driver",
    },
];

/// A libonnxruntime on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// `cpu`, `openvino`, `cuda`, or the path that the user gave.
    pub name: String,
    /// The shared library, absolute.
    pub path: PathBuf,
    /// The pinned version, or `None` for a path of the user's.
    pub version: Option<String>,
}

/// `installed.json`: written last, so that a folder without it is no installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// [`Pin::name`].
    pub name: String,
    /// [`Pin::version`].
    pub version: String,
    /// Hash of the wheel that it came from, as it was found.
    pub wheel_sha256: String,
    /// File name of the main library (libonnxruntime) within the folder.
    pub library: String,
}

/// The name of the file that marks a whole installation.
pub const MARKER: &str = "installed.json";

/// The pin of that name for this machine's processor.
///
/// # Errors
/// An unknown name (the known ones are listed), a processor for which there is no wheel.
pub fn pin(name: &str) -> Result<&'static Pin> {
    let of_name: Vec<_> = PINS.iter().filter(|pin| pin.name == name).collect();
    if of_name.is_empty() {
        let mut known: Vec<_> = PINS.iter().map(|pin| pin.name).collect();
        known.dedup();
        return Err(Error::new(format!("unknown runtime `{name}`; known are {}", known.join(", ")))
            .hint("a library of your own is named by its path"));
    }
    of_name.into_iter().find(|pin| pin.arch == env::consts::ARCH && env::consts::OS == "linux").ok_or_else(|| {
        let machine = format!("{} on {}", env::consts::ARCH, env::consts::OS);
        Error::environment(format!("there is no pinned wheel of the runtime `{name}` for {machine}"))
            .hint("name a libonnxruntime of your own by its path")
    })
}

/// Where runtimes are placed: `runtimes` below [`cache_folder`].
///
/// # Errors
/// As of [`cache_folder`].
pub fn folder() -> Result<PathBuf> {
    Ok(cache_folder()?.join("runtimes"))
}

/// Where this program keeps what it can fetch or make again: `$ORTBENCH_CACHE`, else `$XDG_CACHE_HOME/ortbench`, else
/// `~/.cache/ortbench`.
///
/// # Errors
/// A process without any of the three variables.
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("ORTBENCH_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("ortbench")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/ortbench")))
        .ok_or_else(|| {
            Error::environment("there is no folder for runtimes: neither ORTBENCH_CACHE nor HOME is set")
                .hint("set ORTBENCH_CACHE to a folder that this user may write")
        })?;
    std::path::absolute(cache).context("cannot find the folder for runtimes")
}

/// The folder of one pinned runtime.
pub fn place(root: &Path, pin: &Pin) -> PathBuf {
    root.join(format!("{}-{}", pin.name, pin.version))
}

/// What is installed in a folder, if it is a whole installation.
pub fn installed(folder: &Path) -> Option<Installed> {
    let installed: Installed = serde_json::from_slice(&std::fs::read(folder.join(MARKER)).ok()?).ok()?;
    folder.join(&installed.library).is_file().then_some(installed)
}

/// Finds the library that a backend names.
///
/// # Errors
/// A runtime that is not installed (with the command that installs it), a path that is no file.
pub fn find(runtime: &RuntimeRef) -> Result<Library> {
    match runtime {
        RuntimeRef::Installed(name) => find_installed(&folder()?, name),
        RuntimeRef::Path(path) => {
            let failed = || format!("cannot find the runtime `{}`", path.display());
            let hint = "name the libonnxruntime file itself, or an installed runtime: cpu, openvino, cuda";
            let found = std::fs::canonicalize(path)
                .with_context(failed)
                .map_err(|error| error.kind(crate::error::Kind::Environment).hint(hint))?;
            if !found.is_file() {
                let cause = std::io::Error::other("it is not a file");
                return Err(Error::environment(failed()).because(cause).hint(hint));
            }
            Ok(Library { name: path.display().to_string(), path: found, version: None })
        }
    }
}

fn find_installed(root: &Path, name: &str) -> Result<Library> {
    let pin = pin(name)?;
    let folder = place(root, pin);
    let installed = installed(&folder).ok_or_else(|| {
        Error::environment(format!("the runtime `{name}` ({} {}) is not installed", pin.project, pin.version))
            .hint(format!("`ortbench runtime install {name}` places it in `{}`", root.display()))
    })?;
    Ok(Library { name: name.to_owned(), path: folder.join(installed.library), version: Some(installed.version) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_runtime_names_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let error = find_installed(folder.path(), "openvino").unwrap_err();
        assert!(error.find_hint().unwrap().contains("ortbench runtime install openvino"));
        assert_eq!(error.exit_code(), 3);
        assert!(find_installed(folder.path(), "rocm").unwrap_err().chain().contains("known are cpu, openvino, cuda"));
    }

    #[test]
    fn a_folder_without_marker_or_library_is_no_installation() {
        let folder = tempfile::tempdir().unwrap();
        let marker = Installed {
            name: "cpu".into(),
            version: "1".into(),
            wheel_sha256: String::new(),
            library: "libonnxruntime.so.1".into(),
        };
        std::fs::write(folder.path().join(MARKER), serde_json::to_vec(&marker).unwrap()).unwrap();
        assert_eq!(installed(folder.path()), None);
        std::fs::write(folder.path().join("libonnxruntime.so.1"), "").unwrap();
        assert_eq!(installed(folder.path()), Some(marker));
    }

    #[test]
    fn a_path_must_be_a_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(&RuntimeRef::Path(folder.path().into())).unwrap_err().chain().contains("not a file"));
        assert!(find(&RuntimeRef::Path(folder.path().join("none"))).is_err());
    }
}
