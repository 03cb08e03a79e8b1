//! A graph as patterns look at it: who makes a tensor, who alone reads it, what a constant is.

use std::collections::{HashMap, HashSet};

use crate::loader::pack::Types;
use crate::package::onnx::{NodeProto, Source, data_type};

/// ONNX Runtime's own operators.
pub const CONTRIB: &str = "com.microsoft";

/// A graph with its edges.
#[derive(Debug)]
pub struct View<'a> {
    source: &'a Source,
    nodes: &'a [NodeProto],
    types: Types,
    makers: HashMap<&'a str, usize>,
    readers: HashMap<&'a str, Vec<usize>>,
    outputs: HashSet<&'a str>,
}

impl<'a> View<'a> {
    /// Looks at these nodes, whose constants are the source's.
    pub fn new(source: &'a Source) -> Self {
        let graph = &source.graph;
        let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut makers = HashMap::new();
        for (place, node) in graph.node.iter().enumerate() {
            for name in node.reads() {
                readers.entry(name).or_default().push(place);
            }
            makers.extend(node.makes().map(|name| (name, place)));
        }
        let outputs = graph.output.iter().map(|output| output.name()).collect();
        Self { source, nodes: &graph.node, types: Types::of(graph), makers, readers, outputs }
    }

    /// The nodes, in order of execution.
    pub fn nodes(&self) -> &'a [NodeProto] {
        self.nodes
    }

    /// A node.
    pub fn node(&self, place: usize) -> &'a NodeProto {
        &self.nodes[place]
    }

    /// The node that makes a tensor.
    pub fn maker(&self, name: &str) -> Option<usize> {
        self.makers.get(name).copied()
    }

    /// The one node that reads a tensor, once, where nothing else needs it.
    pub fn only_reader(&self, name: &str) -> Option<usize> {
        match self.readers.get(name)?.as_slice() {
            [one] if !self.outputs.contains(name) => Some(*one),
            _ => None,
        }
    }

    /// Whether nothing but that node needs a tensor, however often that reads it.
    pub fn only_for(&self, name: &str, reader: usize) -> bool {
        !self.outputs.contains(name) && self.readers.get(name).is_some_and(|all| all.iter().all(|one| *one == reader))
    }

    /// Whether a tensor holds floats of 32 bits.
    pub fn is_float(&self, name: &str) -> bool {
        self.types.value(name).and_then(|value| value.elem_type()) == Some(data_type::FLOAT)
    }

    /// Whether two tensors are known to have the same shape.
    pub fn same_shape(&self, one: &str, other: &str) -> bool {
        let known = |name| {
            let shape = self.types.value(name)?.shape()?.dim.clone();
            shape.iter().all(|dim| dim.dim_value.is_some() || !dim.dim_param().is_empty()).then_some(shape)
        };
        known(one).is_some_and(|shape| known(other) == Some(shape))
    }

    /// The elements of a constant of integers.
    pub fn integers(&self, name: &str) -> Option<Vec<i64>> {
        let stored = self.source.tensor(name)?;
        if stored.data_type != data_type::INT64 || stored.bytes > 1024 {
            return None;
        }
        let bytes = self.source.read_all(name).ok()?;
        Some(bytes.as_chunks::<8>().0.iter().map(|value| i64::from_le_bytes(*value)).collect())
    }

    /// The length of a constant of floats of one dimension.
    pub fn floats(&self, name: &str) -> Option<i64> {
        let stored = self.source.tensor(name)?;
        match stored.dims.as_slice() {
            [size] if stored.data_type == data_type::FLOAT => i64::try_from(*size).ok(),
            _ => None,
        }
    }
}
