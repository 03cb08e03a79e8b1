//! Experts leave: those that routers choose least, layer by layer, the same number in each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::rows::{take_columns, take_rows};
use super::stream::makers;
use crate::error::{Error, Result};
use crate::package::edition::Edition;
use crate::package::onnx::{GraphProto, NodeProto, data_type};
use crate::package::{Graph, PortRole};

/// Where a layer's router says what it chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// The layer.
    pub layer: usize,
    /// What it chose.
    pub choice: Choice,
    /// Places of the nodes between the layer's start and its end.
    nodes: Range<usize>,
}

/// How a choice is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// Scores of all experts, of which the highest are chosen: `MoE` and `QMoE` take these.
    Scores(String),
    /// Numbers of the chosen experts.
    Ids(String),
}

/// The routers of a graph's layers, of those that have one.
///
/// # Errors
/// A model without experts, a router that chooses in several steps (`unsupported`).
pub fn routers(edition: &Edition) -> Result<Vec<Router>> {
    let decoder = edition.decoder()?;
    if edition.manifest.shape.experts.is_none() {
        let model = &edition.manifest.model;
        return Err(without_experts(&model.id, &model.architecture));
    }
    let graph = &edition.graph;
    let makers = makers(graph);
    let ends = layer_starts(graph, decoder, &makers)?;
    let mut routers = Vec::new();
    for (layer, nodes) in ends.windows(2).map(|pair| pair[0]..pair[1]).enumerate() {
        let within = |wanted: &dyn Fn(&NodeProto) -> bool| -> Vec<&NodeProto> {
            graph.node[nodes.clone()].iter().filter(|node| wanted(node)).collect()
        };
        let mixtures = within(&|node| ["MoE", "QMoE"].contains(&node.op_type()));
        let choices = within(&|node| node.op_type() == "TopK");
        let several = || {
            Error::unsupported(format!(
                "experts of layer {layer} cannot be taken out: its router chooses in {} steps",
                choices.len()
            ))
            .hint("a router that chooses among groups of experts wants as many in each")
        };
        if choices.len() > 1 {
            return Err(several());
        }
        let choice = match (mixtures.as_slice(), choices.as_slice()) {
            ([], []) => continue,
            ([mixture], _) => mixture.input_at(1).map(|name| Choice::Scores(name.to_owned())),
            ([], [top]) => top.output.get(1).map(|name| Choice::Ids(name.clone())),
            _ => None,
        };
        routers.push(Router { layer, choice: choice.ok_or_else(several)?, nodes });
    }
    if routers.is_empty() {
        return Err(Error::unsupported("the graph's routers were not found, although its manifest names experts")
            .hint("surgery knows `MoE`, `QMoE`, and the exporter's plain mixtures"));
    }
    Ok(routers)
}

/// What to say where experts are asked for that there are not.
pub fn without_experts(id: &str, architecture: &str) -> Error {
    Error::unsupported(format!("the model `{id}` ({architecture}) has no experts to take out"))
        .hint("leave `keep_experts` out, or name a mixture of experts")
}

/// The place of the node at which each layer's attention makes its keys, and the number of nodes at last. A mixture
/// stands behind its own layer's attention and before the next one's.
fn layer_starts(graph: &GraphProto, decoder: &Graph, makers: &HashMap<&str, usize>) -> Result<Vec<usize>> {
    let keys = decoder.layers(PortRole::PresentKey);
    let mut starts: Vec<usize> = Vec::with_capacity(keys.len() + 1);
    for port in keys {
        let place = makers.get(port.name.as_str());
        starts.push(*place.ok_or_else(|| Error::new(format!("no node makes the cache `{}`", port.name)))?);
    }
    starts.push(graph.node.len());
    if !starts.is_sorted() {
        return Err(Error::unsupported("the layers of the graph do not follow each other"));
    }
    Ok(starts)
}

/// Experts that each layer keeps: the most chosen ones, in their old order.
pub fn most_used(uses: &BTreeMap<usize, Vec<u64>>, keep: usize) -> BTreeMap<usize, Vec<usize>> {
    let best = |counts: &Vec<u64>| {
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by(|&a, &b| counts[b].cmp(&counts[a]).then(a.cmp(&b)));
        order.truncate(keep);
        order.sort_unstable();
        order
    };
    uses.iter().map(|(&layer, counts)| (layer, best(counts))).collect()
}

/// Keeps these experts of each layer, as many in each; everything else of the routers and of the stacks goes.
///
/// # Errors
/// A graph that does something with the number of experts that this program does not know (`unsupported`, named).
pub fn keep(edition: &mut Edition, kept: &BTreeMap<usize, Vec<usize>>) -> Result<()> {
    let experts = edition.manifest.shape.experts.unwrap_or(0);
    let count = kept.values().next().map_or(0, Vec::len) as u64;
    if count == experts {
        return Ok(());
    }
    for router in routers(edition)? {
        let rows = kept.get(&router.layer).ok_or_else(|| Error::new("a layer whose experts were not counted"))?;
        keep_in_layer(edition, &router, rows, experts)?;
    }
    edition.manifest.shape.experts = Some(count);
    Ok(())
}

fn keep_in_layer(edition: &mut Edition, router: &Router, rows: &[usize], experts: u64) -> Result<()> {
    let mut cut: HashSet<String> = HashSet::new();
    for place in router.nodes.clone() {
        let node = edition.graph.node[place].clone();
        for (at, name) in node.input.iter().enumerate() {
            let Some(stored) = edition.source().tensor(name) else { continue };
            let dims = stored.dims.clone();
            if name.starts_with('/') {
                if let Some(values) = renewed(edition, &node, at, name, rows.len() as u64, experts)? {
                    let new = format!("{name}/kept_{}", rows.len());
                    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                    // As many dimensions as before: one number, or a list.
                    let sizes = if dims.is_empty() { vec![] } else { vec![values.len() as u64] };
                    edition.set(&new, data_type::INT64, &sizes, bytes);
                    edition.graph.node[place].input[at] = new;
                }
                continue;
            }
            let stack = match (node.op_type(), at) {
                ("MoE" | "QMoE", 2..) | ("Gather", 0) => dims.first() == Some(&experts),
                _ => false,
            };
            let scores = node.op_type() == "MatMul" && at == 1 && dims.len() == 2 && dims[1] == experts;
            let bias = node.op_type() == "Add" && dims == [experts] && is_router(&node);
            if !cut.insert(name.clone()) {
                continue;
            }
            if stack || bias {
                take_rows(edition, name, experts, rows)?;
            } else if scores && is_router(&node) {
                take_columns(edition, name, rows)?;
            }
        }
    }
    Ok(())
}

/// Whether a node computes what a router chooses by: a product as wide as there are experts may be another.
fn is_router(node: &NodeProto) -> bool {
    node.name().contains("router") || node.name().contains("/gate/")
}

/// The new values of a small constant that stands for the number of experts, `None` where it says something else.
fn renewed(
    edition: &Edition,
    node: &NodeProto,
    at: usize,
    name: &str,
    kept: u64,
    experts: u64,
) -> Result<Option<Vec<i64>>> {
    if edition.source().tensor(name).is_none_or(|stored| stored.data_type != data_type::INT64) {
        return Ok(None);
    }
    let bytes = edition.source().read_all(name)?;
    let values: Vec<i64> = bytes.as_chunks::<8>().0.iter().map(|eight| i64::from_le_bytes(*eight)).collect();
    let (old, new) = (experts as i64, kept as i64);
    let place = node.name();
    Ok(match (node.op_type(), values.as_slice()) {
        // The shape of mixing weights, spread over all experts.
        ("Concat", [size]) if *size == old && place.contains("/mixing/") && at == 1 => Some(vec![new]),
        // The exporter's plain mixtures: rows a chunk are the mean over experts, rounded up.
        ("Add", [last]) if *last == old - 1 && place.ends_with("/size/Add") => Some(vec![new - 1]),
        ("Div", [size]) if *size == old && place.ends_with("/size/Div") => Some(vec![new]),
        ("Equal", all) if place.ends_with("/own/Equal") && all.len() as i64 == old => Some((0..new).collect()),
        ("Gather", [last]) if *last == old - 1 && place.ends_with("/total/Gather") => Some(vec![new - 1]),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_chosen_stay_in_their_order() {
        let uses = BTreeMap::from([(1, vec![3, 9, 3, 0]), (4, vec![0, 0, 0, 0])]);
        assert_eq!(most_used(&uses, 2), BTreeMap::from([(1, vec![0, 1]), (4, vec![0, 1])]));
        assert_eq!(most_used(&uses, 4)[&1], [0, 1, 2, 3]);
    }
}
