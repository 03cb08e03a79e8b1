//! A package that is packed or edited: its decoder graph, and where each constant's bytes lie. Weights are read by ranges.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use crate::error::{Context, Error, Result};
use crate::package::onnx::{self, GraphProto, ModelProto, TensorProto};
use crate::package::{Graph, Package};

/// A model that is open for reading.
#[derive(Debug)]
pub struct Source {
    /// The model; its graph is in [`Source::graph`].
    pub model: ModelProto,
    /// Its graph.
    pub graph: GraphProto,
    tensors: HashMap<String, Stored>,
    files: Vec<(String, File)>,
}

/// Where a constant's bytes are.
#[derive(Debug, Clone)]
pub struct Stored {
    /// ONNX's number of the element type.
    pub data_type: i32,
    /// Its dimensions.
    pub dims: Vec<u64>,
    /// Its length.
    pub bytes: u64,
    /// Where it is.
    pub place: Place,
    /// Its place among the graph's initializers.
    pub index: usize,
}

/// Where bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the model's own file.
    Inside,
    /// In a file beside it, from that byte on.
    Outside(usize, u64),
}

impl Source {
    /// Opens a package's decoder graph.
    ///
    /// # Errors
    /// A graph that cannot be read or lose nothing when it is written, external data that is missing, short or outside
    /// of the package.
    pub fn open(package: &Package, decoder: &Graph) -> Result<Self> {
        let path = package.root.join(&decoder.file);
        let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let mut model = onnx::read_whole(&bytes).with_context(|| format!("cannot use `{}`", path.display()))?;
        let graph = model.graph.take().ok_or_else(|| Error::new(format!("`{}` has no graph", path.display())))?;
        let mut source = Self { model, graph, tensors: HashMap::new(), files: Vec::new() };
        source.forget_overrides();
        for index in 0..source.graph.initializer.len() {
            let stored = source.locate(&package.root, index).with_context(|| {
                format!("cannot find the bytes of `{}` in `{}`", source.graph.initializer[index].name(), decoder.file)
            })?;
            source.tensors.insert(source.graph.initializer[index].name().to_owned(), stored);
        }
        Ok(source)
    }

    /// Constants that are listed as inputs too, as old models have them, are constants only.
    fn forget_overrides(&mut self) {
        let constants: HashSet<&str> = self.graph.initializer.iter().map(TensorProto::name).collect();
        let before = self.graph.input.len();
        self.graph.input.retain(|input| !constants.contains(input.name()));
        if self.graph.input.len() < before {
            // The first version that allows constants that are no inputs.
            self.model.ir_version = self.model.ir_version.max(Some(4));
        }
    }

    fn locate(&mut self, root: &Path, index: usize) -> Result<Stored> {
        let tensor = &self.graph.initializer[index];
        let mut stored = Stored {
            data_type: tensor.data_type(),
            dims: tensor.dims.iter().map(|&size| size.max(0) as u64).collect(),
            bytes: tensor.bytes(),
            place: Place::Inside,
            index,
        };
        let Some(location) = tensor.location().map(str::to_owned) else { return Ok(stored) };
        let number = |key: &str| {
            let entry = tensor.external(key);
            entry.map(|text| text.parse::<u64>().with_context(|| format!("its `{key}` is no number"))).transpose()
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?.unwrap_or(stored.bytes));
        if length != stored.bytes {
            let message = format!("it has {length} bytes where its shape asks for {}", stored.bytes);
            return Err(Error::new(message).hint("the package is damaged; export it again"));
        }
        let file = self.file(root, &location)?;
        let size = self.files[file].1.metadata().context("cannot read its size")?.len();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let message = format!("bytes {offset}..+{length} of `{location}` are asked for, which has {size}");
            return Err(Error::new(message).hint("the package is incomplete; export it again"));
        }
        stored.place = Place::Outside(file, offset);
        Ok(stored)
    }

    fn file(&mut self, root: &Path, location: &str) -> Result<usize> {
        if let Some(known) = self.files.iter().position(|(name, _)| name == location) {
            return Ok(known);
        }
        if !Path::new(location).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::new(format!("the external data `{location}` leads out of the package")));
        }
        let file = File::open(root.join(location)).with_context(|| format!("cannot open `{location}`"))?;
        self.files.push((location.to_owned(), file));
        Ok(self.files.len() - 1)
    }

    /// A constant, by name.
    pub fn tensor(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// A constant as the graph has it.
    pub fn initializer(&self, stored: &Stored) -> &TensorProto {
        &self.graph.initializer[stored.index]
    }

    /// A part of a constant's bytes.
    ///
    /// # Errors
    /// An unknown name, a range beyond its end, a read that fails.
    pub fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let failed = || format!("cannot read the weights `{name}`");
        let stored = self.tensor(name).ok_or_else(|| Error::new(failed()))?;
        if range.start > range.end || range.end > stored.bytes {
            return Err(Error::new(failed()).because(format!("{range:?} lies beyond its {} bytes", stored.bytes)));
        }
        let Place::Outside(file, offset) = stored.place else {
            let raw = self.initializer(stored).raw().with_context(failed)?;
            return Ok(raw[range.start as usize..range.end as usize].to_vec());
        };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.files[file].1.read_exact_at(&mut bytes, offset + range.start).with_context(failed)?;
        Ok(bytes)
    }

    /// All of a constant's bytes.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read_all(&self, name: &str) -> Result<Vec<u8>> {
        let bytes = self.tensor(name).map_or(0, |stored| stored.bytes);
        self.read(name, 0..bytes)
    }
}
