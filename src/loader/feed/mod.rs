//! Weights on their way into the inputs of a graph's parts, for packs of [`Form::Inputs`].
//!
//! `lend.rs` hands out the pager's own memory, for providers that compute in the host's; `ahead.rs` copies the weights
//! of the next part to a device while a part computes.

mod ahead;
mod lend;

use std::sync::Arc;

use super::pager::RecordId;
use crate::error::{Error, Result};
use crate::package::onnx::{self, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use crate::package::onnx::{TensorShape, data_type};
use crate::package::shards::{Form, ShardIndex, What};
use crate::runtime::{PartWeights, WeightInput};

pub use ahead::{Ahead, SETS};
pub use lend::Lend;

/// Brings the weights of a model's parts to where the provider computes.
pub trait Feeder: Send + std::fmt::Debug {
    /// The weights of a part, once they are there. Of several parts' weights only one may be held at a time, unless
    /// the feeder was made to keep them all.
    ///
    /// # Errors
    /// Records that cannot be read or are damaged, memory that cannot be had.
    fn part(&mut self, part: usize) -> Result<Arc<PartWeights>>;
}

/// A weight of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Its record.
    pub record: RecordId,
    /// Its bytes.
    pub bytes: usize,
    /// The input that it is bound to.
    pub input: WeightInput,
}

/// The weights of each part, in the order of records.
///
/// # Errors
/// A pack of another form, or with packed matrices, which only operators of this program can read.
pub fn weights_of_parts(index: &ShardIndex) -> Result<Vec<Vec<Weight>>> {
    if index.form != Form::Inputs {
        return Err(Error::new("the weights of a pack of the form `operators` are no inputs; this is a bug"));
    }
    let weight = |record: RecordId| {
        let Some(found) = index.records.get(record) else {
            return Err(Error::new(format!("the index names a record {record} that it does not have")));
        };
        let What::Tensor { data_type, dims } = &found.what else {
            let message = format!("the record `{}` is packed for this program's operators, not an input", found.name);
            return Err(Error::new(message).hint("pack the model again with `--form inputs`"));
        };
        let dims = dims.iter().map(|&size| size as i64).collect();
        let input = WeightInput { name: found.name.clone(), data_type: *data_type, dims };
        Ok(Weight { record, bytes: found.bytes as usize, input })
    };
    let part = |first: usize, count: usize| (first..first + count).map(weight).collect();
    index.segments.iter().map(|segment| part(segment.first_record, segment.records)).collect()
}

/// An ONNX model that gives back the bytes it is given, by which a provider copies them to where it computes.
pub fn copier() -> Vec<u8> {
    let dim = Dimension { dim_param: Some("n".to_owned()), ..Dimension::default() };
    let value = |name| {
        let shape = TensorShape { dim: vec![dim.clone()] };
        ValueInfoProto::of_tensor(name, data_type::UINT8, Some(shape))
    };
    let node = NodeProto {
        name: Some("copy".to_owned()),
        op_type: Some("Identity".to_owned()),
        input: vec!["bytes".to_owned()],
        output: vec!["copied".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("copier".to_owned()),
        node: vec![node],
        input: vec![value("bytes")],
        output: vec![value("copied")],
        ..GraphProto::default()
    };
    onnx::write(&ModelProto {
        ir_version: Some(10),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(21) }],
        ..ModelProto::default()
    })
}
