//! What the CUDA and TensorRT providers need, piece by piece, as the dynamic loader would find it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::doctor::Finding;

/// A library, who needs it, and the package that brings it.
struct Piece {
    library: &'static str,
    name: &'static str,
    needed_by: &'static str,
    remedy: &'static str,
}

const PIECES: &[Piece] = &[
    Piece {
        library: "libcuda.so.1",
        name: "NVIDIA driver",
        needed_by: "CUDA and TensorRT",
        remedy: "an NVIDIA GPU and its driver (Debian: apt install nvidia-driver; CUDA 13 needs version 580 or later)",
    },
    Piece {
        library: "libcudart.so.13",
        name: "CUDA 13 runtime",
        needed_by: "CUDA and TensorRT",
        remedy: "pip install nvidia-cuda-runtime, or NVIDIA's package cuda-runtime-13-0",
    },
    Piece {
        library: "libcublasLt.so.13",
        name: "cuBLAS 13",
        needed_by: "CUDA and TensorRT",
        remedy: "pip install nvidia-cublas, or NVIDIA's package libcublas-13-0",
    },
    Piece {
        library: "libcurand.so.10",
        name: "cuRAND 10",
        needed_by: "CUDA and TensorRT",
        remedy: "pip install nvidia-curand, or NVIDIA's package libcurand-13-0",
    },
    Piece {
        library: "libcudnn.so.9",
        name: "cuDNN 9",
        needed_by: "CUDA and TensorRT",
        remedy: "pip install nvidia-cudnn-cu13, or NVIDIA's package cudnn9-cuda-13",
    },
    Piece {
        library: "libnvinfer.so.10",
        name: "TensorRT 10",
        needed_by: "TensorRT",
        remedy: "pip install tensorrt-cu13-libs, or NVIDIA's package libnvinfer10",
    },
];

/// One finding a piece.
pub fn findings(root: &Path) -> Vec<Finding> {
    let folders = search_path(root);
    PIECES
        .iter()
        .map(|piece| match folders.iter().map(|folder| folder.join(piece.library)).find(|file| file.exists()) {
            Some(file) => Finding::good("gpu", piece.name, file.display().to_string()),
            None => Finding::lack(
                "gpu",
                piece.name,
                format!(
                    "{} not found; {} need{} it",
                    piece.library,
                    piece.needed_by,
                    if piece.needed_by.contains(' ') { "" } else { "s" }
                ),
                piece.remedy,
            ),
        })
        .collect()
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

    #[test]
    fn pieces_are_found_where_the_loader_looks() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in
            [("etc/ld.so.conf.d/cuda.conf", "# CUDA\n/opt/cuda/lib\n"), ("opt/cuda/lib/libcudart.so.13", "")]
        {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found: Vec<_> = findings(root.path()).into_iter().filter(|f| f.ok).map(|f| f.name).collect();
        assert_eq!(found, ["CUDA 13 runtime"]);
        assert!(findings(root.path()).iter().all(|finding| finding.ok || finding.remedy.is_some()));
    }
}
