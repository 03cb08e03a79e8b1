//! The head: the product that gives the logits, and what is put before it so that it computes those that are wanted.

use super::stream::makers;
use crate::cell::Dtype;
use crate::error::{Error, Result};
use crate::package::edition::Edition;
use crate::package::onnx::{AttributeProto, Dimension, GraphProto, NodeProto, ValueInfoProto, build, data_type};
use crate::package::{Dim, Graph, Port, PortRole};

/// Operators that may stand between the product and the logits.
const BEHIND: [&str; 3] = ["Cast", "Reshape", "Add"];

/// The product of the final states and the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The states `[batch, sequence, hidden]`.
    pub hidden: String,
    /// The place of `MatMulNBits`, `MatMul` or `Gemm`.
    pub product: usize,
    /// Where its weight is dequantized, if it is.
    pub dequantized: Option<usize>,
    /// Places of nodes behind it, from the logits back.
    pub behind: Vec<usize>,
}

impl Head {
    /// Finds it from the logits back.
    ///
    /// # Errors
    /// Other operators than those that exporters use (`unsupported`, named).
    pub fn find(graph: &GraphProto, decoder: &Graph) -> Result<Self> {
        let logits = decoder.need(PortRole::Logits, "the logits")?.name;
        let makers = makers(graph);
        let maker = |name: &str| makers.get(name).copied();
        let unknown = |what: &str| {
            Error::unsupported(format!("the head of `{}` is not known: {what}", decoder.file))
                .hint("surgery knows heads of `MatMul`, `Gemm` or `MatMulNBits`")
        };
        let (mut value, mut behind) = (logits.as_str(), Vec::new());
        let product = loop {
            let place = maker(value).ok_or_else(|| unknown(&format!("`{value}` is made by no node")))?;
            let node = &graph.node[place];
            if !BEHIND.contains(&node.op_type()) {
                break place;
            }
            behind.push(place);
            value = node.input_at(0).ok_or_else(|| unknown("a node without input"))?;
        };
        let node = &graph.node[product];
        if !["MatMulNBits", "MatMul", "Gemm"].contains(&node.op_type()) {
            return Err(unknown(&format!("the logits come from `{}`", node.op_type())));
        }
        let (states, weight) = (node.input_at(0), node.input_at(1));
        let (Some(states), Some(weight)) = (states, weight) else { return Err(unknown("a product of nothing")) };
        let dequantized = maker(weight).filter(|&place| graph.node[place].op_type() == "DequantizeLinear");
        let flattened = maker(states).map(|place| &graph.node[place]).filter(|node| node.op_type() == "Reshape");
        let hidden = flattened.and_then(|node| node.input_at(0)).unwrap_or(states).to_owned();
        Ok(Self { hidden, product, dequantized, behind })
    }
}

/// Lets the head compute the logits of the positions that a new input, `logits_positions`, names. Returns whether
/// there was anything to do: a graph that has the input already stays as it is.
///
/// # Errors
/// As [`Head::find`].
pub fn select_positions(edition: &mut Edition) -> Result<bool> {
    let decoder = edition.decoder_mut()?.clone();
    if decoder.port(PortRole::LogitsPositions).is_some() {
        return Ok(false);
    }
    let head = Head::find(&edition.graph, &decoder)?;
    let graph = &mut edition.graph;
    let readers = graph.node.iter().position(|node| node.input.contains(&head.hidden));
    let place = readers.ok_or_else(|| Error::new("nothing reads the final states; this is a bug"))?;
    let (input, last, indices, chosen) =
        ("logits_positions", "/lm_head/last_axis", "/lm_head/Unsqueeze/output_0", "/lm_head/GatherND/output_0");
    for node in &mut graph.node {
        node.input.iter_mut().filter(|name| **name == head.hidden).for_each(|name| chosen.clone_into(name));
    }
    let unsqueeze =
        NodeProto { name: Some("/lm_head/Unsqueeze".to_owned()), ..build::node("Unsqueeze", &[input, last], indices) };
    let gather = NodeProto {
        name: Some("/lm_head/GatherND".to_owned()),
        attribute: vec![AttributeProto::of_int("batch_dims", 1)],
        ..build::node("GatherND", &[&head.hidden, indices], chosen)
    };
    graph.node.splice(place..place, [unsqueeze, gather]);
    let dims = vec![Dim::Symbol("batch".to_owned()), Dim::Symbol("selected".to_owned())];
    graph.input.push(build::tensor(input, data_type::INT64, &dims));
    let logits = decoder.need(PortRole::Logits, "the logits")?.name;
    set_dim(&mut graph.output, &logits, 1, Dim::Symbol("selected".to_owned()));
    edition.set(last, data_type::INT64, &[1], (-1_i64).to_le_bytes().to_vec());
    let entry = edition.decoder_mut()?;
    let (name, role) = (input.to_owned(), PortRole::LogitsPositions);
    entry.inputs.push(Port { name, role, layer: None, dtype: Dtype::Int64, dims });
    if let Some(port) = entry.outputs.iter_mut().find(|port| port.role == PortRole::Logits)
        && let Some(dim) = port.dims.get_mut(1)
    {
        *dim = Dim::Symbol("selected".to_owned());
    }
    if let Some(options) = edition.manifest.exporter.options.as_object_mut() {
        options.insert("logits".to_owned(), "selected".into());
    }
    Ok(true)
}

/// Sets one dimension of an input or output.
pub fn set_dim(values: &mut [ValueInfoProto], name: &str, axis: usize, dim: Dim) {
    let value = values.iter_mut().find(|value| value.name() == name);
    let shape = value.and_then(|value| value.r#type.as_mut()?.tensor_type.as_mut()?.shape.as_mut());
    if let Some(slot) = shape.and_then(|shape| shape.dim.get_mut(axis)) {
        *slot = match dim {
            Dim::Size(size) => Dimension { dim_value: Some(size as i64), ..Dimension::default() },
            Dim::Symbol(name) => Dimension { dim_param: Some(name), ..Dimension::default() },
        };
    }
}
