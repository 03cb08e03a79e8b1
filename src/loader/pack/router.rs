//! Which product chooses the experts of a mixture, so that the loader can guess the choice before the graph makes it.

use std::collections::HashMap;

use crate::error::Result;
use crate::loader::pack::record;
use crate::package::onnx::Source;
use crate::package::onnx::{GraphProto, NodeProto, data_type};
use crate::package::shards;

/// A mixture's router, by the names of the source's constants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// The mixture.
    pub mixture: String,
    /// `[hidden, experts]`.
    weights: String,
    /// `[experts]`, added to the logits' sigmoids before the highest choose.
    bias: Option<String>,
}

/// Finds routers.
pub struct Finder {
    /// The place of the node that makes a tensor.
    makers: HashMap<String, usize>,
}

impl Finder {
    /// One for a graph.
    pub fn new(graph: &GraphProto) -> Self {
        let nodes = graph.node.iter().enumerate();
        let makers = nodes.flat_map(|(place, node)| node.makes().map(move |name| (name.to_owned(), place)));
        Self { makers: makers.collect() }
    }

    /// The router of a `QMoE` whose scores are, or are scattered from the highest of, the logits `x · W`, their softmax
    /// or sigmoid, or their sigmoid plus a bias. `None` for any other, as one that chooses groups of experts first.
    pub fn find(&self, source: &Source, node: &NodeProto, mixture: &str, experts: u32) -> Option<Router> {
        let maker = |name: &str| self.makers.get(name).map(|place| &source.graph.node[*place]);
        // Casts change what is computed too little for a guess.
        let before_casts = |mut name: String| {
            while let Some(cast) = maker(&name).filter(|node| node.op_type() == "Cast") {
                name = cast.input_at(0)?.to_owned();
            }
            Some(name)
        };
        let made_by = |name: &str| maker(&before_casts(name.to_owned())?);
        let constant = |name: &str, dims: &[u64]| {
            source.tensor(name).is_some_and(|found| found.data_type == data_type::FLOAT && found.dims == dims)
        };
        let experts = u64::from(experts);
        let mut scores = made_by(node.input_at(1)?)?;
        let mut bias = None;
        if scores.op_type() == "ScatterElements" {
            let highest = made_by(scores.input_at(1)?)?;
            if highest.op_type() != "TopK" || highest.output.get(1) != scores.input.get(1) {
                return None;
            }
            scores = made_by(highest.input_at(0)?)?;
            if scores.op_type() == "Add" {
                let both = [scores.input_at(0)?, scores.input_at(1)?];
                let place = both.iter().position(|name| constant(name, &[experts]))?;
                bias = Some(both[place].to_owned());
                scores = made_by(both[1 - place])?;
            }
            let monotonic = scores.op_type() == "Sigmoid" || (scores.op_type() == "Softmax" && bias.is_none());
            if !monotonic {
                return None;
            }
            scores = made_by(scores.input_at(0)?)?;
        }
        let (x, weights) = (scores.input_at(0)?, scores.input_at(1)?);
        let own = before_casts(x.to_owned())? == before_casts(node.input_at(0)?.to_owned())?;
        let hidden = *source.tensor(weights)?.dims.first()?;
        if scores.op_type() != "MatMul" || !own || !constant(weights, &[hidden, experts]) {
            return None;
        }
        Some(Router { mixture: mixture.to_owned(), weights: weights.to_owned(), bias })
    }
}

/// Where routers begin.
const ALIGNED: usize = 64;

/// Bytes of the file of all routers, at most.
pub fn most_bytes(source: &Source, routers: &[Router]) -> u64 {
    let of = |name: &String| source.tensor(name).map_or(0, |stored| stored.bytes);
    routers.iter().map(|router| of(&router.weights) + router.bias.as_ref().map_or(0, of) + ALIGNED as u64).sum()
}

/// The file of all routers, and its description.
///
/// # Errors
/// A source that cannot be read.
pub fn make(source: &Source, routers: &[Router]) -> Result<(Vec<u8>, Vec<shards::Router>)> {
    let mut file = Vec::new();
    let mut described = Vec::with_capacity(routers.len());
    for router in routers {
        file.resize(file.len().next_multiple_of(ALIGNED), 0);
        let offset = file.len();
        file.extend(source.read_all(&router.weights)?);
        if let Some(bias) = &router.bias {
            file.extend(source.read_all(bias)?);
        }
        let dims = source.tensor(&router.weights).map_or(&[0, 0][..], |stored| &stored.dims);
        described.push(shards::Router {
            mixture: router.mixture.clone(),
            hidden: dims[0],
            experts: dims[1],
            bias: router.bias.is_some(),
            offset: offset as u64,
            hash: record::hash(&file[offset..]),
        });
    }
    Ok((file, described))
}
