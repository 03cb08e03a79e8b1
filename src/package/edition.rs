//! An edited copy of a package: another decoder graph, other constants, and a manifest that says so.
//!
//! Files that stay as they are become hard links (copies where the file system has none), so that an edit of the graph
//! alone costs no room for weights.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::onnx::{self, GraphProto, NodeProto, OperatorSetIdProto, Place, Source, TensorProto, ValueInfoProto};
use super::{FileEntry, Graph, Manifest, Package};
use crate::digest;
use crate::error::{Context, Error, Result};

/// The edited graph.
const MODEL: &str = "model.onnx";
/// All constants outside of the graph, where any of the package's left.
const DATA: &str = "model.onnx.data";
/// New constants, where the package's file of constants stays as it is.
const NEW_DATA: &str = "model.edited.data";
/// The manifest, written last.
const MANIFEST: &str = "manifest.json";

/// Constants of at most so many bytes lie in the graph, where ONNX Runtime looks at them while it optimizes.
const INSIDE: usize = 4 << 10;
/// Constants outside begin at multiples of this, so that large ones can be mapped.
const ALIGNMENT: u64 = 4096;
/// Bytes that are copied at a time.
const PIECE: usize = 8 << 20;
/// A file of constants is kept whole while at most this share of it is no longer used.
const SLACK: f64 = 0.02;

/// A package that is being edited. Nothing is written before [`Edition::write`].
#[derive(Debug)]
pub struct Edition<'a> {
    package: &'a Package,
    decoder: Graph,
    source: Source,
    new: BTreeMap<String, Constant>,
    /// The graph: nodes, inputs and outputs to be edited. Constants that no node reads any more are left out when the
    /// edition is written, and so are nodes of which nothing is read.
    pub graph: GraphProto,
    /// The manifest: whatever an edit changes of shapes, ports and counts must be changed here too. Files and hashes are
    /// filled in when the edition is written.
    pub manifest: Manifest,
    /// Other files, by name: new ones, and those that replace the package's.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A constant that is new, or has new values.
#[derive(Debug)]
struct Constant {
    data_type: i32,
    dims: Vec<i64>,
    bytes: Vec<u8>,
}

impl<'a> Edition<'a> {
    /// Opens a package to edit.
    ///
    /// # Errors
    /// A pack, whose graph has no weights to edit; a graph that cannot be read whole.
    pub fn of(package: &'a Package) -> Result<Self> {
        if package.manifest.pack.is_some() {
            return Err(Error::unsupported(format!(
                "`{}` is a pack, whose graph has no weights",
                package.root.display()
            ))
            .hint("edit the package that it was made of, and pack the result"));
        }
        let decoder = package.decoder()?.clone();
        let source = Source::open(package, &decoder)?;
        // Constants are looked up in the source.
        let graph = GraphProto { initializer: Vec::new(), ..source.graph.clone() };
        let (new, files) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { package, decoder, source, new, graph, manifest: package.manifest.clone(), files })
    }

    /// The package as it was: its constants, by name.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Gives a constant (new, or of the package) that type, those dimensions and bytes.
    pub fn set(&mut self, name: &str, data_type: i32, dims: &[u64], bytes: Vec<u8>) {
        let dims = dims.iter().map(|&size| size as i64).collect();
        self.new.insert(name.to_owned(), Constant { data_type, dims, bytes });
    }

    /// Names a domain of operators among those that the model uses.
    pub fn import(&mut self, domain: &str, version: i64) {
        let sets = &mut self.source.model.opset_import;
        if !sets.iter().any(|set| set.domain() == domain) {
            sets.push(OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) });
        }
    }

    /// The decoder's entry in the manifest.
    ///
    /// # Errors
    /// A manifest that an edit left without one.
    pub fn decoder_mut(&mut self) -> Result<&mut Graph> {
        let file = &self.decoder.file;
        let found = self.manifest.graphs.iter_mut().find(|graph| graph.file == *file);
        found.ok_or_else(|| Error::new("the edited manifest has no decoder graph; this is a bug"))
    }

    /// Writes the edited package to a folder that does not exist yet; it appears there when it is whole.
    ///
    /// # Errors
    /// A folder that exists, a disk that is full, a graph that reads what nothing makes. Nothing is left behind then.
    pub fn write(mut self, folder: &Path) -> Result<Package> {
        if folder.exists() {
            return Err(Error::new(format!("`{}` exists already", folder.display()))
                .hint("choose a folder that does not exist"));
        }
        self.remove_dead()?;
        let unfinished = Unfinished::beside(folder)?;
        self.write_into(&unfinished.0)?;
        fs::rename(&unfinished.0, folder).with_context(|| format!("cannot give `{}` its name", folder.display()))?;
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        Package::open(folder)
    }

    /// Leaves out nodes of which nothing is read, and notes of shapes that edits may have changed.
    fn remove_dead(&mut self) -> Result<()> {
        let mut wanted: HashSet<String> = self.graph.output.iter().map(|output| output.name().to_owned()).collect();
        let mut live = vec![false; self.graph.node.len()];
        for (place, node) in self.graph.node.iter().enumerate().rev() {
            if node.makes().any(|name| wanted.contains(name)) {
                live[place] = true;
                wanted.extend(node.reads().into_iter().map(str::to_owned));
            }
        }
        let mut place = 0;
        self.graph.node.retain(|_| {
            place += 1;
            live[place - 1]
        });
        let made: HashSet<&str> = self.graph.node.iter().flat_map(NodeProto::makes).collect();
        let given: HashSet<&str> = self.graph.input.iter().map(ValueInfoProto::name).collect();
        let mut unknown: Vec<&String> = wanted
            .iter()
            .filter(|name| {
                let constant = self.new.contains_key(*name) || self.source.tensor(name).is_some();
                !(constant || made.contains(name.as_str()) || given.contains(name.as_str()))
            })
            .collect();
        unknown.sort();
        if let Some(name) = unknown.first() {
            return Err(Error::new(format!("the edited graph reads `{name}`, which nothing makes; this is a bug")));
        }
        self.graph.value_info.retain(|value| made.contains(value.name()));
        self.graph.input.retain(|input| wanted.contains(input.name()));
        let graph_file = self.decoder.file.clone();
        for graph in self.manifest.graphs.iter_mut().filter(|graph| graph.file == graph_file) {
            graph.inputs.retain(|port| wanted.contains(&port.name));
        }
        Ok(())
    }

    /// Names of the constants that are read, in the package's order, new ones last.
    fn constants(&self) -> Vec<String> {
        let mut read: HashSet<&str> = self.graph.node.iter().flat_map(|node| node.reads()).collect();
        read.extend(self.graph.output.iter().map(ValueInfoProto::name));
        let old = self.source.graph.initializer.iter().map(TensorProto::name).filter(|name| read.contains(name));
        let mut names: Vec<String> = old.map(str::to_owned).collect();
        let known: HashSet<String> = names.iter().cloned().collect();
        names.extend(self.new.keys().filter(|name| read.contains(name.as_str()) && !known.contains(*name)).cloned());
        names
    }

    fn write_into(&mut self, folder: &Path) -> Result<()> {
        let names = self.constants();
        let mut written: Vec<FileEntry> = Vec::new();
        let keeps = self.keeps_data(&names);
        let data_file = if keeps { NEW_DATA } else { DATA };
        let mut data = Data::create(&folder.join(data_file))?;
        let mut external = Vec::new();
        let mut places: BTreeMap<(usize, u64, u64), u64> = BTreeMap::new();
        self.graph.initializer = Vec::with_capacity(names.len());
        for name in &names {
            let tensor = if let Some(constant) = self.new.get(name) {
                let tensor = TensorProto {
                    name: Some(name.clone()),
                    data_type: Some(constant.data_type),
                    dims: constant.dims.clone(),
                    ..TensorProto::default()
                };
                if tensor.bytes() != constant.bytes.len() as u64 {
                    return Err(Error::new(format!("the edited constant `{name}` has a wrong length; this is a bug")));
                }
                if constant.bytes.len() <= INSIDE {
                    TensorProto { raw_data: Some(constant.bytes.clone()), ..tensor }
                } else {
                    let offset = data.add(&constant.bytes)?;
                    tensor.at(data_file, offset, constant.bytes.len() as u64)
                }
            } else {
                let stored = self.source.tensor(name).ok_or_else(|| Error::new(format!("`{name}` is no constant")))?;
                let tensor = self.source.initializer(stored);
                match stored.place {
                    Place::Inside => tensor.clone(),
                    Place::Outside(..) if keeps => {
                        let file = tensor.location().unwrap_or_default().to_owned();
                        if !external.contains(&file) {
                            external.push(file);
                        }
                        tensor.clone()
                    }
                    // Tied weights are two names for the same bytes.
                    Place::Outside(file, at) => {
                        let key = (file, at, stored.bytes);
                        let offset = match places.get(&key) {
                            Some(&offset) => offset,
                            None => data.copy(stored.bytes, |range| self.source.read(name, range))?,
                        };
                        places.insert(key, offset);
                        tensor.at(data_file, offset, stored.bytes)
                    }
                }
            };
            self.graph.initializer.push(tensor);
        }
        if let Some(entry) = data.finish(data_file)? {
            external.push(data_file.to_owned());
            written.push(entry);
        }
        let model = onnx::ModelProto { graph: Some(self.graph.clone()), ..self.source.model.clone() };
        written.push(write_file(folder, MODEL, &onnx::write(&model))?);
        for (name, bytes) in &self.files {
            written.push(write_file(folder, name, bytes)?);
        }
        for (name, bytes) in copied(self.package, &self.decoder) {
            if !self.files.contains_key(&name) {
                written.push(self.link(folder, &name, bytes)?);
            }
        }
        for name in &external {
            if !written.iter().any(|entry| entry.path == *name) {
                let size = fs::metadata(self.package.root.join(name)).map_or(0, |file| file.len());
                written.push(self.link(folder, name, size)?);
            }
        }
        let decoder = self.decoder_mut()?;
        (decoder.file, decoder.external_data) = (MODEL.to_owned(), external);
        self.manifest.files = written;
        let mut text = serde_json::to_vec_pretty(&self.manifest).context("cannot express the manifest")?;
        text.push(b'\n');
        Manifest::parse(&text).context("the edited manifest contradicts itself; this is a bug")?;
        write_file(folder, MANIFEST, &text)?;
        Ok(())
    }

    /// Whether the package's files of constants stay: nearly all of their bytes are still read.
    fn keeps_data(&self, names: &[String]) -> bool {
        let mut used: HashSet<(usize, u64, u64)> = HashSet::new();
        for name in names.iter().filter(|name| !self.new.contains_key(*name)) {
            if let Some(stored) = self.source.tensor(name)
                && let Place::Outside(file, at) = stored.place
            {
                used.insert((file, at, stored.bytes));
            }
        }
        let used: u64 = used.iter().map(|(_, _, bytes)| bytes).sum();
        let mut all: HashSet<(usize, u64, u64)> = HashSet::new();
        for tensor in &self.source.graph.initializer {
            if let Some(stored) = self.source.tensor(tensor.name())
                && let Place::Outside(file, at) = stored.place
            {
                all.insert((file, at, stored.bytes));
            }
        }
        let all: u64 = all.iter().map(|(_, _, bytes)| bytes).sum();
        all - used <= (all as f64 * SLACK) as u64
    }

    /// Brings a file of the package into the folder.
    fn link(&self, folder: &Path, name: &str, bytes: u64) -> Result<FileEntry> {
        let (from, to) = (self.package.root.join(name), folder.join(name));
        let failed = || format!("cannot copy `{}`", from.display());
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        let linked = fs::hard_link(&from, &to);
        if linked.is_err() {
            fs::copy(&from, &to).with_context(failed).map_err(|error| error.kind(crate::error::Kind::Environment))?;
        }
        let known = self.package.manifest.files.iter().find(|entry| entry.path == name);
        let sha256 = match known {
            Some(entry) => entry.sha256.clone(),
            None => digest::sha256_file(&to).with_context(failed)?,
        };
        Ok(FileEntry { path: name.to_owned(), bytes, sha256 })
    }
}

/// Files of a package that one with another decoder has too, with their sizes: tokenizer, template, other graphs.
pub fn copied(package: &Package, decoder: &Graph) -> Vec<(String, u64)> {
    let manifest = &package.manifest;
    let others: Vec<&String> = manifest
        .graphs
        .iter()
        .filter(|graph| graph.file != decoder.file)
        .flat_map(|graph| std::iter::once(&graph.file).chain(&graph.external_data))
        .collect();
    let of_decoder = |path: &String| *path == decoder.file || decoder.external_data.contains(path);
    // Graphs that the manifest does not name are for other programs, and take the decoder's weights.
    let foreign = |path: &String| path.ends_with(".onnx") || path == "genai_config.json";
    let wanted = |path: &String| others.contains(&path) || !(of_decoder(path) || foreign(path));
    let mut files: Vec<(String, u64)> =
        manifest.files.iter().filter(|file| wanted(&file.path)).map(|file| (file.path.clone(), file.bytes)).collect();
    // Folders of onnxruntime-genai have it and no list of files.
    let special = "tokenizer_config.json";
    if !files.iter().any(|(path, _)| path == special)
        && let Ok(found) = package.root.join(special).metadata()
    {
        files.push((special.to_owned(), found.len()));
    }
    files
}

/// A folder that is removed unless it got another name.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(folder: &Path) -> Result<Self> {
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = || format!("cannot write into `{}`", parent.display());
        fs::create_dir_all(parent).with_context(failed)?;
        let made = tempfile::Builder::new().prefix(".part-").tempdir_in(parent).with_context(failed)?;
        Ok(Self(made.keep()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The file of constants that is being written.
struct Data {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Data {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Self { path: path.to_owned(), file, hasher: Sha256::new(), bytes: 0 })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        let path = &self.path;
        self.file.write_all(bytes).map_err(|error| {
            Error::environment(format!("cannot write `{}`", path.display())).because(error).hint("free some room")
        })
    }

    /// Room for a constant; returns where it begins.
    fn begin(&mut self) -> Result<u64> {
        let missing = self.bytes.next_multiple_of(ALIGNMENT) - self.bytes;
        self.put(&vec![0; missing as usize])?;
        Ok(self.bytes)
    }

    fn add(&mut self, bytes: &[u8]) -> Result<u64> {
        let offset = self.begin()?;
        self.put(bytes)?;
        Ok(offset)
    }

    fn copy(&mut self, length: u64, read: impl Fn(std::ops::Range<u64>) -> Result<Vec<u8>>) -> Result<u64> {
        let offset = self.begin()?;
        for start in (0..length).step_by(PIECE) {
            self.put(&read(start..length.min(start + PIECE as u64))?)?;
        }
        Ok(offset)
    }

    /// The finished file, unless nothing came into it.
    fn finish(self, name: &str) -> Result<Option<FileEntry>> {
        if self.bytes == 0 {
            let _ = fs::remove_file(&self.path);
            return Ok(None);
        }
        self.file.sync_all().with_context(|| format!("cannot write `{}`", self.path.display()))?;
        let sha256 = digest::hex(&self.hasher.finalize());
        Ok(Some(FileEntry { path: name.to_owned(), bytes: self.bytes, sha256 }))
    }
}

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<FileEntry> {
    let path = folder.join(name);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| {
        Error::environment(format!("cannot write `{}`", path.display())).because(error).hint("free some room")
    })?;
    Ok(FileEntry { path: name.to_owned(), bytes: bytes.len() as u64, sha256: digest::sha256(bytes) })
}
