//! What one part of a model makes for later ones, of shapes that only the run knows: in memory as ONNX Runtime
//! allocated it, or, once it was moved, in a buffer of ours, from where it can leave for a while.

use ort::AsPointer;
use ort::sys;

use super::binding::{RawValue, c_name, check};
use super::bindings::{Bindings, dtype};
use super::buffers::BufferId;
use super::ort_error;
use crate::cell::Dtype;
use crate::error::{Error, Result};

/// A tensor that is handed over.
#[derive(Debug)]
pub(super) enum Handed {
    /// In ONNX Runtime's memory.
    Theirs { value: RawValue, bytes: usize },
    /// In a buffer of ours.
    Ours { buffer: BufferId, element: sys::ONNXTensorElementDataType, dims: Vec<i64>, bytes: usize },
}

/// A tensor that is handed over, as another process gets it.
#[derive(Debug)]
pub struct HandedTensor<'a> {
    /// ONNX's number of the element type.
    pub element: u8,
    /// Its dimensions.
    pub dims: Vec<i64>,
    /// Its elements.
    pub bytes: &'a [u8],
}

/// Element types that are handed over between processes: ONNX's number, ONNX Runtime's, bytes.
const ELEMENTS: &[(u8, sys::ONNXTensorElementDataType, usize)] = {
    use sys::ONNXTensorElementDataType as Type;
    &[
        (1, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4),
        (2, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1),
        (3, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1),
        (6, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4),
        (7, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8),
        (9, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1),
        (10, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2),
        (11, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8),
        (16, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, 2),
    ]
};

fn element_number(element: sys::ONNXTensorElementDataType) -> Option<u8> {
    ELEMENTS.iter().find(|(_, known, _)| *known == element).map(|(number, ..)| *number)
}

fn element_of(number: u8) -> Option<(sys::ONNXTensorElementDataType, usize)> {
    ELEMENTS.iter().find(|(known, ..)| *known == number).map(|(_, element, bytes)| (*element, *bytes))
}

impl Bindings {
    /// Lets ONNX Runtime allocate a part's output in its next run, to be handed over under that name.
    pub fn make(&mut self, part: usize, name: &str) -> Result<()> {
        self.await_output(part, name)?;
        let binding = &mut self.parts[part];
        let place = binding.note_output(name);
        if !binding.made.contains(&place) {
            binding.made.push(place);
        }
        Ok(())
    }

    fn await_output(&mut self, part: usize, name: &str) -> Result<()> {
        let (binding, c_name) = (&self.parts[part], c_name(name)?);
        let memory = self.made_in.as_ref().unwrap_or(&self.memory);
        // SAFETY: binding, name and memory description are alive for the call.
        unsafe { check((ort::api().BindOutputToDevice)(binding.pointer.as_ptr(), c_name.as_ptr(), memory.ptr())) }
            .map_err(|error| ort_error(format!("cannot bind the output `{name}`"), error))
    }

    /// Binds what an earlier part made under that name as this part's input.
    pub fn take(&mut self, part: usize, name: &str) -> Result<()> {
        let lacks = || Error::new(format!("no part has made `{name}` yet"));
        let moved;
        let value = match self.handed.get(name).ok_or_else(lacks)? {
            Handed::Theirs { value, .. } => value,
            Handed::Ours { buffer, element, dims, bytes } => {
                moved = self.value_in(*buffer, *element, dims, *bytes)?;
                &moved
            }
        };
        let binding = &mut self.parts[part];
        if !binding.taken.iter().any(|taken| taken == name) {
            binding.taken.push(name.to_owned());
        }
        binding.bind_input(name, value)
    }

    /// Lets go of what was handed over under that name.
    pub fn drop_handed(&mut self, name: &str) {
        self.handed.remove(name);
    }

    /// Lets go of all that was handed over.
    pub fn drop_all_handed(&mut self) {
        self.handed.clear();
    }

    /// Names and bytes of what ONNX Runtime's memory holds to be handed over.
    pub fn handed(&self) -> impl Iterator<Item = (&str, usize)> {
        self.handed.iter().filter_map(|(name, handed)| match handed {
            Handed::Theirs { bytes, .. } => Some((name.as_str(), *bytes)),
            Handed::Ours { .. } => None,
        })
    }

    /// The element type, where it is one that this program knows, and the last dimension of what is handed over under that
    /// name.
    pub fn handed_elements(&self, name: &str) -> Result<(Option<Dtype>, usize)> {
        let moved;
        let (element, dims) = match self.handed.get(name) {
            None => return Err(Error::new(format!("nothing is handed over as `{name}`; this is a bug"))),
            Some(Handed::Ours { element, dims, .. }) => (*element, dims),
            Some(Handed::Theirs { value, .. }) => {
                moved = description(value)?;
                (moved.0, &moved.1)
            }
        };
        Ok((dtype(element), dims.last().map_or(1, |size| (*size).max(0) as usize)))
    }

    /// Moves what is handed over under that name to a buffer, and gives ONNX Runtime's memory back.
    ///
    /// # Panics
    /// A buffer that is too short: a bug of the caller.
    pub fn move_handed(&mut self, name: &str, buffer: BufferId) -> Result<()> {
        let Some(Handed::Theirs { value, bytes }) = self.handed.get(name) else {
            return Err(Error::new(format!("`{name}` is not in ONNX Runtime's memory; this is a bug")));
        };
        assert!(self.made_in.is_none(), "only what is made in the host's memory is moved");
        let (bytes, (element, dims)) = (*bytes, description(value)?);
        let mut start = std::ptr::null_mut();
        // SAFETY: the value is a tensor, alive; the out-pointer is valid.
        unsafe { check((ort::api().GetTensorMutableData)(value.0, &mut start)) }
            .map_err(|error| ort_error(format!("cannot read `{name}`"), error))?;
        let memory = &mut self.buffers[buffer.0];
        // SAFETY: `make` asks for host memory; the tensor's bytes are written, and it lives until it is replaced below.
        let from = unsafe { std::slice::from_raw_parts(start.cast::<u8>().cast_const(), bytes) };
        memory.host_mut().expect("memory of the host")[..bytes].copy_from_slice(from);
        self.handed.insert(name.to_owned(), Handed::Ours { buffer, element, dims, bytes });
        Ok(())
    }

    /// Notes what a part made in the run that has just ended. Its binding holds nothing of that any more, nor of what
    /// it took: memory goes back with the last that is handed over.
    pub(super) fn collect(&mut self, part: usize) -> Result<()> {
        let binding = &self.parts[part];
        if !binding.made.is_empty() {
            let made: Vec<(String, RawValue)> = (binding.values()?.into_iter().enumerate())
                .filter(|(place, _)| binding.made.contains(place))
                .map(|(place, value)| (binding.outputs[place].clone(), value))
                .collect();
            for (name, value) in made {
                self.await_output(part, &name)?;
                let bytes = size(&value)?;
                self.handed.insert(name, Handed::Theirs { value, bytes });
            }
        }
        if self.parts[part].taken.is_empty() {
            return Ok(());
        }
        let nothing = nothing(&self.memory)?;
        let binding = &mut self.parts[part];
        // ONNX Runtime offers to clear all inputs or none; those that stay bound would have to be bound again.
        for name in std::mem::take(&mut binding.taken) {
            binding.bind_input(&name, &nothing)?;
        }
        Ok(())
    }

    /// What is handed over under that name, in the host's memory.
    ///
    /// # Errors
    /// Nothing of that name; elements that have no number of bytes of their own.
    pub fn handed_over(&self, name: &str) -> Result<HandedTensor<'_>> {
        let lacks = || Error::new(format!("no part has made `{name}` yet"));
        let (element, dims, bytes) = match self.handed.get(name).ok_or_else(lacks)? {
            Handed::Ours { buffer, element, dims, bytes } => (*element, dims.clone(), self.read(*buffer, *bytes)),
            Handed::Theirs { value, bytes } => {
                assert!(self.made_in.is_none(), "only what is made in the host's memory is read");
                let (element, dims) = description(value)?;
                let mut start = std::ptr::null_mut();
                // SAFETY: the value is a tensor, alive; the out-pointer is valid.
                unsafe { check((ort::api().GetTensorMutableData)(value.0, &mut start)) }
                    .map_err(|error| ort_error(format!("cannot read `{name}`"), error))?;
                let bytes = match *bytes {
                    0 => &[],
                    // SAFETY: `make` asks for host memory; the tensor's bytes are written, and the value lives and is
                    // left alone as long as `self` is borrowed.
                    count => unsafe { std::slice::from_raw_parts(start.cast::<u8>().cast_const(), count) },
                };
                (element, dims, bytes)
            }
        };
        let number = element_number(element).ok_or_else(|| {
            Error::unsupported(format!("`{name}` has elements that cannot be sent to another process ({element:?})"))
        })?;
        Ok(HandedTensor { element: number, dims, bytes })
    }

    /// Hands over what another process made under that name: its bytes are in the buffer already.
    ///
    /// # Errors
    /// Elements that this program does not know; another number of bytes than the shape has.
    ///
    /// # Panics
    /// A buffer that is too short: a bug of the caller.
    pub fn hand_in(&mut self, name: &str, element: u8, dims: &[i64], buffer: BufferId, bytes: usize) -> Result<()> {
        let wrong = |what: &str| Error::new(format!("another process handed over `{name}` {what}"));
        let (kind, size) = element_of(element).ok_or_else(|| wrong("of unknown elements"))?;
        let count = dims.iter().try_fold(size, |product, size| product.checked_mul(usize::try_from(*size).ok()?));
        if count != Some(bytes) {
            return Err(wrong("with another number of bytes than its shape has"));
        }
        assert!(bytes <= self.buffers[buffer.0].bytes(), "a tensor longer than its buffer");
        self.handed.insert(name.to_owned(), Handed::Ours { buffer, element: kind, dims: dims.to_vec(), bytes });
        Ok(())
    }

    fn value_in(
        &self,
        buffer: BufferId,
        element: sys::ONNXTensorElementDataType,
        dims: &[i64],
        bytes: usize,
    ) -> Result<RawValue> {
        let memory = &self.buffers[buffer.0];
        assert!(bytes <= memory.bytes(), "a tensor longer than its buffer");
        let mut value = std::ptr::null_mut();
        // SAFETY: the memory is in bounds (asserted) and outlives the value, which only the binding keeps.
        unsafe {
            check((ort::api().CreateTensorWithDataAsOrtValue)(
                self.memory.ptr(),
                memory.start().cast(),
                bytes,
                dims.as_ptr(),
                dims.len(),
                element,
                &mut value,
            ))
        }
        .map_err(|error| ort_error("cannot make a tensor for what is handed over", error))?;
        Ok(RawValue(value))
    }
}

/// A tensor of one byte, to be bound in the place of something that goes.
fn nothing(memory: &ort::memory::MemoryInfo) -> Result<RawValue> {
    static BYTE: u8 = 0;
    let (mut value, dims) = (std::ptr::null_mut(), [1_i64]);
    // SAFETY: one byte that lives forever; inputs are only read, and this one is replaced before it could be.
    unsafe {
        check((ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            std::ptr::from_ref(&BYTE).cast_mut().cast(),
            1,
            dims.as_ptr(),
            dims.len(),
            sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
            &mut value,
        ))
    }
    .map_err(|error| ort_error("cannot make a tensor of one byte", error))?;
    Ok(RawValue(value))
}

fn size(value: &RawValue) -> Result<usize> {
    let mut bytes = 0;
    // SAFETY: the value is alive, the out-pointer valid.
    unsafe { check((ort::api().GetTensorSizeInBytes)(value.0, &mut bytes)) }
        .map_err(|error| ort_error("cannot measure what is handed over", error))?;
    Ok(bytes)
}

/// A tensor's element type and dimensions.
pub(super) fn description(value: &RawValue) -> Result<(sys::ONNXTensorElementDataType, Vec<i64>)> {
    let api = ort::api();
    let mut info = std::ptr::null_mut();
    let mut element = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    let (mut count, mut dims) = (0, Vec::new());
    // SAFETY: the value is alive; `info` is ours until it is released, which happens on every way out.
    let read = unsafe {
        check((api.GetTensorTypeAndShape)(value.0, &mut info)).and_then(|()| {
            let read = check((api.GetTensorElementType)(info, &mut element))
                .and_then(|()| check((api.GetDimensionsCount)(info, &mut count)))
                .and_then(|()| {
                    dims.resize(count, 0);
                    check((api.GetDimensions)(info, dims.as_mut_ptr(), count))
                });
            (api.ReleaseTensorTypeAndShapeInfo)(info);
            read
        })
    };
    read.map_err(|error| ort_error("cannot tell the shape of what is handed over", error))?;
    Ok((element, dims))
}
