//! The operators that do in one pass what takes several of ONNX Runtime's, as ONNX Runtime sees them.

use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::calls::{Calls, floats, input, missing_output};
use super::math;
use super::parallel::{Shared, rows};

/// Adds every operator.
pub(super) fn add_to(domain: OperatorDomain, calls: &Calls) -> ort::Result<OperatorDomain> {
    domain.add(HeadNorm(calls.clone()))?.add(SwiGlu(calls.clone()))?.add(SkipNorm(calls.clone()))
}

const INPUT: OperatorInput = OperatorInput::required(TensorElementType::Float32);
const OUTPUT: OperatorOutput = OperatorOutput::required(TensorElementType::Float32);

struct HeadNorm(Calls);

/// What a node of [`HeadNorm`] says.
#[derive(Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    epsilon: f32,
}

impl Operator for HeadNorm {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "HeadNorm"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [INPUT, INPUT, INPUT]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OUTPUT, OUTPUT, OUTPUT]
    }

    fn create_kernel<'attr>(&self, attributes: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let size = |key: &str| {
            let size = attributes.get::<i64>(key).and_then(|size| usize::try_from(size).ok());
            size.ok_or_else(|| ort::Error::new(format!("the attribute `{key}` is missing or negative")))
        };
        let heads = Heads { queries: size("queries")?, keys: size("keys")?, epsilon: epsilon(attributes)? };
        let calls = self.0.clone();
        Ok(Box::new(move |context: &ComputeContext| norm_heads(&calls, heads, context)))
    }
}

fn norm_heads(calls: &Calls, heads: Heads, context: &ComputeContext) -> ort::Result<()> {
    let Heads { queries, keys, epsilon } = heads;
    let (packed, query_weight, key_weight) = (input(context, 0)?, input(context, 1)?, input(context, 2)?);
    let ((dims, packed), (_, query_weight), (_, key_weight)) =
        (floats(&packed)?, floats(&query_weight)?, floats(&key_weight)?);
    let head = query_weight.len();
    let width = dims.last().map_or(0, |size| *size as usize);
    let whole = head > 0 && queries.is_multiple_of(head) && keys.is_multiple_of(head);
    if !whole || key_weight.len() != head || width < queries + keys {
        return Err(ort::Error::new(format!(
            "HeadNorm of {queries} and {keys} in heads of {head} and {} does not fit the shape {dims:?}",
            key_weight.len()
        )));
    }
    let values = width - queries - keys;
    let shape = |last: usize| [&dims[..dims.len() - 1], &[last as i64]].concat();
    let mut query_out = context.output(0, shape(queries))?.ok_or_else(missing_output)?;
    let mut key_out = context.output(1, shape(keys))?.ok_or_else(missing_output)?;
    let mut value_out = context.output(2, shape(values))?.ok_or_else(missing_output)?;
    let query_out = Shared::new(query_out.try_extract_tensor_mut::<f32>()?.1);
    let key_out = Shared::new(key_out.try_extract_tensor_mut::<f32>()?.1);
    let value_out = Shared::new(value_out.try_extract_tensor_mut::<f32>()?.1);
    calls.guard("HeadNorm", || {
        rows(packed.len() / width.max(1), width, &calls.pool(context), &|range| {
            for row in range {
                let all = &packed[row * width..][..width];
                let (query, rest) = all.split_at(queries);
                let (key, value) = rest.split_at(keys);
                // SAFETY: each row belongs to one task, and the outputs are borrowed until all are done.
                let (query_out, key_out, value_out) = unsafe {
                    (
                        query_out.slice(row * queries, queries),
                        key_out.slice(row * keys, keys),
                        value_out.slice(row * values, values),
                    )
                };
                for (head, out) in query.chunks_exact(head).zip(query_out.chunks_exact_mut(head)) {
                    math::rms_norm(head, query_weight, epsilon, out);
                }
                for (head, out) in key.chunks_exact(head).zip(key_out.chunks_exact_mut(head)) {
                    math::rms_norm(head, key_weight, epsilon, out);
                }
                value_out.copy_from_slice(value);
            }
        });
        Ok(())
    })
}

struct SwiGlu(Calls);

impl Operator for SwiGlu {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "SwiGlu"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [INPUT, INPUT]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OUTPUT]
    }

    fn create_kernel<'attr>(&self, _attributes: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let calls = self.0.clone();
        Ok(Box::new(move |context: &ComputeContext| gate(&calls, context)))
    }
}

fn gate(calls: &Calls, context: &ComputeContext) -> ort::Result<()> {
    let (gate, up) = (input(context, 0)?, input(context, 1)?);
    let ((dims, gate), (up_dims, up)) = (floats(&gate)?, floats(&up)?);
    if dims != up_dims {
        return Err(ort::Error::new(format!("SwiGlu of the shapes {dims:?} and {up_dims:?}, which differ")));
    }
    let mut output = context.output(0, dims.to_vec())?.ok_or_else(missing_output)?;
    let out = Shared::new(output.try_extract_tensor_mut::<f32>()?.1);
    calls.guard("SwiGlu", || {
        rows(gate.len(), 1, &calls.pool(context), &|range| {
            // SAFETY: each element belongs to one task, and the output is borrowed until all are done.
            let out = unsafe { out.slice(range.start, range.len()) };
            math::gated(&gate[range.clone()], &up[range], out);
        });
        Ok(())
    })
}

struct SkipNorm(Calls);

impl Operator for SkipNorm {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "SkipNorm"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [INPUT, INPUT, INPUT]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OUTPUT, OUTPUT]
    }

    fn create_kernel<'attr>(&self, attributes: &KernelContext<'attr>) -> ort::Result<BoxedKernel<'attr>> {
        let (calls, epsilon) = (self.0.clone(), epsilon(attributes)?);
        Ok(Box::new(move |context: &ComputeContext| norm_sum(&calls, epsilon, context)))
    }
}

fn norm_sum(calls: &Calls, epsilon: f32, context: &ComputeContext) -> ort::Result<()> {
    let (x, skip, weight) = (input(context, 0)?, input(context, 1)?, input(context, 2)?);
    let ((dims, x), (skip_dims, skip), (_, weight)) = (floats(&x)?, floats(&skip)?, floats(&weight)?);
    let width = weight.len();
    // A skip without the batch's dimension, or with one of 1, is added to every row of the batch.
    let repeats = !skip.is_empty() && x.len().is_multiple_of(skip.len()) && skip.len().is_multiple_of(width.max(1));
    if dims.last() != Some(&(width as i64)) || (dims != skip_dims && !repeats) {
        return Err(ort::Error::new(format!(
            "SkipNorm of the shapes {dims:?} and {skip_dims:?} by {width} weights, which do not fit"
        )));
    }
    let mut normed = context.output(0, dims.to_vec())?.ok_or_else(missing_output)?;
    let mut sum = context.output(1, dims.to_vec())?.ok_or_else(missing_output)?;
    let normed = Shared::new(normed.try_extract_tensor_mut::<f32>()?.1);
    let sum = Shared::new(sum.try_extract_tensor_mut::<f32>()?.1);
    calls.guard("SkipNorm", || {
        rows(x.len() / width.max(1), width, &calls.pool(context), &|range| {
            for row in range {
                let at = row * width;
                // SAFETY: each row belongs to one task, and the outputs are borrowed until all are done.
                let (normed, sum) = unsafe { (normed.slice(at, width), sum.slice(at, width)) };
                math::add_norm(&x[at..][..width], &skip[at % skip.len()..][..width], weight, epsilon, sum, normed);
            }
        });
        Ok(())
    })
}

fn epsilon(attributes: &KernelContext<'_>) -> ort::Result<f32> {
    attributes.get::<f32>("epsilon").ok_or_else(|| ort::Error::new("the attribute `epsilon` is missing"))
}
