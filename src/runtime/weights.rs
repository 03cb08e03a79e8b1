//! Weights as inputs of a part's session: tensors over memory that others own, and what keeps that memory.

use std::ffi::CString;
use std::ops::Range;
use std::sync::Arc;

use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys;

use super::binding::{RawValue, c_name, check};
use super::device::Loan;
use super::ort_error;
use crate::error::{Error, Result};

/// Bytes that someone else owns.
///
/// # Safety
/// While the value lives, even when it is moved, `bytes` gives the same address and length, at a multiple of 64, and
/// nobody writes there.
pub unsafe trait Lent: Send + Sync + std::fmt::Debug {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

/// What a weight is called and looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightInput {
    /// The graph's input.
    pub name: String,
    /// ONNX's number of the element type.
    pub data_type: i32,
    /// Dimensions.
    pub dims: Vec<i64>,
}

/// The weights of a part, ready to be bound. Whoever holds them keeps their memory as it is.
#[derive(Debug, Default)]
pub struct PartWeights {
    // Declared first: values go before the memory that they point to.
    values: Vec<(CString, RawValue)>,
    lent: Vec<Box<dyn Lent>>,
    loans: Vec<Arc<Loan>>,
}

// SAFETY: values point to memory that only moves with the thing it belongs to and that is only read; a value itself is
// counted atomically by ONNX Runtime and never changed here.
unsafe impl Send for PartWeights {}
// SAFETY: as above.
unsafe impl Sync for PartWeights {}

impl PartWeights {
    /// Adds a weight in host memory, where it is: nothing is copied.
    ///
    /// # Errors
    /// An element type that ONNX Runtime does not know, bytes that do not fit the dimensions.
    pub fn lend(&mut self, input: &WeightInput, bytes: Box<dyn Lent>) -> Result<()> {
        let memory = host_memory()?;
        let (start, length) = (bytes.bytes().as_ptr(), bytes.bytes().len());
        // SAFETY: `Lent` promises that the bytes stay there, aligned for every element type, as long as `bytes`, which
        // is kept beside the value and dropped after it.
        let value = unsafe { value(input, &memory, start, length)? };
        self.lent.push(bytes);
        self.push(input, value)
    }

    /// Adds a weight that was copied to a block.
    ///
    /// # Errors
    /// As [`PartWeights::lend`].
    ///
    /// # Panics
    /// A range beyond the block: a bug of the caller.
    pub fn place(&mut self, input: &WeightInput, loan: &Arc<Loan>, range: Range<usize>) -> Result<()> {
        let block = loan.block();
        assert!(range.start <= range.end && range.end <= block.bytes(), "a weight beyond its block");
        let host = host_memory()?;
        // SAFETY: in bounds (asserted). The block is kept beside the value, and not written while it is on loan: that
        // takes `&mut Block`.
        let value =
            unsafe { value(input, block.description().unwrap_or(&host), block.start().add(range.start), range.len())? };
        self.loans.push(Arc::clone(loan));
        self.push(input, value)
    }

    fn push(&mut self, input: &WeightInput, value: RawValue) -> Result<()> {
        self.values.push((c_name(&input.name)?, value));
        Ok(())
    }

    /// Names and values.
    pub(super) fn values(&self) -> &[(CString, RawValue)] {
        &self.values
    }
}

fn host_memory() -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
        .map_err(|error| ort_error("cannot describe host memory", error))
}

/// # Safety
/// The bytes outlive the value, in memory of that kind, and are not written while it lives.
unsafe fn value(input: &WeightInput, memory: &MemoryInfo, start: *const u8, bytes: usize) -> Result<RawValue> {
    let element = element_type(input.data_type).ok_or_else(|| {
        Error::unsupported(format!("elements of type {} of `{}` cannot be bound", input.data_type, input.name))
            .hint("pack with `--form operators`, or export the model at another precision")
    })?;
    let mut value = std::ptr::null_mut();
    // SAFETY: the caller's promise; ONNX Runtime compares the length with the dimensions, and weights are inputs, which
    // it does not write.
    unsafe {
        check((ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            start.cast_mut().cast(),
            bytes,
            input.dims.as_ptr(),
            input.dims.len(),
            element,
            &mut value,
        ))
    }
    .map_err(|error| ort_error(format!("cannot make a tensor for the weight `{}`", input.name), error))?;
    Ok(RawValue(value))
}

/// ONNX's numbers and ONNX Runtime's are the same for all types that tensors of a graph have; strings are no numbers.
fn element_type(data_type: i32) -> Option<sys::ONNXTensorElementDataType> {
    use sys::ONNXTensorElementDataType as Type;
    Some(match data_type {
        1 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        2 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        3 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        4 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        5 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        6 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        7 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        9 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        10 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        11 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        12 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        13 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        17 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        18 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ,
        19 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
        20 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ,
        21 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4,
        22 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::element_type;

    #[test]
    fn element_types_keep_their_numbers() {
        for number in 0..40 {
            if let Some(element) = element_type(number) {
                assert_eq!(element as i32, number);
            }
        }
        assert!(element_type(8).is_none() && element_type(0).is_none() && element_type(-1).is_none());
        assert!([1, 2, 3, 10, 16, 21, 22].into_iter().all(|number| element_type(number).is_some()));
    }
}
