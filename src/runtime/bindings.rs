//! Buffers of our own, bound to the inputs and outputs of sessions.
//!
//! A [`Bindings`] owns page-aligned memory, and memory of devices, and tells ONNX Runtime to read and write it in place.
//! One buffer may be bound more than once: as the past and the present of a key/value cache, and to several sessions
//! where a model is cut into parts. What one part makes for a later one, of shapes that only the run knows, is handed
//! over as ONNX Runtime allocated it. Raw calls are used because `ort`'s binding wraps every output again on each run (15 µs
//! against 29 µs for a cache of 28 layers).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys;

use super::binding::{RawBinding, RawValue, RunSettings, check};
use super::buffers::{BufferId, Element, Region};
use super::device::{Block, ProviderMemory};
use super::handed::Handed;
use super::ort_error;
use super::session::Session;
use super::weights::PartWeights;
use crate::cell::Dtype;
use crate::error::Result;

/// What is bound to the sessions of a model's parts, and the memory behind it.
#[derive(Debug)]
pub struct Bindings {
    // Declared before `buffers`, so that ONNX Runtime's values are released before the memory they point to.
    pub(super) parts: Vec<RawBinding>,
    pub(super) handed: HashMap<String, Handed>,
    pub(super) memory: MemoryInfo<'static>,
    /// Where parts make what is handed over; `None` for the host's memory.
    pub(super) made_in: Option<MemoryInfo<'static>>,
    pub(super) buffers: Vec<Block>,
}

impl Bindings {
    /// Nothing bound yet, to one session.
    pub fn new(session: &Session) -> Result<Self> {
        Self::of_parts([session])
    }

    /// Nothing bound yet, to the sessions of a model's parts; they are named by their places from then on.
    pub fn of_parts<'a>(sessions: impl IntoIterator<Item = &'a Session>) -> Result<Self> {
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(|error| ort_error("cannot describe host memory", error))?;
        let parts = sessions.into_iter().map(RawBinding::new).collect::<Result<_>>()?;
        Ok(Self { parts, handed: HashMap::new(), memory, made_in: None, buffers: Vec::new() })
    }

    /// Allocates a buffer. Its pages are zero, and cost memory once they are touched.
    pub fn allocate(&mut self, bytes: usize) -> Result<BufferId> {
        Ok(self.adopt(Block::ours(bytes)?))
    }

    /// Takes memory of a device as a buffer.
    pub fn adopt(&mut self, block: Block) -> BufferId {
        self.buffers.push(block);
        BufferId(self.buffers.len() - 1)
    }

    /// A buffer's memory, to copy to or from it.
    pub fn block_mut(&mut self, id: BufferId) -> &mut Block {
        &mut self.buffers[id.0]
    }

    /// The same, to copy from it.
    pub fn block(&self, id: BufferId) -> &Block {
        &self.buffers[id.0]
    }

    /// Two buffers' memory, to copy from the first to the second.
    ///
    /// # Panics
    /// The same buffer twice: a bug of the caller.
    pub fn two_blocks(&mut self, from: BufferId, to: BufferId) -> (&Block, &mut Block) {
        let [from, to] = self.buffers.get_disjoint_mut([from.0, to.0]).expect("two buffers");
        (from, to)
    }

    /// Lets parts make what they hand over where this memory is, instead of in the host's.
    ///
    /// # Errors
    /// A memory that ONNX Runtime does not know.
    pub fn hand_over_in(&mut self, device: &ProviderMemory) -> Result<()> {
        self.made_in = Some(device.description()?);
        Ok(())
    }

    /// A buffer's memory, for transfers by another thread.
    ///
    /// # Panics
    /// A buffer of a device, which only ONNX Runtime may move: a bug of the caller.
    pub fn region(&self, id: BufferId) -> Region {
        self.buffers[id.0].region().expect("a buffer of our own")
    }

    /// Gives a buffer's pages back to the system; it reads as zeros then.
    pub fn release(&mut self, id: BufferId) {
        // SAFETY: the memory exists, and whoever moves it to or from elsewhere has ended: that is the contract of
        // `Region`. ONNX Runtime reads it only inside `run`, which borrows `self` mutably.
        unsafe { self.region(id).release() };
    }

    /// The first `count` elements of a buffer.
    ///
    /// # Panics
    /// When the buffer is shorter, or not in memory that the host sees: a bug of the caller.
    pub fn read<T: Element>(&self, id: BufferId, count: usize) -> &[T] {
        let buffer = self.buffers[id.0].as_host().expect("memory that the host sees");
        assert!(count * size_of::<T>() <= buffer.len(), "read past the end of a bound buffer");
        assert!(buffer.as_ptr().cast::<T>().is_aligned(), "a buffer that is not aligned");
        // SAFETY: in bounds and aligned (asserted), any bits are a `T`; ONNX Runtime writes only inside `run`, which
        // borrows `self` mutably.
        unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), count) }
    }

    /// The first `count` elements of a buffer, to write.
    ///
    /// # Panics
    /// When the buffer is shorter, or not in memory that the host sees: a bug of the caller.
    pub fn write<T: Element>(&mut self, id: BufferId, count: usize) -> &mut [T] {
        let buffer = self.buffers[id.0].host_mut().expect("memory that the host sees");
        assert!(count * size_of::<T>() <= buffer.len(), "write past the end of a bound buffer");
        assert!(buffer.as_ptr().cast::<T>().is_aligned(), "a buffer that is not aligned");
        // SAFETY: as in `read`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), count) }
    }

    /// Writes numbers to the start of a buffer of floats or halves.
    ///
    /// # Panics
    /// When the buffer is shorter, or of integers: a bug of the caller.
    pub fn write_f32(&mut self, id: BufferId, dtype: Dtype, values: &[f32]) {
        match dtype {
            Dtype::Float32 => self.write::<f32>(id, values.len()).copy_from_slice(values),
            Dtype::Float16 => {
                for (slot, value) in self.write::<half::f16>(id, values.len()).iter_mut().zip(values) {
                    *slot = half::f16::from_f32(*value);
                }
            }
            Dtype::BFloat16 => {
                for (slot, value) in self.write::<half::bf16>(id, values.len()).iter_mut().zip(values) {
                    *slot = half::bf16::from_f32(*value);
                }
            }
            Dtype::Int64 | Dtype::Int32 | Dtype::Int8 | Dtype::UInt8 => panic!("numbers for a buffer of integers"),
        }
    }

    /// Appends numbers of a buffer of floats or halves.
    ///
    /// # Panics
    /// As [`Bindings::write_f32`].
    pub fn read_f32(&self, id: BufferId, dtype: Dtype, range: Range<usize>, into: &mut Vec<f32>) {
        match dtype {
            Dtype::Float32 => into.extend_from_slice(&self.read(id, range.end)[range]),
            Dtype::Float16 => {
                into.extend(self.read::<half::f16>(id, range.end)[range].iter().map(|value| value.to_f32()));
            }
            Dtype::BFloat16 => {
                into.extend(self.read::<half::bf16>(id, range.end)[range].iter().map(|value| value.to_f32()));
            }
            Dtype::Int64 | Dtype::Int32 | Dtype::Int8 | Dtype::UInt8 => panic!("numbers from a buffer of integers"),
        }
    }

    /// Binds the start of a buffer as a part's input of this type and shape; replaces what was bound under that name.
    pub fn bind_input(&mut self, part: usize, name: &str, id: BufferId, dtype: Dtype, shape: &[usize]) -> Result<()> {
        let on_device = self.buffers[id.0].as_host().is_none();
        if self.parts[part].is_up_to_date(name, id, shape, on_device) {
            return Ok(());
        }
        let value = self.value(name, id, dtype, shape)?;
        let binding = &mut self.parts[part];
        binding.bind_input(name, &value)?;
        binding.bound.insert(name.to_owned(), (id, shape.to_vec()));
        Ok(())
    }

    /// Binds the start of a buffer as a part's output of this type and shape; replaces what was bound under that name.
    pub fn bind_output(&mut self, part: usize, name: &str, id: BufferId, dtype: Dtype, shape: &[usize]) -> Result<()> {
        if self.parts[part].is_bound(name, id, shape) {
            return Ok(());
        }
        let value = self.value(name, id, dtype, shape)?;
        let binding = &mut self.parts[part];
        binding.bind_output(name, &value)?;
        binding.note_output(name);
        binding.bound.insert(name.to_owned(), (id, shape.to_vec()));
        Ok(())
    }

    /// Binds a part's weights. They are kept as long as they are bound.
    pub fn bind_weights(&mut self, part: usize, weights: &Arc<PartWeights>) -> Result<()> {
        let binding = &mut self.parts[part];
        if binding.weights.as_ref().is_some_and(|bound| Arc::ptr_eq(bound, weights)) {
            return Ok(());
        }
        if binding.weights.is_some() {
            binding.clear_inputs();
        }
        // First, so that whatever is bound is kept even where the next one fails.
        binding.weights = Some(Arc::clone(weights));
        weights.values().iter().try_for_each(|(name, value)| binding.bind_named(name, value))
    }

    /// Lets go of a part's weights, and of its other inputs, which are bound anew before its next run.
    pub fn unbind_weights(&mut self, part: usize) {
        self.parts[part].clear_inputs();
    }

    /// Runs the one session on what is bound.
    pub fn run(&mut self, session: &mut Session) -> Result<()> {
        self.run_part(0, session)
    }

    /// Runs a part's session on what is bound to it.
    pub fn run_part(&mut self, part: usize, session: &mut Session) -> Result<()> {
        self.run_part_as(part, session, RunSettings::default())
    }

    /// The same with settings for this run.
    pub fn run_part_as(&mut self, part: usize, session: &mut Session, settings: RunSettings) -> Result<()> {
        let binding = &mut self.parts[part];
        binding.run_as(session, settings)?;
        self.collect(part)
    }

    fn value(&self, name: &str, id: BufferId, dtype: Dtype, shape: &[usize]) -> Result<RawValue> {
        let buffer = &self.buffers[id.0];
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let room = buffer.bytes();
        assert!(bytes <= room, "`{name}` of {bytes} bytes does not fit its buffer of {room} bytes");
        let dims: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let mut value = std::ptr::null_mut();
        // SAFETY: the memory is in bounds (asserted) and outlives the value, which only the binding keeps.
        unsafe {
            check((ort::api().CreateTensorWithDataAsOrtValue)(
                buffer.description().unwrap_or(&self.memory).ptr(),
                buffer.start().cast(),
                bytes,
                dims.as_ptr(),
                dims.len(),
                element_type(dtype),
                &mut value,
            ))
        }
        .map_err(|error| ort_error(format!("cannot make a tensor for `{name}`"), error))?;
        Ok(RawValue(value))
    }
}

fn element_type(dtype: Dtype) -> sys::ONNXTensorElementDataType {
    use sys::ONNXTensorElementDataType as Type;
    match dtype {
        Dtype::Float32 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        Dtype::Float16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        Dtype::BFloat16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        Dtype::Int64 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        Dtype::Int32 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        Dtype::Int8 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        Dtype::UInt8 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
    }
}

/// The reverse of [`element_type`].
pub(super) fn dtype(element: sys::ONNXTensorElementDataType) -> Option<Dtype> {
    let all = [Dtype::Float32, Dtype::Float16, Dtype::BFloat16, Dtype::Int64, Dtype::Int32, Dtype::Int8, Dtype::UInt8];
    all.into_iter().find(|dtype| element_type(*dtype) == element)
}
