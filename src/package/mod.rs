//! What an exported model's folder promises (`docs/package.md`).

mod manifest;

pub use manifest::*;

use std::path::{Path, PathBuf};

use crate::error::Result;

/// A model's folder whose manifest was read and whose files were found at their sizes.
#[derive(Debug, Clone)]
pub struct Package {
    /// The folder, absolute.
    pub root: PathBuf,
    /// What it promises.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes, in hex: it holds the files' hashes, so it names the whole package.
    pub hash: String,
}

impl Package {
    /// Reads the manifest (or another tool's description, see `genai`), and checks that every file is there at its
    /// size. Hashes are checked by [`Package::verify`].
    ///
    /// # Errors
    /// A missing, truncated or foreign folder, named with the remedy.
    pub fn open(_root: &Path) -> Result<Self> {
        todo!("Package::open")
    }
}
