//! The operators that take weights, as ONNX Runtime sees them: this file only moves pointers and shapes.

use std::ops::Deref;
use std::sync::Arc;

use ort::AsPointer;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::super::binding::check;
use super::calls::{Calls, floats, input, missing_output};
use super::{Experts, Matrix, Routing, Tensor, Weights};

/// Adds every operator.
pub(super) fn add_to(domain: OperatorDomain, weights: &Arc<dyn Weights>, calls: &Calls) -> ort::Result<OperatorDomain> {
    let shared = || Shared { weights: Arc::clone(weights), calls: calls.clone() };
    let mut domain = domain.add(MatrixOperator(shared()))?.add(ExpertsOperator(shared()))?;
    for (number, element) in ELEMENTS {
        domain = domain.add(WeightOperator { name: format!("Weight{number}"), element: *element, shared: shared() })?;
    }
    Ok(domain)
}

/// Element types of tensors that are handed to stock operators, by ONNX's numbers.
const ELEMENTS: &[(i32, TensorElementType)] = &[
    (1, TensorElementType::Float32),
    (2, TensorElementType::Uint8),
    (3, TensorElementType::Int8),
    (6, TensorElementType::Int32),
    (7, TensorElementType::Int64),
    (10, TensorElementType::Float16),
    (16, TensorElementType::Bfloat16),
    (21, TensorElementType::Uint4),
    (22, TensorElementType::Int4),
];

/// What every operator holds.
#[derive(Clone)]
struct Shared {
    weights: Arc<dyn Weights>,
    calls: Calls,
}

impl Deref for Shared {
    type Target = Calls;

    fn deref(&self) -> &Calls {
        &self.calls
    }
}

fn record(attributes: &KernelContext<'_>) -> ort::Result<String> {
    attributes.get::<String>("record").ok_or_else(|| ort::Error::new("the attribute `record` is missing"))
}

struct MatrixOperator(Shared);

impl Operator for MatrixOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "Matrix"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, attributes: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let shared = self.0.clone();
        let name = record(attributes)?;
        let matrix = shared.guard(&name, || shared.weights.matrix(&name))?;
        Ok(Box::new(move |context: &ComputeContext| multiply(&shared, &name, &*matrix, context)))
    }
}

fn multiply(shared: &Shared, name: &str, matrix: &dyn Matrix, context: &ComputeContext) -> ort::Result<()> {
    let (rows, columns) = matrix.shape();
    let x = input(context, 0)?;
    let (dims, x) = floats(&x)?;
    if dims.last() != Some(&(columns as i64)) {
        return Err(ort::Error::new(format!("`{name}` wants {columns} inputs, and got the shape {dims:?}")));
    }
    let mut shape = dims.to_vec();
    *shape.last_mut().expect("checked above") = rows as i64;
    let mut output = context.output(0, shape)?.ok_or_else(missing_output)?;
    let (_, out) = output.try_extract_tensor_mut::<f32>()?;
    let pool = shared.pool(context);
    shared.guard(name, || matrix.multiply(x, out, &pool))
}

struct ExpertsOperator(Shared);

impl Operator for ExpertsOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "Experts"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let floats = TensorElementType::Float32;
        [OperatorInput::required(floats), OperatorInput::required(floats), OperatorInput::optional(floats)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, attributes: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let shared = self.0.clone();
        let name = record(attributes)?;
        let number = |key: &str| {
            attributes.get::<i64>(key).ok_or_else(|| ort::Error::new(format!("the attribute `{key}` is missing")))
        };
        let k = usize::try_from(number("k")?).map_err(|_| ort::Error::new("`k` is negative"))?;
        let routing = Routing { k, normalize: number("normalize")? != 0 };
        let experts = shared.guard(&name, || shared.weights.experts(&name, routing))?;
        Ok(Box::new(move |context: &ComputeContext| mix(&shared, &name, &*experts, context)))
    }
}

fn mix(shared: &Shared, name: &str, experts: &dyn Experts, context: &ComputeContext) -> ort::Result<()> {
    let (hidden, count) = experts.shape();
    let (x, scores) = (input(context, 0)?, input(context, 1)?);
    let ((dims, x), (score_dims, scores)) = (floats(&x)?, floats(&scores)?);
    let mixing = if context.num_inputs()? > 2 { context.input(2)? } else { None };
    let mixing = mixing.as_ref().map(floats).transpose()?;
    let tokens = x.len() / hidden.max(1);
    let fits = dims.last() == Some(&(hidden as i64)) && score_dims.last() == Some(&(count as i64));
    if !fits || scores.len() != tokens * count || mixing.is_some_and(|(_, mixing)| mixing.len() != scores.len()) {
        return Err(ort::Error::new(format!(
            "`{name}` wants {hidden} inputs and {count} scores a token, and got the shapes {dims:?} and {score_dims:?}"
        )));
    }
    let mut output = context.output(0, dims.to_vec())?.ok_or_else(missing_output)?;
    let (_, out) = output.try_extract_tensor_mut::<f32>()?;
    let pool = shared.pool(context);
    shared.guard(name, || experts.mix(x, scores, mixing.map(|(_, mixing)| mixing), out, &pool))
}

struct WeightOperator {
    name: String,
    element: TensorElementType,
    shared: Shared,
}

impl Operator for WeightOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        []
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(self.element)]
    }

    fn create_kernel<'attr>(&self, attributes: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let shared = self.shared.clone();
        let name = record(attributes)?;
        let tensor = shared.guard(&name, || shared.weights.tensor(&name))?;
        Ok(Box::new(move |context: &ComputeContext| copy(&shared, &name, &*tensor, context)))
    }
}

fn copy(shared: &Shared, name: &str, tensor: &dyn Tensor, context: &ComputeContext) -> ort::Result<()> {
    let output = context.output(0, tensor.dims().to_vec())?.ok_or_else(missing_output)?;
    let mut start = std::ptr::null_mut();
    // SAFETY: the value is a tensor that ONNX Runtime just allocated, and the out-pointer is valid.
    unsafe { check((ort::api().GetTensorMutableData)(output.ptr().cast_mut(), &mut start)) }?;
    let bytes = tensor.bytes();
    if start.is_null() || bytes == 0 {
        return Ok(());
    }
    // SAFETY: ONNX Runtime allocated the output for these dimensions and the operator's element type, whose size in
    // bytes `Tensor::bytes` is (checked when the pack's index was read); nothing else holds it while we compute.
    let into = unsafe { std::slice::from_raw_parts_mut(start.cast(), bytes) };
    shared.guard(name, || tensor.copy_to(into))
}
