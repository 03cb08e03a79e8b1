//! What a reference cell leaves in its folder for the cells that are compared with it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fidelity::ReferenceText;
use crate::cell::CellId;
use crate::error::{Context, Error, Result};
use crate::tasks::Outcome;

/// Written last: its presence says that the folder is whole.
const FILE: &str = "reference.json";

/// The format's version.
const VERSION: u32 = 1;

/// A reference's answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    version: u32,
    /// The cell.
    pub cell: CellId,
    /// Hash of its package's manifest.
    pub package_hash: String,
    /// Tasks by name.
    pub tasks: BTreeMap<String, ReferenceTask>,
    /// The fidelity text; its logits lie beside.
    pub text: Option<ReferenceText>,
}

/// A reference's answers to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceTask {
    /// The task's hash: only equal ones asked the same.
    pub hash: String,
    /// The figure that stands for the task.
    pub metric: String,
    /// Its value.
    pub score: f64,
    /// Every item's outcome.
    pub outcomes: Vec<Outcome>,
}

impl Reference {
    /// Nothing answered yet.
    pub fn of(cell: CellId, package_hash: String) -> Self {
        Self { version: VERSION, cell, package_hash, tasks: BTreeMap::new(), text: None }
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let failed = || format!("cannot write `{}`", path.display());
        let bytes = serde_json::to_vec(self).with_context(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).with_context(failed)?;
        let saved = file.persist(&path).with_context(failed)?;
        // A temporary file is its owner's alone; results are for whoever reads the others.
        saved.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).with_context(failed)
    }

    /// Reads the file; `None` where the reference was not run to its end.
    ///
    /// # Errors
    /// A file of another version, or damaged.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::new(format!("cannot read `{}`", path.display())).because(error)),
        };
        let reference: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("`{}` does not hold a reference's answers", path.display()))?;
        if reference.version != VERSION {
            return Err(
                Error::new(format!("`{}` is of version {}", path.display(), reference.version)).hint("start a new run")
            );
        }
        Ok(Some(reference))
    }
}
