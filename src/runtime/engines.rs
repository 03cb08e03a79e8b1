//! TensorRT's engines and timings, kept between runs: where, under which key, and whether they were there already.
//! Looks at files only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::digest;
use crate::error::{Context, Kind, Result};

/// What engines depend on beside what TensorRT writes into their names.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// Hash of the package.
    pub package: &'a str,
    /// The build of ONNX Runtime, as it describes itself.
    pub runtime: &'a str,
    /// The GPU's model.
    pub gpu: &'a str,
    /// The provider's options: precisions and the shapes for which engines are built among them.
    pub options: &'a BTreeMap<String, String>,
}

impl Key<'_> {
    /// Sixteen digits of a hash over all of it.
    fn digits(&self) -> String {
        let mut text = [self.package, self.runtime, self.gpu].join("\n");
        for (key, value) in self.options {
            text += &format!("\n{key}={value}");
        }
        digest::sha256(text)[..16].to_owned()
    }
}

/// The folder of one key's engines.
#[derive(Debug)]
pub struct EngineCache {
    folder: PathBuf,
    before: BTreeSet<String>,
}

/// Where engines came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// At least one was built.
    Built,
    /// All of them lay in the cache.
    Reused,
    /// TensorRT took no part of the graph.
    None,
}

impl Origin {
    /// The word in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Reused => "reused",
            Self::None => "none",
        }
    }
}

impl EngineCache {
    /// Opens, or makes, the folder of a key below the cache folder.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn open(cache: &Path, key: &Key) -> Result<Self> {
        let folder = cache.join("tensorrt-engines").join(key.digits());
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder `{}` for TensorRT's engines", folder.display()))
            .map_err(|error| {
                error.kind(Kind::Environment).hint("set ORTBENCH_CACHE to a folder that this user may write")
            })?;
        let before = engines(&folder);
        Ok(Self { folder, before })
    }

    /// The provider's options that keep engines and timings there.
    pub fn options(&self) -> BTreeMap<String, String> {
        let path = self.folder.display().to_string();
        [
            ("trt_engine_cache_enable", "1".to_owned()),
            ("trt_engine_cache_path", path.clone()),
            ("trt_timing_cache_enable", "1".to_owned()),
            ("trt_timing_cache_path", path),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Where the engines came from, of sessions that were created since the folder was opened.
    pub fn origin(&self) -> Origin {
        let now = engines(&self.folder);
        if now.is_empty() {
            return Origin::None;
        }
        if now.is_subset(&self.before) { Origin::Reused } else { Origin::Built }
    }
}

/// Names of engines with the time of their last writing: one that did not fit is built anew under its name.
fn engines(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "engine"))
        .map(|entry| {
            let written = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            format!("{} {written:?}", entry.file_name().display())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_changes_the_folder() {
        let (none, fp16) = (BTreeMap::new(), BTreeMap::from([("trt_fp16_enable".to_owned(), "1".to_owned())]));
        let key = Key { package: "p", runtime: "r", gpu: "g", options: &none };
        let others = [
            Key { package: "q", ..key },
            Key { runtime: "s", ..key },
            Key { gpu: "h", ..key },
            Key { options: &fp16, ..key },
        ];
        assert_eq!(key.digits(), Key { package: "p", ..key }.digits());
        assert!(others.iter().all(|other| other.digits() != key.digits()));
        assert_eq!(key.digits().len(), 16);
    }

    #[test]
    fn built_and_reused_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let options = BTreeMap::new();
        let key = Key { package: "p", runtime: "r", gpu: "g", options: &options };
        let first = EngineCache::open(root.path(), &key).unwrap();
        assert_eq!(first.origin(), Origin::None);
        let folder = PathBuf::from(&first.options()["trt_engine_cache_path"]);
        assert!(folder.starts_with(root.path()));
        fs::write(folder.join("TensorrtExecutionProvider_cache_sm90.timing"), "").unwrap();
        assert_eq!(first.origin(), Origin::None);
        let engine = folder.join("TensorrtExecutionProvider_TRTKernel_graph_1_0_0_sm90.engine");
        fs::write(&engine, "").unwrap();
        assert_eq!(first.origin(), Origin::Built);
        let second = EngineCache::open(root.path(), &key).unwrap();
        assert_eq!(second.origin(), Origin::Reused);
        // Written anew under its name.
        let file = fs::File::options().write(true).open(&engine).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(second.origin(), Origin::Built);
    }

    #[test]
    fn a_folder_that_cannot_be_made_names_the_variable() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let options = BTreeMap::new();
        let key = Key { package: "p", runtime: "r", gpu: "g", options: &options };
        let error = EngineCache::open(&file, &key).unwrap_err();
        assert!(error.find_hint().unwrap().contains("ORTBENCH_CACHE"));
    }
}
