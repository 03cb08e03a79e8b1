//! What every reader of NVIDIA's management library needs: the library, and which GPU CUDA means.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// The driver's library has this name; the one without a version comes with development packages only.
pub(super) fn load() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init()
}

/// NVML's index of the GPU that CUDA gives this number.
pub(super) fn index_of_cuda(nvml: &Nvml, number: u32) -> Result<u32, NvmlError> {
    match visible_device(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref(), number) {
        Visible::Index(index) => Ok(index),
        Visible::Uuid(uuid) => nvml.device_by_uuid(uuid)?.index(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Visible<'a> {
    Index(u32),
    Uuid(&'a str),
}

/// CUDA counts the GPUs that its variable lists, by numbers or identifiers; NVML counts all of them.
fn visible_device(variable: Option<&str>, number: u32) -> Visible<'_> {
    let listed = variable.and_then(|list| list.split(',').map(str::trim).nth(number as usize));
    match listed.filter(|entry| !entry.is_empty()) {
        None => Visible::Index(number),
        Some(entry) => entry.parse().map_or(Visible::Uuid(entry), Visible::Index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cudas_numbers_are_those_of_the_visible_gpus() {
        assert_eq!(visible_device(None, 1), Visible::Index(1));
        assert_eq!(visible_device(Some("3, 2"), 1), Visible::Index(2));
        assert_eq!(visible_device(Some("3, 5"), 1), Visible::Index(5));
        assert_eq!(visible_device(Some("GPU-1a,GPU-2b"), 0), Visible::Uuid("GPU-1a"));
        assert_eq!(visible_device(Some("GPU-a,GPU-b"), 1), Visible::Uuid("GPU-b"));
        assert_eq!(visible_device(Some(""), 0), Visible::Index(0));
    }
}
