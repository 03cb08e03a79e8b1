//! Matrix products through ONNX Runtime, for the arithmetic ceiling of a machine.
//!
//! The graph is one node over one weight, made in memory: MatMul for floating point, MatMulNBits for weight-only
//! quantization, at a shape that keeps the kernel busy (512 rows of 2048 by 2048).

use std::time::Instant;

use ort::editor::{Graph, Model, Node, ONNX_DOMAIN, Opset};
use ort::memory::Allocator;
use ort::operator::Attribute;
use ort::session::Session;
use ort::value::{DynTensor, Outlet, Shape, SymbolicDimensions, Tensor, TensorElementType, ValueType};

use super::{Runtime, SessionOptions, ort_error};
use crate::cell::Precision;
use crate::error::Result;

const ROWS: usize = 512;
const INNER: usize = 2048;
const COLUMNS: usize = 2048;
const BLOCK: usize = 32;

/// Operations of one product: a multiplication and an addition for each row, column and inner element.
pub const FLOPS: f64 = 2.0 * (ROWS * INNER * COLUMNS) as f64;

/// Seconds of each of `repetitions` products after one unmeasured, with weights at this precision on the CPU provider.
///
/// # Errors
/// A library without the kernel.
pub fn time_products(runtime: &Runtime, precision: Precision, threads: u32, repetitions: u32) -> Result<Vec<f64>> {
    let mut session = session(runtime, precision, threads)
        .map_err(|error| ort_error(format!("cannot make a {precision} matrix product"), error))?;
    let mut times = Vec::new();
    for repetition in 0..=repetitions {
        let input = activations(precision).map_err(|error| ort_error("cannot make the product's input", error))?;
        let start = Instant::now();
        session.run(ort::inputs![input]).map_err(|error| ort_error("the matrix product failed", error))?;
        if repetition > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

fn float_type(precision: Precision) -> TensorElementType {
    if precision == Precision::Fp16 { TensorElementType::Float16 } else { TensorElementType::Float32 }
}

/// Small values that differ: some kernels are faster on zeros.
fn pattern(index: usize) -> f32 {
    (index % 251) as f32 / 251.0 - 0.5
}

fn activations(precision: Precision) -> ort::Result<DynTensor> {
    floats(precision, [ROWS, INNER])
}

fn floats(precision: Precision, shape: [usize; 2]) -> ort::Result<DynTensor> {
    let allocator = Allocator::default();
    if precision == Precision::Fp16 {
        let mut tensor = Tensor::<half::f16>::new(&allocator, shape)?;
        for (index, value) in tensor.extract_tensor_mut().1.iter_mut().enumerate() {
            *value = half::f16::from_f32(pattern(index));
        }
        Ok(tensor.upcast())
    } else {
        let mut tensor = Tensor::<f32>::new(&allocator, shape)?;
        for (index, value) in tensor.extract_tensor_mut().1.iter_mut().enumerate() {
            *value = pattern(index);
        }
        Ok(tensor.upcast())
    }
}

fn bytes(shape: [usize; 3]) -> ort::Result<DynTensor> {
    let mut tensor = Tensor::<u8>::new(&Allocator::default(), shape)?;
    for (index, value) in tensor.extract_tensor_mut().1.iter_mut().enumerate() {
        *value = (index * 37 % 256) as u8;
    }
    Ok(tensor.upcast())
}

fn session(runtime: &Runtime, precision: Precision, threads: u32) -> ort::Result<Session> {
    let outlet = |name: &str, columns: usize| {
        let shape = Shape::new([ROWS as i64, columns as i64]);
        let dimension_symbols = SymbolicDimensions::empty(2);
        Outlet::new(name, ValueType::Tensor { ty: float_type(precision), shape, dimension_symbols })
    };
    let mut graph = Graph::new()?;
    graph.set_inputs([outlet("a", INNER)])?;
    graph.set_outputs([outlet("y", COLUMNS)])?;
    let node = match precision {
        Precision::Fp32 | Precision::Fp16 => {
            graph.add_initializer("b", floats(precision, [INNER, COLUMNS])?, false)?;
            Node::new("MatMul", ONNX_DOMAIN, "product", ["a", "b"], ["y"], [])?
        }
        Precision::Int8 | Precision::Int4 => {
            let bits = if precision == Precision::Int4 { 4 } else { 8 };
            let blocks = INNER / BLOCK;
            graph.add_initializer("b", bytes([COLUMNS, blocks, BLOCK * bits / 8])?, false)?;
            graph.add_initializer("scales", floats(Precision::Fp32, [COLUMNS, blocks])?, false)?;
            let attributes =
                [("K", INNER), ("N", COLUMNS), ("bits", bits), ("block_size", BLOCK), ("accuracy_level", 4)]
                    .into_iter()
                    .map(|(name, value)| Attribute::new(name, value as i64))
                    .collect::<ort::Result<Vec<_>>>()?;
            Node::new("MatMulNBits", "com.microsoft", "product", ["a", "b", "scales"], ["y"], attributes)?
        }
    };
    graph.add_node(node)?;
    let mut model = Model::new([Opset::new(ONNX_DOMAIN, 21)?, Opset::new("com.microsoft", 1)?])?;
    model.set_graph(graph)?;
    let options = SessionOptions::with_threads(threads);
    let builder = super::session::builder(runtime, &options).map_err(|error| ort::Error::new(error.chain()))?;
    model.into_session(&builder)
}
