//! Small models made in memory.

use super::{
    Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShape, ValueInfoProto,
};
use crate::package::Dim;

/// The version of ONNX's operators that they are made of.
const OPSET: i64 = 21;

/// A model of these nodes.
pub fn model(
    nodes: Vec<NodeProto>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    constants: Vec<TensorProto>,
) -> ModelProto {
    let graph = GraphProto {
        name: Some("graph".to_owned()),
        node: nodes,
        input: inputs,
        output: outputs,
        initializer: constants,
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// A node, without attributes.
pub fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: Some(format!("/{output}/{operator}")),
        op_type: Some(operator.to_owned()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// A tensor of that type as an input or output. A dimension's symbol without letters is one of no name.
pub fn tensor(name: &str, elem_type: i32, dims: &[Dim]) -> ValueInfoProto {
    let dimension = |dim: &Dim| match dim {
        Dim::Size(size) => Dimension { dim_value: Some(*size as i64), ..Dimension::default() },
        Dim::Symbol(name) => {
            Dimension { dim_param: Some(name.clone()).filter(|name| !name.is_empty()), ..Dimension::default() }
        }
    };
    ValueInfoProto::of_tensor(name, elem_type, Some(TensorShape { dim: dims.iter().map(dimension).collect() }))
}

/// A constant of floats.
pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(super::data_type::FLOAT),
        dims: dims.to_vec(),
        raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

/// Sizes and names: `dims("batch 3")`.
pub fn dims(words: &str) -> Vec<Dim> {
    let dim = |word: &str| word.parse().map_or_else(|_| Dim::Symbol(word.replace('?', "")), Dim::Size);
    words.split_whitespace().map(dim).collect()
}
