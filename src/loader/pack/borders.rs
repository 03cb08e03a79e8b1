//! Where a graph is cut: which layer each node belongs to.

use std::collections::{HashMap, HashSet};

use crate::package::onnx::{GraphProto, NodeProto};

/// Which part each node is in, by place: 0 before the first layer, `n + 1` in layer n, `layers + 1` after the last.
/// Parts never fall along the graph's order of execution's edges: what a node reads is made in its part or an earlier
/// one.
///
/// A node's layer is the number in its own name (`layers.7`, `layers/7`), in a constant's that it reads, or in an
/// output's; else that of the cache tensor that it reads; else the latest part that it depends on. What follows the
/// last node with a layer, and depends on one, comes after the layers; so does what only such nodes use.
pub fn assign(graph: &GraphProto, layers: usize, cache: &HashMap<String, usize>) -> Vec<usize> {
    let after = layers + 1;
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    let tags: Vec<Option<usize>> =
        graph.node.iter().map(|node| tag(node, &constants, cache).map(|layer| (layer + 1).min(after))).collect();
    let last = tags.iter().rposition(|tag| tag.is_some_and(|part| part < after));
    let mut made_in: HashMap<&str, usize> = HashMap::new();
    let mut parts = Vec::with_capacity(graph.node.len());
    for (index, node) in graph.node.iter().enumerate() {
        let floor = node.reads().iter().filter_map(|name| made_in.get(name)).max().copied().unwrap_or(0);
        let part = match tags[index] {
            Some(part) => part.max(floor),
            None if floor > 0 && last.is_some_and(|last| index > last) => after,
            None => floor,
        };
        made_in.extend(node.makes().map(|name| (name, part)));
        parts.push(part);
    }
    sink(graph, &tags, &mut parts, after);
    parts
}

/// Moves to the end what nothing before it needs, such as the choice of positions whose logits are wanted.
fn sink(graph: &GraphProto, tags: &[Option<usize>], parts: &mut [usize], after: usize) {
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
    let mut first_use: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate().rev() {
        let mut uses =
            node.makes().map(|name| if outputs.contains(name) { 0 } else { first_use.get(name).copied().unwrap_or(0) });
        if tags[index].is_none() && uses.all(|part| part == after) {
            parts[index] = after;
        }
        for name in node.reads() {
            first_use.entry(name).and_modify(|part| *part = (*part).min(parts[index])).or_insert(parts[index]);
        }
    }
}

fn tag(node: &NodeProto, constants: &HashSet<&str>, cache: &HashMap<String, usize>) -> Option<usize> {
    let inputs = || node.input.iter().map(String::as_str);
    number(node.name())
        .or_else(|| inputs().filter(|name| constants.contains(name)).find_map(number))
        .or_else(|| node.makes().find_map(number))
        .or_else(|| inputs().find_map(|name| cache.get(name).copied()))
}

/// The number behind `layers.` or `layers/`.
fn number(name: &str) -> Option<usize> {
    name.match_indices("layers").find_map(|(at, word)| {
        let rest = name[at + word.len()..].strip_prefix(['.', '/'])?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, input: &[&str], output: &str) -> NodeProto {
        NodeProto {
            name: Some(name.to_owned()),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    fn graph(node: Vec<NodeProto>) -> GraphProto {
        GraphProto { node, ..GraphProto::default() }
    }

    #[test]
    fn names_tell_layers() {
        assert_eq!(number("/model/layers.12/attn/MatMul"), Some(12));
        assert_eq!(number("model/layers/3/x"), Some(3));
        assert_eq!(number("layers"), None);
        assert_eq!(number("layers.x"), None);
        let graph = graph(vec![
            node("/embed", &["ids"], "h0"),
            node("/mask", &["mask"], "m"),
            node("/layers.0/a", &["h0", "m"], "h1"),
            node("/layers.1/a", &["h1", "m"], "h2"),
            node("/late", &["h1"], "late"),
            node("/layers.1/b", &["h2", "late"], "h3"),
            node("/norm", &["h3"], "n"),
            node("/pick", &["positions"], "p"),
            node("/head", &["n", "p"], "logits"),
        ]);
        assert_eq!(assign(&graph, 2, &HashMap::new()), [0, 0, 1, 2, 1, 2, 3, 3, 3]);
    }

    #[test]
    fn without_names_the_cache_tells() {
        let graph = graph(vec![
            node("a", &["ids"], "h0"),
            node("b", &["h0", "past.0"], "h1"),
            node("c", &["h1"], "q"),
            node("d", &["q", "past.1"], "h2"),
            node("e", &["h2"], "logits"),
        ]);
        let cache = HashMap::from([("past.0".to_owned(), 0), ("past.1".to_owned(), 1)]);
        assert_eq!(assign(&graph, 2, &cache), [0, 1, 1, 2, 3]);
    }

    #[test]
    fn a_layer_that_needs_a_later_one_moves_there() {
        let graph = graph(vec![node("/layers.1/a", &["x"], "y"), node("/layers.0/b", &["y"], "z")]);
        assert_eq!(assign(&graph, 2, &HashMap::new()), [2, 2]);
    }
}
