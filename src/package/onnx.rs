//! The parts of ONNX's protobuf that the runner reads: inputs, outputs, nodes, and where weights lie. Field numbers
//! are those of onnx.proto3; unknown fields are skipped.

use prost::Message;

use crate::cell::Dtype;
use crate::error::{Context, Error, Result};

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct ModelProto {
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetId>,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct OperatorSetId {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "3")]
    pub i: i64,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShape>,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct TensorShape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "ONNX's own names")]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

/// Reads an ONNX file's graph. Files with their weights inside are read whole.
///
/// # Errors
/// Bytes that are no ONNX model.
pub fn read(bytes: &[u8]) -> Result<(GraphProto, Vec<OperatorSetId>)> {
    let model = ModelProto::decode(bytes).context("it is no ONNX file")?;
    let graph = model.graph.ok_or_else(|| Error::new("it is an ONNX file without a graph"))?;
    Ok((graph, model.opset_import))
}

impl TensorProto {
    /// Elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().map(|&size| size.max(0) as u64).product()
    }

    /// Bytes of the elements, by the type's width (types narrower than a byte are packed).
    pub fn bytes(&self) -> u64 {
        let bits = match self.data_type {
            1 | 6 | 12 => 32,
            7 | 11 | 13 => 64,
            4 | 5 | 10 | 16 => 16,
            21 | 22 => 4,
            _ => 8,
        };
        (self.elements() * bits).div_ceil(8)
    }

    /// The file of external data, if the tensor lies outside.
    pub fn location(&self) -> Option<&str> {
        self.external_data.iter().find(|entry| entry.key == "location").map(|entry| entry.value.as_str())
    }
}

impl NodeProto {
    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute.iter().find(|attribute| attribute.name == name).map(|attribute| attribute.i)
    }
}

impl ValueInfoProto {
    /// The element type, where it is one that the runner can bind.
    pub fn dtype(&self) -> Option<Dtype> {
        match self.r#type.as_ref()?.tensor_type.as_ref()?.elem_type {
            1 => Some(Dtype::Float32),
            10 => Some(Dtype::Float16),
            7 => Some(Dtype::Int64),
            6 => Some(Dtype::Int32),
            _ => None,
        }
    }

    /// The dimensions.
    pub fn dims(&self) -> Vec<super::Dim> {
        let shape = self.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).and_then(|t| t.shape.as_ref());
        shape.map_or_else(Vec::new, |shape| {
            shape
                .dim
                .iter()
                .map(|dim| match (dim.dim_value, &dim.dim_param) {
                    (Some(size), _) => super::Dim::Size(size.max(0) as u64),
                    (None, name) => super::Dim::Symbol(name.clone().unwrap_or_default()),
                })
                .collect()
        })
    }
}
