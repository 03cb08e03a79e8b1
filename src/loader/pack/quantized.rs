//! Which quantized products the kernels can compute, and what their constants are.

use crate::loader::kernels;
use crate::package::onnx::Source;
use crate::package::onnx::{NodeProto, data_type};
use crate::package::shards::NBits;

/// ONNX Runtime's own operators.
pub const CONTRIB: &str = "com.microsoft";

/// A `MatMulNBits` whose weights are constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    /// Its shape; whether scales fit two bytes is not known yet.
    pub shape: NBits,
    /// The constants' names.
    pub codes: String,
    /// One a block.
    pub scales: String,
    /// One a block, packed.
    pub zero_points: Option<String>,
    /// Added to each row of the result: any tensor.
    pub bias: Option<String>,
}

/// A `QMoE` whose weights are constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    /// Experts.
    pub experts: u32,
    /// An expert's first matrix.
    pub gate_up: NBits,
    /// An expert's second matrix.
    pub down: NBits,
    /// The constants' names: codes and scales of the first matrices, then of the second ones.
    pub constants: [String; 4],
    /// Experts a token.
    pub k: i64,
    /// Whether the chosen weights are divided by their sum.
    pub normalize: bool,
    /// The tensor of mixing weights, where they are not the scores' softmax.
    pub mixing: Option<String>,
}

/// What a quantized node is to the kernels: a reason is why they cannot compute it.
pub type Recognised<T> = std::result::Result<T, &'static str>;

const OTHER_SHAPE: &str = "its sizes are none that the kernels take";
const OTHER_ROUNDING: &str = "its accuracy_level does not ask for activations of 8 bits (see --int8-activations)";

/// Reads a `MatMulNBits`.
pub fn product(node: &NodeProto, source: &Source, any_level: bool) -> Recognised<Product> {
    let size = |name| node.int(name).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
    let (Some(rows), Some(columns), Some(block)) = (size("N"), size("K"), size("block_size")) else {
        return Err("its sizes are not stated");
    };
    let bits = bits(node.int("bits"))?;
    level(node, any_level)?;
    if node.input_at(4).is_some() {
        return Err("its blocks are permuted (g_idx)");
    }
    if node.int("weight_prepacked").is_some_and(|prepacked| prepacked != 0) {
        return Err("its weights are packed for another program");
    }
    let shape = NBits { rows, columns, block, bits, zero_points: node.input_at(3).is_some(), half_scales: false };
    kernels::check(&shape).map_err(|_| OTHER_SHAPE)?;
    let codes = constant(node, 1, source, data_type::UINT8, code_bytes(&shape))?;
    let scales = constant(node, 2, source, data_type::FLOAT, rows as u64 * shape.blocks() as u64 * 4)?;
    let zero_points = match node.input_at(3) {
        None => None,
        Some(_) => {
            let row = (shape.blocks() * usize::from(bits)).div_ceil(8);
            Some(constant(node, 3, source, data_type::UINT8, (rows * row) as u64)?)
        }
    };
    Ok(Product { shape, codes, scales, zero_points, bias: node.input_at(5).map(str::to_owned) })
}

/// Reads a `QMoE`: `silu(gate) · up` with rows interleaved, without biases.
pub fn mixture(node: &NodeProto, source: &Source, any_level: bool) -> Recognised<Mixture> {
    let plain = node.string("activation_type") == Some(b"swiglu")
        && node.int("swiglu_fusion") == Some(1)
        && node.float("activation_alpha") == Some(1.0)
        && node.float("activation_beta") == Some(0.0)
        && node.float("swiglu_limit").is_none_or(f32::is_infinite);
    if !plain {
        return Err("its activation is not silu(gate) · up with interleaved rows");
    }
    if node.int("use_sparse_mixer").is_some_and(|sparse| sparse != 0) {
        return Err("its router is a sparse mixer");
    }
    if node.string("quant_type").is_some_and(|kind| kind != b"int") {
        return Err("its weights are not integers");
    }
    if [4, 7, 8, 9, 10, 11, 12, 13].into_iter().any(|place| node.input_at(place).is_some()) {
        return Err("its experts have biases, zero points or a third matrix");
    }
    level(node, any_level)?;
    let bits = bits(node.int("expert_weight_bits"))?;
    let block = node.int("block_size").and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let dims = |place| node.input_at(place).and_then(|name| source.tensor(name)).map_or(&[][..], |found| &found.dims);
    let (&[experts, two_widths, _], &[_, hidden, _]) = (dims(2), dims(5)) else {
        return Err("its weights are not constants of three dimensions");
    };
    let (rows, hidden) = (two_widths as usize, hidden as usize);
    let shape = |rows, columns| NBits { rows, columns, block, bits, zero_points: false, half_scales: false };
    let (gate_up, down) = (shape(rows, hidden), shape(hidden, rows / 2));
    if kernels::check(&gate_up).and(kernels::check(&down)).is_err() {
        return Err(OTHER_SHAPE);
    }
    if !rows.is_multiple_of(2) || !hidden.is_multiple_of(block) || !(rows / 2).is_multiple_of(block) {
        return Err("its rows are no whole number of blocks");
    }
    let scale_bytes = |shape: &NBits| experts * (shape.rows * shape.blocks() * 4) as u64;
    let constants = [
        constant(node, 2, source, data_type::UINT8, experts * code_bytes(&gate_up))?,
        constant(node, 3, source, data_type::FLOAT, scale_bytes(&gate_up))?,
        constant(node, 5, source, data_type::UINT8, experts * code_bytes(&down))?,
        constant(node, 6, source, data_type::FLOAT, scale_bytes(&down))?,
    ];
    let k = node.int("k").unwrap_or(1);
    if k < 1 || k as u64 > experts {
        return Err("it chooses more experts than there are");
    }
    let normalize = node.int("normalize_routing_weights").is_some_and(|normalize| normalize != 0);
    let mixing = node.input_at(14).map(str::to_owned);
    let experts = u32::try_from(experts).map_err(|_| "it has too many experts")?;
    Ok(Mixture { experts, gate_up, down, constants, k, normalize, mixing })
}

/// Bytes of a matrix's codes as ONNX lays them out: whole blocks.
pub fn code_bytes(shape: &NBits) -> u64 {
    (shape.rows * shape.blocks() * shape.block * usize::from(shape.bits) / 8) as u64
}

fn bits(stated: Option<i64>) -> Recognised<u8> {
    match stated.unwrap_or(4) {
        4 => Ok(4),
        8 => Ok(8),
        _ => Err("its codes have neither 4 nor 8 bits"),
    }
}

fn level(node: &NodeProto, any: bool) -> Recognised<()> {
    if any || node.int("accuracy_level") == Some(4) { Ok(()) } else { Err(OTHER_ROUNDING) }
}

/// The name of a constant of that type and length.
fn constant(node: &NodeProto, place: usize, source: &Source, data_type: i32, bytes: u64) -> Recognised<String> {
    let name = node.input_at(place).unwrap_or_default();
    let stored = source.tensor(name).ok_or("its weights are no constants")?;
    if stored.data_type != data_type {
        return Err(match stored.data_type {
            data_type::FLOAT16 | data_type::BFLOAT16 => "its activations have 16 bits",
            _ => "its weights are of a type that the kernels do not know",
        });
    }
    if stored.bytes != bytes { Err("its weights do not fit its sizes") } else { Ok(name.to_owned()) }
}
