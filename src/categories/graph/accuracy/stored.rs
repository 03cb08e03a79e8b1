//! The outputs that a reference cell leaves in its folder for the cells that are compared with it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cell::{CellId, ElementType};
use crate::error::{Context, Error, Result};
use crate::runtime::{Output, OutputElements};

/// Written last: its presence says that the folder is whole.
const FILE: &str = "reference.json";

/// The elements of all outputs, one after the other.
const ELEMENTS: &str = "outputs.bin";

/// The format's version.
const VERSION: u32 = 1;

/// A reference's outputs.
#[derive(Debug)]
pub struct Stored {
    index: Index,
    elements: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    cell: CellId,
    inputs_hash: String,
    outputs: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    element: ElementType,
    shape: Vec<u64>,
    /// Where its elements are, of numbers.
    start: u64,
    bytes: u64,
    /// The elements, of texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    texts: Vec<String>,
}

impl Stored {
    /// Leaves the outputs, whole or not at all.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(folder: &Path, cell: &CellId, inputs_hash: &str, outputs: &[Output]) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        let (mut all, mut entries) = (Vec::new(), Vec::new());
        for output in outputs {
            let start = all.len() as u64;
            let texts = match &output.elements {
                OutputElements::Texts(texts) => texts.clone(),
                OutputElements::Bytes(bytes) => {
                    all.extend_from_slice(bytes);
                    Vec::new()
                }
            };
            let (name, shape, bytes) = (output.name.clone(), output.shape.clone(), all.len() as u64 - start);
            entries.push(Entry { name, element: output.element, shape, start, bytes, texts });
        }
        write(folder, ELEMENTS, &all)?;
        let index =
            Index { version: VERSION, cell: cell.clone(), inputs_hash: inputs_hash.to_owned(), outputs: entries };
        write(folder, FILE, &serde_json::to_vec(&index).context("cannot express outputs as JSON")?)
    }

    /// Finds them; `None` where the reference was not run to its end.
    ///
    /// # Errors
    /// A file of another version, or damaged.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::new(format!("cannot read `{}`", path.display())).because(error)),
        };
        let index: Index = serde_json::from_slice(&bytes)
            .with_context(|| format!("`{}` does not hold a reference's outputs", path.display()))?;
        if index.version != VERSION {
            let message = format!("`{}` is of version {}", path.display(), index.version);
            return Err(Error::new(message).hint("start a new run"));
        }
        Ok(Some(Self { index, elements: folder.join(ELEMENTS) }))
    }

    /// Hash of what the reference was fed.
    pub fn inputs_hash(&self) -> &str {
        &self.index.inputs_hash
    }

    /// An output, where the reference has one of that name.
    ///
    /// # Errors
    /// A file that was changed.
    pub fn output(&self, name: &str) -> Result<Option<Output>> {
        use std::os::unix::fs::FileExt;
        let Some(entry) = self.index.outputs.iter().find(|entry| entry.name == name) else { return Ok(None) };
        let elements = if entry.element == ElementType::String {
            OutputElements::Texts(entry.texts.clone())
        } else {
            let failed = || format!("cannot read `{}`", self.elements.display());
            let file = fs::File::open(&self.elements).with_context(failed)?;
            let end = entry.start.saturating_add(entry.bytes);
            if file.metadata().with_context(failed)?.len() < end {
                return Err(Error::new(failed()).because(std::io::Error::other("it is cut short")));
            }
            let mut bytes = vec![0; entry.bytes as usize];
            file.read_exact_at(&mut bytes, entry.start).with_context(failed)?;
            OutputElements::Bytes(bytes)
        };
        Ok(Some(Output { name: name.to_owned(), element: entry.element, shape: entry.shape.clone(), elements }))
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    let failed = || format!("cannot write `{}`", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).with_context(failed)?;
    let saved = file.persist(&path).with_context(failed)?;
    // A temporary file is its owner's alone; results are for whoever reads the others.
    saved.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Stored::read(folder.path()).unwrap().is_none());
        let output = |name: &str, element, shape: &[u64], elements| Output {
            name: name.to_owned(),
            element,
            shape: shape.to_vec(),
            elements,
        };
        let outputs = [
            output("a", ElementType::Bool, &[3], OutputElements::Bytes(vec![1, 0, 1])),
            output("t", ElementType::String, &[1, 1], OutputElements::Texts(vec!["ü".to_owned()])),
            output("b", ElementType::Int16, &[], OutputElements::Bytes(vec![7, 0])),
        ];
        Stored::write(folder.path(), &CellId("c".to_owned()), "h", &outputs).unwrap();
        let stored = Stored::read(folder.path()).unwrap().unwrap();
        assert_eq!(stored.inputs_hash(), "h");
        for output in &outputs {
            assert_eq!(stored.output(&output.name).unwrap().as_ref(), Some(output));
        }
        assert!(stored.output("z").unwrap().is_none());
        fs::write(folder.path().join(ELEMENTS), [1]).unwrap();
        assert!(stored.output("b").unwrap_err().chain().contains("cut short"));
        fs::write(folder.path().join(FILE), "{}").unwrap();
        assert!(Stored::read(folder.path()).is_err());
    }
}
