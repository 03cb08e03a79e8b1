//! What the operators of this program take the place of.

use super::view::{CONTRIB, View};
use crate::package::onnx::{AttributeProto, NodeProto};
use crate::runtime::custom::DOMAIN;

/// Nodes that one operator can take the place of.
#[derive(Debug)]
pub struct Match {
    /// The operator; it comes where the node is that was matched first.
    pub node: NodeProto,
    /// The nodes that go, by place.
    pub replaced: Vec<usize>,
}

/// An operator of this program and what it replaces.
pub struct Pattern {
    /// The operator.
    pub operator: &'static str,
    /// Looks for it at a node.
    pub find: fn(&View, usize) -> Option<Match>,
}

/// Every operator that replaces others.
pub const PATTERNS: &[Pattern] = &[
    Pattern { operator: "HeadNorm", find: head_norm },
    Pattern { operator: "SwiGlu", find: swi_glu },
    Pattern { operator: "SkipNorm", find: skip_norm },
];

/// A `Split` of queries, keys and values, and the norm of each head of the first two.
fn head_norm(view: &View, place: usize) -> Option<Match> {
    let split = view.node(place);
    let [queries, keys, values] = split.output.as_slice() else { return None };
    if split.op_type() != "Split" || split.int("axis") != Some(-1) || !view.is_float(split.input_at(0)?) {
        return None;
    }
    let [query_size, key_size, _] = view.integers(split.input_at(1)?)?[..] else { return None };
    let (query, key) = (normed_heads(view, queries, query_size)?, normed_heads(view, keys, key_size)?);
    if (query.head, query.epsilon) != (key.head, key.epsilon) || values.is_empty() {
        return None;
    }
    let node = NodeProto {
        input: vec![split.input[0].clone(), query.weight.to_owned(), key.weight.to_owned()],
        output: vec![query.output.to_owned(), key.output.to_owned(), values.clone()],
        attribute: vec![
            AttributeProto::of_int("queries", query_size),
            AttributeProto::of_int("keys", key_size),
            AttributeProto::of_float("epsilon", query.epsilon),
        ],
        ..operator("HeadNorm", split)
    };
    Some(Match { node, replaced: [&[place], &query.places[..], &key.places[..]].concat() })
}

/// A norm of each head of a part of a product.
struct NormedHeads<'a> {
    output: &'a str,
    weight: &'a str,
    epsilon: f32,
    head: i64,
    places: [usize; 3],
}

fn normed_heads<'a>(view: &View<'a>, name: &str, size: i64) -> Option<NormedHeads<'a>> {
    let into_heads = view.only_reader(name)?;
    let [0, 0, count, head] = reshaped_to(view, into_heads)?[..] else { return None };
    let normed = view.only_reader(view.node(into_heads).output.first()?)?;
    let norm = view.node(normed);
    let only_output = norm.output.iter().skip(1).all(String::is_empty);
    if norm.op_type() != "SimplifiedLayerNormalization" || !only_output || norm.int("axis").unwrap_or(-1) != -1 {
        return None;
    }
    let weight = norm.input_at(1)?;
    let back = view.only_reader(norm.output.first()?)?;
    let to = reshaped_to(view, back)?;
    let whole = to == [0, 0, size] || to == [0, 0, -1];
    if !whole || count.checked_mul(head) != Some(size) || view.floats(weight) != Some(head) {
        return None;
    }
    let epsilon = norm.float("epsilon").unwrap_or(1e-5);
    let output = view.node(back).output.first()?;
    Some(NormedHeads { output, weight, epsilon, head, places: [into_heads, normed, back] })
}

/// The constant shape that a `Reshape` gives its first input.
fn reshaped_to(view: &View, place: usize) -> Option<Vec<i64>> {
    let node = view.node(place);
    if node.op_type() != "Reshape" || node.int("allowzero").unwrap_or(0) != 0 {
        return None;
    }
    view.integers(node.input_at(1)?)
}

/// `silu(gate) · up`, whose silu is a `QuickGelu` or written out.
fn swi_glu(view: &View, place: usize) -> Option<Match> {
    let product = view.node(place);
    if product.op_type() != "Mul" {
        return None;
    }
    let (one, other) = (product.input_at(0)?, product.input_at(1)?);
    let (silu, up) = [(one, other), (other, one)].into_iter().find_map(|(activated, up)| {
        view.only_for(activated, place).then_some(())?;
        Some((silu(view, view.maker(activated)?)?, up))
    })?;
    if !view.is_float(silu.0) || !view.is_float(up) || !view.same_shape(silu.0, up) {
        return None;
    }
    let node = NodeProto {
        input: vec![silu.0.to_owned(), up.to_owned()],
        output: product.output.clone(),
        ..operator("SwiGlu", product)
    };
    Some(Match { node, replaced: [&[place], &silu.1[..]].concat() })
}

/// What `x · sigmoid(x)` is taken of, and its nodes.
fn silu<'a>(view: &View<'a>, place: usize) -> Option<(&'a str, Vec<usize>)> {
    let node = view.node(place);
    match node.op_type() {
        "QuickGelu" if node.domain() == CONTRIB && node.float("alpha") == Some(1.0) => {
            Some((node.input_at(0)?, vec![place]))
        }
        "Mul" => {
            let (one, other) = (node.input_at(0)?, node.input_at(1)?);
            [(one, other), (other, one)].into_iter().find_map(|(x, gate)| {
                let maker = view.maker(gate)?;
                let sigmoid = view.node(maker);
                let is_gate = sigmoid.op_type() == "Sigmoid" && sigmoid.input_at(0) == Some(x);
                (is_gate && view.only_reader(gate) == Some(place)).then(|| (x, vec![place, maker]))
            })
        }
        _ => None,
    }
}

/// A `SkipSimplifiedLayerNormalization`: one for one, in a faster kernel.
fn skip_norm(view: &View, place: usize) -> Option<Match> {
    let norm = view.node(place);
    if norm.op_type() != "SkipSimplifiedLayerNormalization" || norm.input_at(3).is_some() {
        return None;
    }
    let (x, skip, weight) = (norm.input_at(0)?, norm.input_at(1)?, norm.input_at(2)?);
    let statistics = norm.output.iter().skip(1).take(2).any(|name| !name.is_empty());
    if statistics || view.floats(weight).is_none() || !view.is_float(x) || !view.is_float(skip) {
        return None;
    }
    let normed = norm.output.first()?.clone();
    // An output of an operator of this kind cannot be left out.
    let sum = norm.output.get(3).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| format!("{normed}/sum"));
    let node = NodeProto {
        input: norm.input[..3].to_vec(),
        output: vec![normed, sum],
        attribute: vec![AttributeProto::of_float("epsilon", norm.float("epsilon").unwrap_or(1e-5))],
        ..operator("SkipNorm", norm)
    };
    Some(Match { node, replaced: vec![place] })
}

/// An operator of this program with another node's name.
fn operator(op_type: &str, of: &NodeProto) -> NodeProto {
    NodeProto {
        name: of.name.clone(),
        op_type: Some(op_type.to_owned()),
        domain: Some(DOMAIN.to_owned()),
        ..NodeProto::default()
    }
}
