//! Whether an attention operator of the loaded library takes quantized caches: found out with the smallest graph that asks
//! for one, before a model is run for its scales.

use super::scales::Bits;
use crate::error::{Error, Result};
use crate::optimizations::Workshop;
use crate::package::onnx::{self, AttributeProto, ModelProto, OperatorSetIdProto, build, data_type};
use crate::runtime::{Session, SessionOptions};

/// Channels of the one head.
const WIDTH: usize = 16;

/// Refuses a library that does not.
///
/// # Errors
/// What it says (`unsupported`).
pub fn attention(workshop: &Workshop, bits: Bits) -> Result<()> {
    let options = SessionOptions::with_threads(workshop.threads);
    match Session::of_bytes(workshop.runtime, &onnx::write(&model(bits)), workshop.backend, &options) {
        Ok(_) => Ok(()),
        Err(error) => {
            let version = workshop.runtime.version().unwrap_or_else(|_| "of an unknown version".to_owned());
            let message =
                format!("GroupQueryAttention of ONNX Runtime {version} takes no caches of {} bits", bits.count());
            Err(Error::unsupported(message).because(error).hint("the runtime `cpu` that this program installs does"))
        }
    }
}

fn model(bits: Bits) -> ModelProto {
    let (element, width) = match bits {
        Bits::Eight => (data_type::INT8, WIDTH),
        Bits::Four => (data_type::UINT8, WIDTH / 2),
    };
    let inputs = ["query", "key", "value", "past_key", "past_value", "lengths", "total", "", "", "", "", "", "k", "v"];
    let mut node = build::node("GroupQueryAttention", &inputs, "output");
    node.domain = Some("com.microsoft".to_owned());
    node.output.extend(["present_key".to_owned(), "present_value".to_owned()]);
    let ints = [("num_heads", 1), ("kv_num_heads", 1), ("kv_cache_bit_width", bits.count().into())];
    node.attribute.extend(ints.map(|(name, value)| AttributeProto::of_int(name, value)));
    node.attribute.extend(["k_quant_type", "v_quant_type"].map(|name| AttributeProto::of_string(name, "PER_TENSOR")));
    let float = |name: &str| build::tensor(name, data_type::FLOAT, &build::dims(&format!("batch new {WIDTH}")));
    let cache =
        |name: &str, tokens: &str| build::tensor(name, element, &build::dims(&format!("batch 1 {tokens} {width}")));
    let number = |name: &str, dims: &str| build::tensor(name, data_type::INT32, &build::dims(dims));
    let inputs = vec![
        float("query"),
        float("key"),
        float("value"),
        cache("past_key", "past"),
        cache("past_value", "past"),
        number("lengths", "batch"),
        number("total", ""),
    ];
    let outputs = vec![float("output"), cache("present_key", "all"), cache("present_value", "all")];
    let scales = ["k", "v"].map(|name| build::floats(name, &[1], &[0.1])).to_vec();
    let mut model = build::model(vec![node], inputs, outputs, scales);
    let domain = Some("com.microsoft".to_owned());
    model.opset_import.push(OperatorSetIdProto { domain, version: Some(1) });
    model
}
