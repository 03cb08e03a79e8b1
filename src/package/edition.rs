//! An edited copy of a package: another decoder graph, other constants, and a manifest that says so.
//!
//! Files that stay as they are become hard links (copies where the file system has none), so that an edit of the graph
//! alone costs no room for weights.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;

use super::onnx::{self, GraphProto, NodeProto, OperatorSetIdProto, Place, Source, TensorProto, ValueInfoProto};
use super::{FileEntry, Graph, Manifest, Package};
use crate::error::{Context, Error, Result};

mod files;

pub(crate) use files::{Data, Unfinished, link, write_file};

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
/// A file of constants is kept whole while at most this share of it is no longer used.
const SLACK: f64 = 0.02;

/// Where ranges of bytes were copied to, by file, the constant's place in it, and the ranges within the constant.
type Places = BTreeMap<(usize, u64, Vec<(u64, u64)>), u64>;

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
    /// Other graphs over the same constants, by file: what makes them of the edited one.
    pub companions: Vec<(String, Companion)>,
}

/// Makes a graph of another.
pub type Companion = fn(GraphProto) -> GraphProto;

/// A constant that is new, or has new values.
#[derive(Debug)]
struct Constant {
    data_type: i32,
    dims: Vec<i64>,
    content: Content,
}

/// Where the bytes of a constant come from.
#[derive(Debug)]
enum Content {
    /// From the edit.
    Made(Vec<u8>),
    /// From ranges of one of the package's constants, one after the other.
    Taken { from: String, ranges: Vec<Range<u64>> },
}

impl Content {
    fn bytes(&self) -> u64 {
        match self {
            Self::Made(bytes) => bytes.len() as u64,
            Self::Taken { ranges, .. } => ranges.iter().map(|range| range.end - range.start).sum(),
        }
    }
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
        let (new, files, companions) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Ok(Self { package, decoder, source, new, graph, manifest: package.manifest.clone(), files, companions })
    }

    /// The package that is edited.
    pub fn package(&self) -> &Package {
        self.package
    }

    /// The package as it was: its constants, by name.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Gives a constant (new, or of the package) that type, those dimensions and bytes.
    pub fn set(&mut self, name: &str, data_type: i32, dims: &[u64], bytes: Vec<u8>) {
        let dims = dims.iter().map(|&size| size as i64).collect();
        self.new.insert(name.to_owned(), Constant { data_type, dims, content: Content::Made(bytes) });
    }

    /// Gives a constant those dimensions and, one after the other, these ranges of bytes of the package's constant
    /// `from`, which are copied when the edition is written.
    ///
    /// # Errors
    /// A name that the package has no constant of.
    pub fn take(&mut self, name: &str, from: &str, dims: &[u64], ranges: Vec<Range<u64>>) -> Result<()> {
        let stored = self.source.tensor(from);
        let data_type = stored.ok_or_else(|| Error::new(format!("the package has no constant `{from}`")))?.data_type;
        let dims = dims.iter().map(|&size| size as i64).collect();
        let content = Content::Taken { from: from.to_owned(), ranges };
        self.new.insert(name.to_owned(), Constant { data_type, dims, content });
        Ok(())
    }

    /// Calls a constant by another name, which nodes must then use.
    ///
    /// # Errors
    /// As [`Edition::take`].
    pub fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        if let Some(constant) = self.new.remove(from) {
            self.new.insert(to.to_owned(), constant);
            return Ok(());
        }
        let stored = self.source.tensor(from);
        let stored = stored.ok_or_else(|| Error::new(format!("the package has no constant `{from}`")))?;
        let (dims, bytes) = (stored.dims.clone(), stored.bytes);
        self.take(to, from, &dims, std::iter::once(0..bytes).collect())
    }

    /// Names, types and dimensions of the constants that the graph reads as it is now.
    pub fn constants_read(&self) -> Vec<(String, i32, Vec<u64>)> {
        let described = |name: String| {
            let (data_type, dims) = match (self.new.get(&name), self.source.tensor(&name)) {
                (Some(new), _) => (new.data_type, new.dims.iter().map(|&size| size as u64).collect()),
                (None, Some(stored)) => (stored.data_type, stored.dims.clone()),
                (None, None) => return None,
            };
            Some((name, data_type, dims))
        };
        self.constants().into_iter().filter_map(described).collect()
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
    pub fn decoder(&self) -> Result<&Graph> {
        let found = self.manifest.graphs.iter().find(|graph| graph.file == self.decoder.file);
        found.ok_or_else(|| Error::new("the edited manifest has no decoder graph; this is a bug"))
    }

    /// The same, to change.
    ///
    /// # Errors
    /// As [`Edition::decoder`].
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
        self.write_into(unfinished.path())?;
        fs::rename(unfinished.path(), folder)
            .with_context(|| format!("cannot give `{}` its name", folder.display()))?;
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        Package::open(folder)
    }

    /// Leaves out nodes of which nothing is read, and notes of shapes that edits may have changed; an edition that is
    /// written does so too.
    ///
    /// # Errors
    /// A graph that reads what nothing makes.
    pub fn remove_dead(&mut self) -> Result<()> {
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

    /// Names of the constants that are read, in the order of their use.
    fn constants(&self) -> Vec<String> {
        let mut seen: HashSet<&str> = HashSet::new();
        let outputs = self.graph.output.iter().map(ValueInfoProto::name);
        let read = self.graph.node.iter().flat_map(NodeProto::reads).chain(outputs);
        let constant = |name: &&str| self.new.contains_key(*name) || self.source.tensor(name).is_some();
        read.filter(|name| constant(name) && seen.insert(name)).map(str::to_owned).collect()
    }

    fn write_into(&mut self, folder: &Path) -> Result<()> {
        let names = self.constants();
        let mut written: Vec<FileEntry> = Vec::new();
        let keeps = self.keeps_data(&names);
        let data_file = if keeps { NEW_DATA } else { DATA };
        let mut data = Data::create(&folder.join(data_file))?;
        let mut external = Vec::new();
        let mut places: Places = BTreeMap::new();
        self.graph.initializer = Vec::with_capacity(names.len());
        for name in &names {
            let tensor = if let Some(constant) = self.new.get(name) {
                let tensor = TensorProto {
                    name: Some(name.clone()),
                    data_type: Some(constant.data_type),
                    dims: constant.dims.clone(),
                    ..TensorProto::default()
                };
                let length = constant.content.bytes();
                if tensor.bytes() != length {
                    return Err(Error::new(format!("the edited constant `{name}` has a wrong length; this is a bug")));
                }
                let inside = length <= INSIDE as u64;
                match &constant.content {
                    Content::Made(bytes) if inside => TensorProto { raw_data: Some(bytes.clone()), ..tensor },
                    Content::Made(bytes) => tensor.at(data_file, data.add(bytes)?, length),
                    Content::Taken { from, ranges } if inside => {
                        let pieces = ranges.iter().map(|range| self.source.read(from, range.clone()));
                        TensorProto { raw_data: Some(pieces.collect::<Result<Vec<_>>>()?.concat()), ..tensor }
                    }
                    Content::Taken { from, ranges } => {
                        let offset = self.copy(&mut data, &mut places, from, ranges)?;
                        tensor.at(data_file, offset, length)
                    }
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
                    Place::Outside(..) => {
                        let whole = 0..stored.bytes;
                        let offset = self.copy(&mut data, &mut places, name, std::slice::from_ref(&whole))?;
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
        let model = |graph| onnx::ModelProto { graph: Some(graph), ..self.source.model.clone() };
        written.push(write_file(folder, MODEL, &onnx::write(&model(self.graph.clone())))?);
        for (name, make) in &self.companions {
            written.push(write_file(folder, name, &onnx::write(&model(make(self.graph.clone()))))?);
        }
        for (name, bytes) in &self.files {
            written.push(write_file(folder, name, bytes)?);
        }
        for (name, _) in copied(self.package, &self.decoder) {
            if !self.files.contains_key(&name) {
                written.push(link(self.package, folder, &name)?);
            }
        }
        for name in &external {
            if !written.iter().any(|entry| entry.path == *name) {
                written.push(link(self.package, folder, name)?);
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

    /// Copies ranges of a constant behind what was written; returns where they begin.
    fn copy(&self, data: &mut Data, places: &mut Places, from: &str, ranges: &[Range<u64>]) -> Result<u64> {
        let read = |range| self.source.read(from, range);
        let place = self.source.tensor(from).map(|stored| stored.place);
        let Some(Place::Outside(file, at)) = place else { return data.copy(ranges, read) };
        // Tied weights are two names for the same bytes.
        let key = (file, at, ranges.iter().map(|range| (range.start, range.end)).collect());
        if let Some(&offset) = places.get(&key) {
            return Ok(offset);
        }
        let offset = data.copy(ranges, read)?;
        places.insert(key, offset);
        Ok(offset)
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
