//! NVIDIA's libraries beside the runtime `cuda`: which wheels bring them, and where they are placed. Looks at files only.
//!
//! The provider libraries of ONNX Runtime find what they need by name, wherever the dynamic loader looks. What is placed
//! here is in no such folder, so `preload.rs` loads it by path first. The versions are CUDA 13.0's, with which the pinned
//! runtime was built: a later toolkit would ask for a later driver.

pub mod pieces;

use std::path::{Path, PathBuf};

use super::catalog::{self, Pin};
use crate::cell::ProviderKind;

/// The name of the runtime that these libraries belong to.
pub const RUNTIME: &str = "cuda";

/// Wheels of the runtime `cuda`, in the order in which their libraries are loaded.
pub const COMPANIONS: &[Pin] = &[
    Pin {
        name: "nvidia-cuda-runtime",
        project: "nvidia-cuda-runtime",
        version: "13.0.96",
        platform: "manylinux2014_x86_64",
        wheel_bytes: 2_243_632,
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        unpacked_bytes: 1 << 20,
        main: "libcudart.so.13",
        libraries: &["libcudart.so.13"],
        about: "CUDA 13 runtime",
        ..CUDA
    },
    Pin {
        name: "nvidia-cuda-nvrtc",
        project: "nvidia-cuda-nvrtc",
        version: "13.0.88",
        platform: "manylinux2010_x86_64",
        wheel_bytes: 90_215_200,
        sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        unpacked_bytes: 110 << 20,
        main: "libnvrtc.so.13",
        libraries: &["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"],
        about: "compiler of kernels at run time",
        ..CUDA
    },
    Pin {
        name: "nvidia-nvjitlink",
        project: "nvidia-nvjitlink",
        version: "13.0.88",
        platform: "manylinux2010_x86_64",
        wheel_bytes: 40_713_933,
        sha256: "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        unpacked_bytes: 95 << 20,
        main: "libnvJitLink.so.13",
        libraries: &["libnvJitLink.so.13"],
        about: "linker of kernels at run time, for cuFFT",
        ..CUDA
    },
    Pin {
        name: "nvidia-cublas",
        project: "nvidia-cublas",
        version: "13.1.0.3",
        platform: "manylinux_2_27_x86_64",
        wheel_bytes: 423_133_236,
        sha256: "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        unpacked_bytes: 569 << 20,
        main: "libcublas.so.13",
        libraries: &["libcublasLt.so.13", "libcublas.so.13"],
        about: "matrix products",
        ..CUDA
    },
    Pin {
        name: "nvidia-curand",
        project: "nvidia-curand",
        version: "10.4.0.35",
        platform: "manylinux_2_27_x86_64",
        wheel_bytes: 59_544_258,
        sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        unpacked_bytes: 127 << 20,
        main: "libcurand.so.10",
        libraries: &["libcurand.so.10"],
        about: "random numbers",
        ..CUDA
    },
    Pin {
        name: "nvidia-cufft",
        project: "nvidia-cufft",
        version: "12.0.0.61",
        platform: "manylinux2014_x86_64",
        wheel_bytes: 214_085_489,
        sha256: "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        unpacked_bytes: 274 << 20,
        main: "libcufft.so.12",
        libraries: &["libcufft.so.12"],
        about: "Fourier transforms",
        ..CUDA
    },
    Pin {
        name: "nvidia-cudnn-cu13",
        project: "nvidia-cudnn-cu13",
        version: "9.28.1.4",
        platform: "manylinux_2_27_x86_64",
        wheel_bytes: 516_817_937,
        sha256: "a54f205b1db1f2895d99f398754db1369816f0569dd459731f925635cf7b65ec",
        unpacked_bytes: 897 << 20,
        inside: "nvidia/cudnn/lib/",
        main: "libcudnn.so.9",
        // The others lie beside it, where it looks for them.
        libraries: &[],
        about: "cuDNN 9: convolutions and attention",
        ..CUDA
    },
];

/// TensorRT's libraries. PyPI has only a stub of this project, which fetches the wheel from NVIDIA's own index when it is
/// built: there is nothing to pin, and the wheel is taken from a file.
pub const TENSORRT: Pin = Pin {
    name: "tensorrt",
    project: "tensorrt-cu13-libs",
    version: "10",
    platform: "manylinux_2_28_x86_64",
    unpacked_bytes: 5 << 30,
    inside: "tensorrt_libs/",
    main: "libnvinfer.so.10",
    about: "TensorRT 10",
    ..CUDA
};

/// TensorRT's libraries that others ask for by name, in the order in which they are loaded; the rest follows.
const TENSORRT_FIRST: &[&str] = &["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"];

/// What most of the wheels have in common.
const CUDA: Pin = Pin {
    name: "",
    project: "",
    version: "",
    arch: "x86_64",
    platform: "",
    python: "3.12",
    wheel_bytes: 0,
    sha256: "",
    unpacked_bytes: 0,
    inside: "nvidia/cu13/lib/",
    main: "",
    libraries: &[],
    about: "",
};

/// Whether the provider needs these libraries.
pub fn concerns(provider: ProviderKind) -> bool {
    matches!(provider, ProviderKind::Cuda | ProviderKind::TensorRt)
}

/// The libraries that are placed below `root` for a provider, absolute, in the order in which they are to be loaded.
pub fn placed(root: &Path, provider: ProviderKind) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if !concerns(provider) {
        return files;
    }
    for pin in COMPANIONS {
        let folder = catalog::place(root, pin);
        if catalog::installed(&folder).is_some() {
            let names = if pin.libraries.is_empty() { std::slice::from_ref(&pin.main) } else { pin.libraries };
            files.extend(names.iter().map(|name| folder.join(name)));
        }
    }
    let folder = catalog::place(root, &TENSORRT);
    if provider == ProviderKind::TensorRt && catalog::installed(&folder).is_some() {
        files.extend(TENSORRT_FIRST.iter().map(|name| folder.join(name)).filter(|file| file.is_file()));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut rest: Vec<_> = entries.filter(|file| !files.contains(file) && is_library(file)).collect();
        rest.sort();
        files.extend(rest);
    }
    files
}

/// The folder of all runtimes, where the library is one that was placed there.
pub fn root_of(library: &Path) -> Option<&Path> {
    let folder = library.parent()?;
    catalog::installed(folder).filter(|installed| installed.name == RUNTIME)?;
    folder.parent()
}

/// Models of this machine's GPUs, by the kernel module's account; none where it does not say.
pub fn gpu_models(root: &Path) -> Vec<String> {
    let gpus = std::fs::read_dir(root.join("proc/driver/nvidia/gpus")).into_iter().flatten().flatten();
    let mut models: Vec<_> = gpus
        .filter_map(|gpu| {
            let text = std::fs::read_to_string(gpu.path().join("information")).ok()?;
            let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
            Some(model.trim().to_owned())
        })
        .collect();
    models.sort();
    models
}

fn is_library(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lib"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like an installation.
    fn install(root: &Path, pin: &Pin, files: &[&str]) {
        let folder = catalog::place(root, pin);
        std::fs::create_dir_all(&folder).unwrap();
        for file in files.iter().chain([&pin.main]) {
            std::fs::write(folder.join(file), "").unwrap();
        }
        let marker = catalog::Installed {
            name: pin.name.into(),
            version: pin.version.into(),
            wheel_sha256: String::new(),
            library: pin.main.into(),
        };
        std::fs::write(folder.join(catalog::MARKER), serde_json::to_vec(&marker).unwrap()).unwrap();
    }

    fn names(files: &[PathBuf]) -> Vec<&str> {
        files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect()
    }

    #[test]
    fn every_wheel_is_pinned_but_the_one_that_cannot_be() {
        for pin in COMPANIONS {
            assert_eq!(pin.sha256.len(), 64, "{}", pin.name);
            assert!(pin.wheel_bytes > 0 && pin.libraries.iter().all(|name| name.starts_with("lib")));
            assert!(pin.libraries.is_empty() || pin.libraries.contains(&pin.main), "{}", pin.name);
        }
        assert!(TENSORRT.sha256.is_empty());
    }

    #[test]
    fn libraries_are_loaded_before_those_that_need_them() {
        let root = tempfile::tempdir().unwrap();
        assert!(placed(root.path(), ProviderKind::Cuda).is_empty());
        for pin in COMPANIONS {
            install(root.path(), pin, pin.libraries);
        }
        install(root.path(), &TENSORRT, &["libnvonnxparser.so.10", "libnvinfer_builder_resource.so.10.14.1"]);
        let cuda = placed(root.path(), ProviderKind::Cuda);
        assert_eq!(
            names(&cuda),
            [
                "libcudart.so.13",
                "libnvrtc-builtins.so.13.0",
                "libnvrtc.so.13",
                "libnvJitLink.so.13",
                "libcublasLt.so.13",
                "libcublas.so.13",
                "libcurand.so.10",
                "libcufft.so.12",
                "libcudnn.so.9"
            ]
        );
        assert!(cuda.iter().all(|file| file.is_absolute()));
        let tensorrt = placed(root.path(), ProviderKind::TensorRt);
        assert_eq!(
            names(&tensorrt)[9..],
            ["libnvinfer.so.10", "libnvonnxparser.so.10", "libnvinfer_builder_resource.so.10.14.1"]
        );
        assert!(placed(root.path(), ProviderKind::Cpu).is_empty());
        assert!(placed(root.path(), ProviderKind::OpenVino).is_empty());
    }

    #[test]
    fn gpus_are_named_by_the_kernel_module() {
        let root = tempfile::tempdir().unwrap();
        assert!(gpu_models(root.path()).is_empty());
        for (slot, model) in [("0000:b1:00.0", "NVIDIA L4"), ("0000:31:00.0", "NVIDIA H100 PCIe")] {
            let folder = root.path().join("proc/driver/nvidia/gpus").join(slot);
            std::fs::create_dir_all(&folder).unwrap();
            let text = format!("Model: \t\t {model}\nIRQ:   \t\t 129\nGPU UUID: \t GPU-0\n");
            std::fs::write(folder.join("information"), text).unwrap();
        }
        assert_eq!(gpu_models(root.path()), ["NVIDIA H100 PCIe", "NVIDIA L4"]);
    }

    #[test]
    fn only_the_placed_cuda_runtime_has_companions() {
        let root = tempfile::tempdir().unwrap();
        let pin = |name: &'static str| Pin { name, version: "1", main: "libonnxruntime.so.1", ..CUDA };
        install(root.path(), &pin("cuda"), &[]);
        install(root.path(), &pin("cpu"), &[]);
        assert_eq!(root_of(&root.path().join("cuda-1/libonnxruntime.so.1")), Some(root.path()));
        assert_eq!(root_of(&root.path().join("cpu-1/libonnxruntime.so.1")), None);
        assert_eq!(root_of(Path::new("/opt/ort/libonnxruntime.so")), None);
    }
}
