//! The residual stream: where the layers of a decoder begin and end.
//!
//! Found by the flow of data and not by names. What the embedding gives reaches the logits through a few nodes that no
//! path avoids; among them, those that add two values up are where a layer joins the stream. Attention, which a layer's
//! cache tells, lies between two of them.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::package::onnx::{GraphProto, NodeProto};
use crate::package::{Graph, PortRole};

/// Adds a value to the stream and normalises the sum; the sum is an output of its own.
pub const SKIP_NORMS: [&str; 2] = ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"];

/// Which output of theirs is the sum.
pub const SUM: usize = 3;

/// The layers of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// The embedded tokens, with which the stream begins.
    pub embedded: String,
    /// Of each layer, the place of the node that adds its last output to the stream: the next layer's first node, or the
    /// final norm's.
    pub ends: Vec<usize>,
}

impl Stream {
    /// Finds the layers of a graph whose interface the manifest describes.
    ///
    /// # Errors
    /// A graph of another build than one residual stream (`unsupported`).
    pub fn find(graph: &GraphProto, decoder: &Graph) -> Result<Self> {
        let unclear = |why: &str| {
            Error::unsupported(format!("the layers of `{}` cannot be told apart: {why}", decoder.file))
                .hint("surgery knows decoders with one residual stream, as this program's exporter writes them")
        };
        let ids = decoder.need(PortRole::InputIds, "the token ids")?.name;
        let logits = decoder.need(PortRole::Logits, "the logits")?.name;
        let path = Path::between(graph, &ids, &logits);
        let necks = path.necks(graph);
        let joins: Vec<usize> = necks.iter().copied().filter(|&place| path.joins(&graph.node[place])).collect();
        let first = *joins.first().ok_or_else(|| unclear("nothing is added to what is embedded"))?;
        let embedded = necks
            .iter()
            .rev()
            .find(|&&place| place < first)
            .and_then(|&place| graph.node[place].output.first())
            .ok_or_else(|| unclear("the tokens are embedded in several ways"))?;

        let makers = makers(graph);
        let keys = decoder.layers(PortRole::PresentKey);
        if keys.is_empty() || !joins.len().is_multiple_of(keys.len()) {
            let (joins, layers) = (joins.len(), keys.len());
            return Err(unclear(&format!("{joins} values are added to the stream by {layers} layers with a cache")));
        }
        let each = joins.len() / keys.len();
        for (layer, port) in keys.iter().enumerate() {
            let made = *makers.get(port.name.as_str()).ok_or_else(|| unclear("a cache that no node makes"))?;
            let before = joins.iter().filter(|&&join| join < made).count();
            // Attention is what a layer does first.
            if before != layer * each {
                return Err(unclear(&format!("the cache of layer {layer} is made behind {before} additions")));
            }
        }
        let ends = (1..=keys.len()).map(|layer| joins[layer * each - 1]).collect();
        Ok(Self { embedded: embedded.clone(), ends })
    }
}

/// The name of the sum that a joining node makes.
pub fn sum_of(node: &mut NodeProto) -> String {
    if !SKIP_NORMS.contains(&node.op_type()) {
        return node.output[0].clone();
    }
    if node.output.len() <= SUM {
        node.output.resize(SUM + 1, String::new());
    }
    if node.output[SUM].is_empty() {
        node.output[SUM] = format!("{}/sum", node.output[0]);
    }
    node.output[SUM].clone()
}

/// Which node makes a value.
pub fn makers(graph: &GraphProto) -> HashMap<&str, usize> {
    graph.node.iter().enumerate().flat_map(|(place, node)| node.makes().map(move |name| (name, place))).collect()
}

/// Nodes that look a token's row up in a table of constants.
pub fn embeddings<'a>(graph: &'a GraphProto, ids: &'a str) -> impl Iterator<Item = (usize, &'a NodeProto)> {
    let made: HashSet<&str> = graph.node.iter().flat_map(NodeProto::makes).collect();
    let given: HashSet<&str> = graph.input.iter().map(|input| input.name()).collect();
    graph.node.iter().enumerate().filter(move |(_, node)| {
        let looks_up = ["Gather", "GatherBlockQuantized"].contains(&node.op_type()) && node.input_at(1) == Some(ids);
        looks_up && node.input_at(0).is_some_and(|table| !made.contains(table) && !given.contains(table))
    })
}

/// What lies between the embedding and the logits.
struct Path<'a> {
    /// By place: whether the node depends on embedded tokens, and the logits on it.
    on: Vec<bool>,
    /// Values that nodes on the path make.
    values: HashSet<&'a str>,
}

impl<'a> Path<'a> {
    fn between(graph: &'a GraphProto, ids: &'a str, logits: &'a str) -> Self {
        let mut on = vec![false; graph.node.len()];
        let mut values: HashSet<&str> = HashSet::new();
        for (place, node) in embeddings(graph, ids) {
            on[place] = true;
            values.extend(node.makes());
        }
        for (place, node) in graph.node.iter().enumerate() {
            if on[place] || node.reads().iter().any(|name| values.contains(name)) {
                on[place] = true;
                values.extend(node.makes());
            }
        }
        let mut wanted: HashSet<&str> = HashSet::from([logits]);
        for (place, node) in graph.node.iter().enumerate().rev() {
            if node.makes().any(|name| wanted.contains(name)) {
                wanted.extend(node.reads());
            } else {
                on[place] = false;
            }
        }
        let made = graph.node.iter().enumerate().filter(|(place, _)| on[*place]).flat_map(|(_, node)| node.makes());
        let values = made.filter(|name| wanted.contains(name)).collect();
        Self { on, values }
    }

    /// Nodes that no path avoids: nothing that was made before one of them is read behind it.
    fn necks(&self, graph: &GraphProto) -> Vec<usize> {
        let mut last_read: HashMap<&str, usize> = HashMap::new();
        let nodes = || graph.node.iter().enumerate().filter(|(place, _)| self.on[*place]);
        for (place, node) in nodes() {
            last_read.extend(node.reads().into_iter().map(|name| (name, place)));
        }
        let (mut open, mut necks) = (0, Vec::new());
        for (place, node) in nodes() {
            if open <= place {
                necks.push(place);
            }
            let own = node.makes().filter_map(|name| last_read.get(name)).max();
            open = open.max(own.copied().unwrap_or(0));
        }
        necks
    }

    /// Whether a node adds up two values of the path.
    fn joins(&self, node: &NodeProto) -> bool {
        let adds = node.op_type() == "Add" || SKIP_NORMS.contains(&node.op_type());
        adds && [0, 1].iter().all(|&at| node.input_at(at).is_some_and(|name| self.values.contains(name)))
    }
}

#[cfg(test)]
#[path = "tests/stream.rs"]
mod tests;
