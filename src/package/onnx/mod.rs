//! ONNX models, read and written: [`proto`] has the messages, this file what the runner asks of them.

pub mod build;
pub mod proto;
pub mod raw;
mod signature;
mod source;
mod unknown;

pub use proto::*;
pub use signature::{GraphValue, Signature, ValueKind};
pub use source::{Place, Source, Stored};

use prost::Message;

use crate::cell::Dtype;
use crate::error::{Context, Error, Result};

/// Numbers of `TensorProto.DataType`.
#[expect(missing_docs, reason = "ONNX's own names")]
pub mod data_type {
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;
    pub const BFLOAT16: i32 = 16;
}

/// Numbers of `AttributeProto.AttributeType`.
mod attribute_type {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const STRING: i32 = 3;
}

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// Reads an ONNX file's graph. Files with their weights inside are read whole.
///
/// # Errors
/// Bytes that are no ONNX model.
pub fn read(bytes: &[u8]) -> Result<(GraphProto, Vec<OperatorSetIdProto>)> {
    let model = ModelProto::decode(bytes).context("it is no ONNX file")?;
    let graph = model.graph.ok_or_else(|| Error::new("it is an ONNX file without a graph"))?;
    Ok((graph, model.opset_import))
}

/// Reads an ONNX file in order to write it again: nothing of it may be unknown.
///
/// # Errors
/// Bytes that are no ONNX model, or one with fields that this program does not know and would lose.
pub fn read_whole(bytes: &[u8]) -> Result<ModelProto> {
    let model = ModelProto::decode(bytes).context("it is no ONNX file")?;
    match unknown::first(bytes) {
        None => Ok(model),
        Some(field) => {
            Err(Error::unsupported(format!("the ONNX file has the field {field}, which this program does not know"))
                .hint("export the model with an older version of ONNX"))
        }
    }
}

/// A model's bytes.
pub fn write(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

/// Bits of an element, by the number of its type; `None` for strings and what ONNX does not know yet.
pub fn element_bits(data_type: i32) -> Option<u64> {
    match data_type {
        1 | 6 | 12 => Some(32),
        7 | 11 | 13 | 14 => Some(64),
        15 => Some(128),
        4 | 5 | 10 | 16 => Some(16),
        2 | 3 | 9 | 17..=20 | 24 => Some(8),
        21..=23 => Some(4),
        25 | 26 => Some(2),
        _ => None,
    }
}

/// ONNX's name of an element type, as `float8e4m3fn`.
pub fn element_name(data_type: i32) -> String {
    const NAMES: [&str; 27] = [
        "no type",
        "float32",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "int32",
        "int64",
        "string",
        "bool",
        "float16",
        "float64",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "bfloat16",
        "float8e4m3fn",
        "float8e4m3fnuz",
        "float8e5m2",
        "float8e5m2fnuz",
        "uint4",
        "int4",
        "float4e2m1",
        "float8e8m0",
        "uint2",
        "int2",
    ];
    let known = usize::try_from(data_type).ok().and_then(|number| NAMES.get(number));
    known.map_or_else(|| format!("type {data_type}"), |name| (*name).to_owned())
}

impl TensorProto {
    /// Elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().map(|&size| size.max(0) as u64).fold(1, u64::saturating_mul)
    }

    /// Bytes of the elements, by the type's width (types narrower than a byte are packed).
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(element_bits(self.data_type()).unwrap_or(8)).div_ceil(8)
    }

    /// The file of external data, if the tensor lies outside.
    pub fn location(&self) -> Option<&str> {
        self.external("location")
    }

    /// An entry of its external data.
    pub fn external(&self, key: &str) -> Option<&str> {
        self.external_data.iter().find(|entry| entry.key() == key).map(StringStringEntryProto::value)
    }

    /// The same tensor with its bytes in a file beside the model.
    #[must_use]
    pub fn at(&self, file: &str, offset: u64, length: u64) -> Self {
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
        Self {
            dims: self.dims.clone(),
            data_type: self.data_type,
            name: self.name.clone(),
            doc_string: self.doc_string.clone(),
            metadata_props: self.metadata_props.clone(),
            external_data: vec![
                entry("location", file.to_owned()),
                entry("offset", offset.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: Some(EXTERNAL),
            ..Self::default()
        }
    }
}

impl TensorProto {
    /// Adds an entry to its external data.
    pub fn note_external(&mut self, key: &str, value: &str) {
        self.external_data.push(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) });
    }
}

impl AttributeProto {
    /// An integer.
    pub fn of_int(name: &str, value: i64) -> Self {
        let r#type = Some(attribute_type::INT);
        Self { name: Some(name.to_owned()), i: Some(value), r#type, ..Self::default() }
    }

    /// A float.
    pub fn of_float(name: &str, value: f32) -> Self {
        let r#type = Some(attribute_type::FLOAT);
        Self { name: Some(name.to_owned()), f: Some(value), r#type, ..Self::default() }
    }

    /// A string.
    pub fn of_string(name: &str, value: &str) -> Self {
        let r#type = Some(attribute_type::STRING);
        Self { name: Some(name.to_owned()), s: Some(value.as_bytes().to_vec()), r#type, ..Self::default() }
    }
}

impl NodeProto {
    /// An attribute.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name() == name)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).and_then(|attribute| attribute.i)
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).and_then(|attribute| attribute.f)
    }

    /// A string attribute.
    pub fn string(&self, name: &str) -> Option<&[u8]> {
        self.attribute(name).and_then(|attribute| attribute.s.as_deref())
    }

    /// The input at that place, unless it is left out.
    pub fn input_at(&self, place: usize) -> Option<&str> {
        self.input.get(place).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Tensors that it reads: its inputs, and what its subgraphs take from outside of them.
    pub fn reads(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
        for graph in self.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            names.extend(graph.captures());
        }
        names
    }

    /// Tensors that it makes.
    pub fn makes(&self) -> impl Iterator<Item = &str> {
        self.output.iter().map(String::as_str).filter(|name| !name.is_empty())
    }
}

impl GraphProto {
    /// Names that the graph reads and does not define.
    fn captures(&self) -> Vec<&str> {
        let own = self.input.iter().map(ValueInfoProto::name);
        let own = own.chain(self.initializer.iter().map(TensorProto::name));
        let own = own.chain(self.sparse_initializer.iter().filter_map(|sparse| Some(sparse.values.as_ref()?.name())));
        let own: std::collections::HashSet<&str> = own.chain(self.node.iter().flat_map(NodeProto::makes)).collect();
        let read = self.node.iter().flat_map(NodeProto::reads).chain(self.output.iter().map(ValueInfoProto::name));
        read.filter(|name| !own.contains(name)).collect()
    }
}

impl ValueInfoProto {
    /// A tensor of that type; the shape may be unknown.
    pub fn of_tensor(name: &str, elem_type: i32, shape: Option<TensorShape>) -> Self {
        let tensor = TensorType { elem_type: Some(elem_type), shape };
        let r#type = Some(TypeProto { tensor_type: Some(tensor), ..TypeProto::default() });
        Self { name: Some(name.to_owned()), r#type, ..Self::default() }
    }

    /// The number of the element type of a tensor.
    pub fn elem_type(&self) -> Option<i32> {
        self.r#type.as_ref()?.tensor_type.as_ref()?.elem_type.filter(|number| *number != 0)
    }

    /// The shape of a tensor.
    pub fn shape(&self) -> Option<&TensorShape> {
        self.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()
    }

    /// The element type, where it is one that the runner can bind.
    pub fn dtype(&self) -> Option<Dtype> {
        match self.elem_type()? {
            1 => Some(Dtype::Float32),
            10 => Some(Dtype::Float16),
            16 => Some(Dtype::BFloat16),
            7 => Some(Dtype::Int64),
            6 => Some(Dtype::Int32),
            3 => Some(Dtype::Int8),
            2 => Some(Dtype::UInt8),
            _ => None,
        }
    }

    /// The dimensions.
    pub fn dims(&self) -> Vec<super::Dim> {
        self.shape().map_or_else(Vec::new, |shape| {
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

#[cfg(test)]
mod tests;
