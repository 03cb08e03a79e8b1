//! The only folder that names `ort`: find and load libonnxruntime, providers, sessions, bindings.
//!
//! `catalog` and `install` only look at files: the parent process uses them and never loads the library.

pub mod catalog;
