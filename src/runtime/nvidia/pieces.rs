//! What the CUDA and TensorRT providers need, piece by piece, as the dynamic loader would find it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{COMPANIONS, TENSORRT};
use crate::cell::ProviderKind;
use crate::runtime::catalog::{self, Pin};

/// The oldest driver that CUDA 13 runs on.
const DRIVER: u32 = 580;

/// What NVIDIA's libraries are fetched with.
const INSTALL: &str = "ortbench runtime install cuda";

/// A library, who needs it, and what brings it.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// The file that is looked for.
    pub library: &'static str,
    /// What it is called.
    pub name: &'static str,
    /// Whether TensorRT alone needs it.
    pub of_tensorrt: bool,
    /// What brings it.
    pub remedy: &'static str,
}

/// Whether a piece is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// In this file.
    Found(PathBuf),
    /// It is there and of no use.
    Unfit(String),
    /// Nowhere.
    Missing,
}

/// Every piece, in the order in which a reader should mend them.
pub const PIECES: &[Piece] = &[
    Piece {
        library: "libcuda.so.1",
        name: "NVIDIA driver",
        of_tensorrt: false,
        remedy: "an NVIDIA GPU and its driver (Debian: apt install nvidia-driver; CUDA 13 needs version 580 or later)",
    },
    Piece {
        library: "libcudart.so.13",
        name: "CUDA 13 runtime",
        of_tensorrt: false,
        remedy: "pip install nvidia-cuda-runtime, or NVIDIA's package cuda-cudart-13-0",
    },
    Piece {
        library: "libcublasLt.so.13",
        name: "cuBLAS 13",
        of_tensorrt: false,
        remedy: "pip install nvidia-cublas, or NVIDIA's package libcublas-13-0",
    },
    Piece {
        library: "libcurand.so.10",
        name: "cuRAND 10",
        of_tensorrt: false,
        remedy: "pip install nvidia-curand, or NVIDIA's package libcurand-13-0",
    },
    Piece {
        library: "libnvrtc.so.13",
        name: "NVRTC 13",
        of_tensorrt: false,
        remedy: "pip install nvidia-cuda-nvrtc, or NVIDIA's package cuda-nvrtc-13-0",
    },
    Piece {
        library: "libcudnn.so.9",
        name: "cuDNN 9",
        of_tensorrt: false,
        remedy: "pip install nvidia-cudnn-cu13, or NVIDIA's package cudnn9-cuda-13",
    },
    Piece {
        library: "libnvinfer.so.10",
        name: "TensorRT 10",
        of_tensorrt: true,
        remedy: "NVIDIA's package libnvinfer10 with libnvonnxparsers10, or the wheel tensorrt-cu13-libs 10 from \
                 NVIDIA's own index (PyPI has a stub of it) with `ortbench runtime install cuda --with-tensorrt WHEEL`",
    },
];

impl Piece {
    /// What is to be done where it is missing.
    pub fn advice(&self) -> String {
        let placed = COMPANIONS.iter().any(|pin| brings(pin, self.library));
        if placed { format!("`{INSTALL}` places it; or {}", self.remedy) } else { self.remedy.to_owned() }
    }

    /// Whether it is below `root`, where the loader looks, or below `runtimes`, where this program places libraries.
    pub fn state(&self, root: &Path, runtimes: Option<&Path>) -> State {
        let places = search_path(root).into_iter().chain(runtimes.and_then(|runtimes| self.placed_in(runtimes)));
        let Some(file) = places.map(|folder| folder.join(self.library)).find(|file| file.exists()) else {
            return State::Missing;
        };
        if self.library != "libcuda.so.1" {
            return State::Found(file);
        }
        match driver_version(root) {
            Some((major, version)) if major < DRIVER => {
                State::Unfit(format!("its version is {version}, and CUDA 13 needs {DRIVER} or later"))
            }
            _ => State::Found(file),
        }
    }

    fn placed_in(&self, runtimes: &Path) -> Option<PathBuf> {
        let pin = COMPANIONS.iter().chain([&TENSORRT]).find(|pin| brings(pin, self.library))?;
        let folder = catalog::place(runtimes, pin);
        catalog::installed(&folder).map(|_| folder)
    }
}

/// What a provider lacks, with what brings each piece; empty where all is there.
pub fn missing(provider: ProviderKind, root: &Path, runtimes: Option<&Path>) -> Vec<(String, String)> {
    let concerned = PIECES.iter().filter(|piece| !piece.of_tensorrt || provider == ProviderKind::TensorRt);
    concerned
        .filter_map(|piece| match piece.state(root, runtimes) {
            State::Found(_) => None,
            State::Missing => Some((format!("{} ({}) is missing", piece.name, piece.library), piece.advice())),
            State::Unfit(why) => Some((format!("{} is unfit: {why}", piece.name), piece.advice())),
        })
        .collect()
}

/// What CUDA's own error says of the machine, where it is the machine's fault: what is wrong, and what mends it.
/// The libraries may all be there without a GPU or a driver that runs.
pub fn of_failure(message: &str) -> Option<(&'static str, &'static str)> {
    let number = message.split("CUDA failure ").nth(1)?;
    let number: u32 = number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    // Numbers of cudaError_t.
    Some(match number {
        35 => ("the NVIDIA driver is too old for CUDA 13, or does not run", PIECES[0].remedy),
        100 => ("there is no NVIDIA GPU, or this process may not use it", "a machine (or container) with a GPU"),
        101 => ("the provider's option `device_id` names no GPU", "take a `device_id` that `nvidia-smi -L` lists"),
        209 => ("the build of ONNX Runtime has no kernels for this GPU", "a GPU of compute capability 7.5 or later"),
        803 => ("the NVIDIA driver's library and kernel module are of different versions", "restart the machine"),
        _ => return None,
    })
}

fn brings(pin: &Pin, library: &str) -> bool {
    pin.main == library || pin.libraries.contains(&library)
}

/// The loaded driver's version, by its kernel module.
fn driver_version(root: &Path) -> Option<(u32, String)> {
    let text = fs::read_to_string(root.join("proc/driver/nvidia/version")).ok()?;
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  …`, and `NVIDIA UNIX Open Kernel Module for x86_64`.
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    let version = line.split_whitespace().find(is_version)?;
    Some((version.split('.').next()?.parse().ok()?, version.to_owned()))
}

/// LD_LIBRARY_PATH, the folders of `/etc/ld.so.conf` and its includes, and the loader's own.
fn search_path(root: &Path) -> BTreeSet<PathBuf> {
    let mut folders: BTreeSet<_> = [
        "lib",
        "usr/lib",
        "lib64",
        "usr/lib64",
        "lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu",
        "usr/local/cuda/lib64",
    ]
    .iter()
    .map(|folder| root.join(folder))
    .collect();
    if let Some(variable) = std::env::var_os("LD_LIBRARY_PATH") {
        folders.extend(std::env::split_paths(&variable));
    }
    let listed = fs::read_dir(root.join("etc/ld.so.conf.d")).into_iter().flatten().flatten().map(|entry| entry.path());
    for file in listed.chain([root.join("etc/ld.so.conf")]) {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
        folders.extend(lines.map(|line| root.join(line.trim_start_matches('/'))));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's files.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const LIBRARIES: [&str; 7] = [
        "usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "opt/cuda/lib/libcudart.so.13",
        "opt/cuda/lib/libcublasLt.so.13",
        "opt/cuda/lib/libcurand.so.10",
        "opt/cuda/lib/libnvrtc.so.13",
        "opt/cuda/lib/libcudnn.so.9",
        "usr/lib/x86_64-linux-gnu/libnvinfer.so.10",
    ];

    fn driver(version: &str) -> String {
        format!(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (root@host)  Sat Jul 26\n\
             GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
        )
    }

    /// A whole machine without one file.
    fn without(lacking: &str) -> tempfile::TempDir {
        let driver = driver("580.65.06");
        let mut files = vec![
            ("etc/ld.so.conf.d/cuda.conf", "# CUDA\n/opt/cuda/lib\n"),
            ("proc/driver/nvidia/version", driver.as_str()),
        ];
        files.extend(LIBRARIES.iter().filter(|file| !file.ends_with(lacking)).map(|file| (*file, "")));
        tree(&files)
    }

    #[test]
    fn each_missing_piece_is_named_with_what_brings_it() {
        assert!(missing(ProviderKind::TensorRt, without("nothing").path(), None).is_empty());
        for piece in PIECES {
            let root = without(piece.library);
            let found = missing(ProviderKind::TensorRt, root.path(), None);
            let [(what, advice)] = found.as_slice() else { panic!("{}: {found:?}", piece.name) };
            assert_eq!(*what, format!("{} ({}) is missing", piece.name, piece.library));
            assert!(advice.contains("nvidia") || advice.contains("NVIDIA"), "{advice}");
            let by_us = !["NVIDIA driver", "TensorRT 10"].contains(&piece.name);
            assert_eq!(advice.starts_with("`ortbench runtime install cuda` places it"), by_us, "{advice}");
            let cuda = missing(ProviderKind::Cuda, root.path(), None);
            assert_eq!(cuda.is_empty(), piece.of_tensorrt, "{}", piece.name);
        }
    }

    #[test]
    fn a_driver_that_is_too_old_is_told_apart_from_none() {
        let old = driver("550.54.15");
        let files = [("proc/driver/nvidia/version", old.as_str()), (LIBRARIES[0], "")];
        let root = tree(&files);
        assert_eq!(
            PIECES[0].state(root.path(), None),
            State::Unfit("its version is 550.54.15, and CUDA 13 needs 580 or later".to_owned())
        );
        // A container that does not show the module's version is believed.
        let root = tree(&[(LIBRARIES[0], "")]);
        assert!(matches!(PIECES[0].state(root.path(), None), State::Found(_)));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 06:54:38 UTC 2025\n";
        let root = tree(&[("proc/driver/nvidia/version", closed)]);
        assert_eq!(driver_version(root.path()), Some((580, "580.65.06".to_owned())));
    }

    #[test]
    fn errors_of_cuda_that_are_the_machines_are_told_apart() {
        let said = |number| of_failure(&format!("CudaCall(...) CUDA failure {number}: some words ; GPU=-1"));
        assert!(said(35).unwrap().0.contains("driver is too old"));
        assert!(said(100).unwrap().0.contains("no NVIDIA GPU"));
        assert!(said(101).unwrap().1.contains("nvidia-smi"));
        // Out of memory is not the machine's lack of anything.
        assert_eq!(said(2), None);
        assert_eq!(of_failure("CUDA failure"), None);
        assert_eq!(of_failure("CUDA failure : x"), None);
    }

    #[test]
    fn what_this_program_placed_counts() {
        let (root, runtimes) = (tree(&[]), tempfile::tempdir().unwrap());
        let pin = &COMPANIONS[0];
        let folder = catalog::place(runtimes.path(), pin);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(pin.main), "").unwrap();
        let state = || PIECES[1].state(root.path(), Some(runtimes.path()));
        assert_eq!(state(), State::Missing, "a folder without its marker is no installation");
        let marker = catalog::Installed {
            name: pin.name.into(),
            version: pin.version.into(),
            wheel_sha256: String::new(),
            library: pin.main.into(),
        };
        fs::write(folder.join(catalog::MARKER), serde_json::to_vec(&marker).unwrap()).unwrap();
        assert_eq!(state(), State::Found(folder.join(pin.main)));
    }
}
