//! A part of a graph: what makes some values of others.

use std::collections::HashSet;

use crate::package::onnx::{GraphProto, NodeProto};

/// The nodes that make the values wanted, back to those that are given. Inputs, outputs and constants are for the caller.
pub fn slice(graph: &GraphProto, given: &[String], wanted: &[String]) -> GraphProto {
    let given: HashSet<&str> = given.iter().map(String::as_str).collect();
    let mut open: HashSet<&str> = wanted.iter().map(String::as_str).collect();
    let mut nodes: Vec<NodeProto> = Vec::new();
    for node in graph.node.iter().rev() {
        if node.makes().any(|name| open.contains(name) && !given.contains(name)) {
            open.extend(node.reads());
            nodes.push(node.clone());
        }
    }
    nodes.reverse();
    GraphProto { name: graph.name.clone(), node: nodes, ..GraphProto::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::onnx::build::node;

    #[test]
    fn a_part_reaches_back_to_what_is_given() {
        let nodes = vec![
            node("A", &["x"], "a"),
            node("B", &["a"], "b"),
            node("C", &["m"], "mask"),
            node("D", &["b", "mask"], "c"),
            node("E", &["c"], "d"),
        ];
        let graph = GraphProto { node: nodes, ..GraphProto::default() };
        let part = |given: &[&str], wanted: &[&str]| -> Vec<String> {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let part = slice(&graph, &names(given), &names(wanted));
            part.node.iter().map(|node| node.op_type().to_owned()).collect()
        };
        assert_eq!(part(&["b"], &["c"]), ["C", "D"]);
        assert_eq!(part(&[], &["c"]), ["A", "B", "C", "D"]);
        assert_eq!(part(&["c"], &["c"]), [""; 0]);
    }
}
