//! Any graph, run on tensors of any type that are bound once.
//!
//! Inputs are made and bound before the first run, so that what a device needs is copied to it then and not again.
//! Outputs stay bound too: in the memory of the provider's device, or of the host. What ONNX Runtime gave an output in
//! the first run is what it writes in the next ones; where the shape may be another each time, it is asked to make a
//! new one, which is the only thing that is done for a run beside the run itself.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::sys;

use super::binding::{RawBinding, RawValue, c_name, check};
use super::buffers::Memory;
use super::handed::description;
use super::ort_error;
use super::session::Session;
use crate::cell::{Backend, ElementType};
use crate::error::{Error, Result};

/// A tensor in the host's memory, of a type and shape.
#[derive(Debug)]
pub struct HostTensor {
    // Before its memory, so that ONNX Runtime's value goes first.
    value: RawValue,
    memory: Option<Memory>,
    /// Its element type.
    pub element: ElementType,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// A tensor that a run made, copied out.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The graph's name.
    pub name: String,
    /// Its element type.
    pub element: ElementType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements.
    pub elements: OutputElements,
}

/// An output's elements.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputElements {
    /// Of a fixed width, as they lie in memory.
    Bytes(Vec<u8>),
    /// Texts.
    Texts(Vec<String>),
}

impl HostTensor {
    /// A tensor of numbers or truth values, all zero; [`HostTensor::bytes_mut`] fills it.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn new(element: ElementType, shape: &[u64]) -> Result<Self> {
        let count = shape.iter().copied().fold(1, u64::saturating_mul);
        let bytes = usize::try_from(count.saturating_mul(element.size() as u64));
        let bytes = bytes.ok().filter(|bytes| *bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| Error::new(format!("no memory holds a tensor of the shape {shape:?}")))?;
        let memory = Memory::new(bytes)?;
        let info = host_memory()?;
        let dims: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let mut value = std::ptr::null_mut();
        // SAFETY: the memory has these bytes and outlives the value: it is a later field of the same tensor.
        unsafe {
            check((ort::api().CreateTensorWithDataAsOrtValue)(
                info.ptr(),
                memory.region().start().as_ptr().cast(),
                bytes,
                dims.as_ptr(),
                dims.len(),
                element_type(element),
                &mut value,
            ))
        }
        .map_err(|error| ort_error(format!("cannot make a tensor of {element} of the shape {shape:?}"), error))?;
        Ok(Self { value: RawValue(value), memory: Some(memory), element, shape: shape.to_vec() })
    }

    /// A tensor of texts, as many as the shape has elements.
    ///
    /// # Errors
    /// A text with a zero byte, another number of texts.
    pub fn of_texts(shape: &[u64], texts: &[String]) -> Result<Self> {
        if shape.iter().copied().fold(1, u64::saturating_mul) != texts.len() as u64 {
            return Err(Error::new(format!("{} texts do not fill the shape {shape:?}", texts.len())));
        }
        let dims: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let texts = texts.iter().map(|text| CString::new(text.as_str()));
        let texts: Vec<CString> =
            texts.collect::<std::result::Result<_, _>>().map_err(|_| Error::new("a text holds a zero byte"))?;
        let starts: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        let allocator = Allocator::default();
        let mut value = std::ptr::null_mut();
        let failed = |error| ort_error(format!("cannot make a tensor of texts of the shape {shape:?}"), error);
        // SAFETY: the default allocator lives as long as the library; dims and the out-pointer for the call.
        unsafe {
            check((ort::api().CreateTensorAsOrtValue)(
                allocator.ptr().cast_mut(),
                dims.as_ptr(),
                dims.len(),
                element_type(ElementType::String),
                &mut value,
            ))
        }
        .map_err(failed)?;
        let value = RawValue(value);
        // SAFETY: as many texts as elements (checked above), each ending in a zero byte; they are copied.
        unsafe { check((ort::api().FillStringTensor)(value.0, starts.as_ptr(), starts.len())) }.map_err(failed)?;
        Ok(Self { value, memory: None, element: ElementType::String, shape: shape.to_vec() })
    }

    /// Its memory; empty for texts.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map(Memory::bytes_mut).unwrap_or_default()
    }

    /// The same, to read.
    pub fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map(Memory::bytes).unwrap_or_default()
    }
}

/// Everything that is bound to a session, ready to run again and again.
#[derive(Debug)]
pub struct Bound {
    // Before the tensors, so that the binding's references go first.
    binding: RawBinding,
    outputs: Vec<BoundOutput>,
    /// Memory in which outputs are made.
    place: MemoryInfo<'static>,
    on_host: bool,
    /// Outputs that are made anew each run, in their order.
    made: Vec<CString>,
    _inputs: Vec<HostTensor>,
}

#[derive(Debug)]
struct BoundOutput {
    name: String,
    element: ElementType,
}

impl Bound {
    /// Binds inputs and outputs by name; outputs are made in the host's memory where they are to be read, else where the
    /// provider computes.
    ///
    /// # Errors
    /// A name that the session does not have, a tensor that ONNX Runtime does not take.
    pub fn new(
        session: &Session,
        backend: &Backend,
        inputs: Vec<(String, HostTensor)>,
        outputs: &[(String, ElementType)],
        to_be_read: bool,
    ) -> Result<Self> {
        let mut binding = RawBinding::new(session)?;
        for (name, tensor) in &inputs {
            binding.bind_input(name, &tensor.value)?;
        }
        let on_host = to_be_read || session.uses_host_memory;
        let place = if on_host { host_memory()? } else { device_memory(backend)? };
        let mut bound = Self { binding, outputs: Vec::new(), place, on_host, made: Vec::new(), _inputs: Vec::new() };
        for (name, element) in outputs {
            bound.await_output(&c_name(name)?)?;
            bound.outputs.push(BoundOutput { name: name.clone(), element: *element });
        }
        bound._inputs = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        Ok(bound)
    }

    /// After a first run: keeps what it made of the outputs chosen, by name and shape, as their memory for all further
    /// runs; the others are made anew each time.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn keep_outputs(&mut self, keeps: impl Fn(&str, &[u64]) -> bool) -> Result<()> {
        let values = self.binding.values()?;
        self.made.clear();
        for (output, value) in self.outputs.iter().zip(&values) {
            let shape: Vec<u64> = description(value)?.1.iter().map(|size| (*size).max(0) as u64).collect();
            if output.element != ElementType::String && keeps(&output.name, &shape) {
                self.binding.bind_output(&output.name, value)?;
            } else {
                self.made.push(c_name(&output.name)?);
            }
        }
        Ok(())
    }

    /// One run. Nothing is allocated for it here.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    #[inline]
    pub fn run(&mut self, session: &mut Session) -> Result<()> {
        // What an output was in the last run would be taken as its memory for the next.
        for place in 0..self.made.len() {
            self.await_output(&self.made[place])?;
        }
        self.binding.run(session)
    }

    /// Copies of what the last run made, in the order of the outputs, which were bound to be read.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    ///
    /// # Panics
    /// Outputs on a device: a bug of the caller.
    pub fn outputs(&self) -> Result<Vec<Output>> {
        assert!(self.on_host, "outputs that were not bound to be read");
        let values = self.binding.values()?;
        self.outputs.iter().zip(&values).map(|(output, value)| self.read(output, value)).collect()
    }

    fn await_output(&self, name: &CStr) -> Result<()> {
        // SAFETY: binding, name and memory description are alive for the call.
        unsafe {
            check((ort::api().BindOutputToDevice)(self.binding.pointer.as_ptr(), name.as_ptr(), self.place.ptr()))
        }
        .map_err(|error| ort_error(format!("cannot bind the output `{}`", name.to_string_lossy()), error))
    }

    fn read(&self, output: &BoundOutput, value: &RawValue) -> Result<Output> {
        let failed = |error| ort_error(format!("cannot read the output `{}`", output.name), error);
        let (_, dims) = description(value)?;
        let shape: Vec<u64> = dims.iter().map(|size| (*size).max(0) as u64).collect();
        let count = shape.iter().copied().fold(1, u64::saturating_mul) as usize;
        let elements = if output.element == ElementType::String {
            OutputElements::Texts(texts(value, count).map_err(failed)?)
        } else {
            OutputElements::Bytes(self.bytes(value, count * output.element.size()).map_err(failed)?)
        };
        Ok(Output { name: output.name.clone(), element: output.element, shape, elements })
    }

    fn bytes(&self, value: &RawValue, count: usize) -> ort::Result<Vec<u8>> {
        let mut start = std::ptr::null_mut();
        // SAFETY: the value is a tensor, alive; the out-pointer is valid.
        unsafe { check((ort::api().GetTensorMutableData)(value.0, &mut start)) }?;
        let Some(start) = NonNull::new(start.cast::<u8>()).filter(|_| count > 0) else { return Ok(Vec::new()) };
        // SAFETY: the output is in the host's memory (`outputs` asserts it), of a type with this width
        // and as many elements as its shape has.
        Ok(unsafe { std::slice::from_raw_parts(start.as_ptr().cast_const(), count) }.to_vec())
    }
}

fn host_memory() -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
        .map_err(|error| ort_error("cannot describe host memory", error))
}

/// TensorRT computes in CUDA's memory.
fn device_memory(backend: &Backend) -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(
        AllocationDevice::CUDA,
        super::device::device_id(backend)?,
        AllocatorType::Device,
        MemoryType::Default,
    )
    .map_err(|error| ort_error("cannot describe the device's memory", error))
}

fn element_type(element: ElementType) -> sys::ONNXTensorElementDataType {
    use sys::ONNXTensorElementDataType as Type;
    match element {
        ElementType::Float32 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        ElementType::Float64 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        ElementType::Float16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        ElementType::BFloat16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        ElementType::Int8 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        ElementType::Int16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        ElementType::Int32 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        ElementType::Int64 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ElementType::UInt8 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        ElementType::UInt16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        ElementType::UInt32 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        ElementType::UInt64 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        ElementType::Bool => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        ElementType::String => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

/// The texts of a tensor.
fn texts(value: &RawValue, count: usize) -> ort::Result<Vec<String>> {
    let (mut length, mut starts) = (0, vec![0; count]);
    // SAFETY: the value is a tensor of texts, alive; the out-pointers are valid, and of the lengths given.
    let letters = unsafe {
        check((ort::api().GetStringTensorDataLength)(value.0, &mut length))?;
        let mut letters = vec![0_u8; length];
        check((ort::api().GetStringTensorContent)(
            value.0,
            letters.as_mut_ptr().cast(),
            length,
            starts.as_mut_ptr(),
            count,
        ))?;
        letters
    };
    let ends = starts.iter().copied().skip(1).chain([length]);
    let text = |(start, end): (usize, usize)| {
        let bytes = letters.get(start..end).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    Ok(starts.iter().copied().zip(ends).map(text).collect())
}
