//! The only folder that names `ort`: find and load libonnxruntime, providers, sessions, bindings.
//!
//! `catalog`, `fetch`, `install` and `nvidia` only look at files: the parent process uses them and never loads the
//! library. Everything else here belongs to the worker.

pub mod catalog;

pub mod install;

pub mod nvidia;

mod arena;
mod binding;
mod bindings;
mod buffers;
pub mod custom;
pub mod device;
pub mod engines;
mod fetch;
mod graph;
mod handed;
mod heap;
mod library;
mod operators;
mod placement;
mod plugin;
mod preload;
pub mod products;
pub mod providers;
mod session;
mod weights;

pub use arena::Arena;
pub use binding::RunSettings;
pub use bindings::Bindings;
pub use buffers::{BufferId, Element, Memory, Region};
pub use graph::{Bound, HostTensor, Output, OutputElements};
pub use handed::HandedTensor;
pub use library::{Runtime, SharedThreads};
pub use placement::Placement;
pub use session::{Session, SessionOptions};
pub use weights::{Lent, PartWeights, WeightInput};

use crate::error::Error;

/// An error of ONNX Runtime as one of ours.
fn ort_error(operation: impl Into<String>, error: ort::Error) -> Error {
    Error::new(operation).because(std::io::Error::other(error.to_string()))
}
