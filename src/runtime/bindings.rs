//! Buffers of our own, bound to a session's inputs and outputs.
//!
//! A [`Bindings`] owns page-aligned memory and tells ONNX Runtime to read and write it in place. One buffer may be
//! bound more than once: as the past and the present of a key/value cache. Raw calls are used because `ort`'s
//! binding wraps every output again on each run (15 µs against 29 µs for a cache of 28 layers).

use std::collections::HashMap;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys;

use super::ort_error;
use super::session::Session;
use crate::cell::Dtype;
use crate::error::{Error, Result};

/// A buffer of a [`Bindings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferId(usize);

/// Types that a buffer may be seen as.
///
/// # Safety
/// Every bit pattern is a value, and the alignment is at most that of a page.
pub unsafe trait Element: Copy + 'static {}

// SAFETY: plain numbers.
unsafe impl Element for f32 {}
// SAFETY: plain numbers.
unsafe impl Element for i64 {}
// SAFETY: plain numbers.
unsafe impl Element for i32 {}
// SAFETY: plain numbers.
unsafe impl Element for u8 {}
// SAFETY: a transparent u16.
unsafe impl Element for half::f16 {}

/// Anonymous memory, page-aligned, zero until written, given back on drop.
#[derive(Debug)]
struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

impl Buffer {
    fn new(bytes: usize) -> Result<Self> {
        // mmap rather than the allocator: untouched pages cost nothing, and the memory goes back when dropped.
        // SAFETY: a fresh private anonymous mapping; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes.max(1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let cause = std::io::Error::last_os_error();
            return Err(Error::environment(format!(
                "cannot allocate a buffer of {}",
                crate::units::bytes(bytes as u64)
            ))
            .because(cause)
            .hint("a smaller batch or a shorter context needs less memory"));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::environment("the kernel mapped address zero"))?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; nothing else holds it, since bindings are dropped before their buffers.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes.max(1)) };
    }
}

/// What is bound to one session, and the memory behind it.
#[derive(Debug)]
pub struct Bindings {
    // Declared before `buffers`, so that ONNX Runtime's values are released before the memory they point to.
    raw: RawBinding,
    memory: MemoryInfo<'static>,
    buffers: Vec<Buffer>,
    /// What each name is bound to. Binding the same again would cost a tensor and change nothing: buffers are read
    /// at run time.
    bound: HashMap<String, (BufferId, Vec<usize>)>,
}

#[derive(Debug)]
struct RawBinding {
    pointer: NonNull<sys::OrtIoBinding>,
    // The session must outlive its binding.
    session: std::sync::Arc<ort::session::SharedSessionInner>,
    _not_sync: PhantomData<*mut ()>,
}

impl Drop for RawBinding {
    fn drop(&mut self) {
        // SAFETY: created by `CreateIoBinding`, released once.
        unsafe { (ort::api().ReleaseIoBinding)(self.pointer.as_ptr()) };
    }
}

impl Bindings {
    /// Nothing bound yet.
    pub fn new(session: &Session) -> Result<Self> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the session is alive and the out-pointer valid.
        unsafe { check((ort::api().CreateIoBinding)(session.inner.ptr().cast_mut(), &mut pointer)) }
            .map_err(|error| ort_error("cannot create a binding", error))?;
        let pointer = NonNull::new(pointer).ok_or_else(|| Error::new("ONNX Runtime made an empty binding"))?;
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(|error| ort_error("cannot describe host memory", error))?;
        Ok(Self {
            raw: RawBinding { pointer, session: session.inner.inner(), _not_sync: PhantomData },
            memory,
            buffers: Vec::new(),
            bound: HashMap::new(),
        })
    }

    /// Allocates a buffer. Its pages are zero, and cost memory once they are touched.
    pub fn allocate(&mut self, bytes: usize) -> Result<BufferId> {
        self.buffers.push(Buffer::new(bytes)?);
        Ok(BufferId(self.buffers.len() - 1))
    }

    /// The first `count` elements of a buffer.
    ///
    /// # Panics
    /// When the buffer is shorter: a bug of the caller.
    pub fn read<T: Element>(&self, id: BufferId, count: usize) -> &[T] {
        let buffer = &self.buffers[id.0];
        assert!(count * size_of::<T>() <= buffer.bytes, "read past the end of a bound buffer");
        // SAFETY: in bounds, page-aligned, any bits are a `T`; ONNX Runtime writes only inside `run`, which borrows
        // `self` mutably.
        unsafe { std::slice::from_raw_parts(buffer.start.as_ptr().cast(), count) }
    }

    /// The first `count` elements of a buffer, to write.
    ///
    /// # Panics
    /// When the buffer is shorter: a bug of the caller.
    pub fn write<T: Element>(&mut self, id: BufferId, count: usize) -> &mut [T] {
        let buffer = &self.buffers[id.0];
        assert!(count * size_of::<T>() <= buffer.bytes, "write past the end of a bound buffer");
        // SAFETY: as in `read`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(buffer.start.as_ptr().cast(), count) }
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
            Dtype::Int64 | Dtype::Int32 => panic!("numbers for a buffer of integers"),
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
            Dtype::Int64 | Dtype::Int32 => panic!("numbers from a buffer of integers"),
        }
    }

    /// Binds the start of a buffer as an input of this type and shape; replaces what was bound under that name.
    pub fn bind_input(&mut self, name: &str, id: BufferId, dtype: Dtype, shape: &[usize]) -> Result<()> {
        self.bind("input", ort::api().BindInput, name, id, dtype, shape)
    }

    /// Binds the start of a buffer as an output of this type and shape; replaces what was bound under that name.
    pub fn bind_output(&mut self, name: &str, id: BufferId, dtype: Dtype, shape: &[usize]) -> Result<()> {
        self.bind("output", ort::api().BindOutput, name, id, dtype, shape)
    }

    fn bind(
        &mut self,
        what: &str,
        function: BindFunction,
        name: &str,
        id: BufferId,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<()> {
        if self.bound.get(name).is_some_and(|(bound, dims)| *bound == id && dims == shape) {
            return Ok(());
        }
        let value = self.value(name, id, dtype, shape)?;
        let c_name = CString::new(name).map_err(|_| Error::new(format!("`{name}` is no name of an {what}")))?;
        // SAFETY: binding, name and value are alive; ONNX Runtime keeps its own reference to the value, whose memory
        // lives as long as `self`.
        unsafe { check(function(self.raw.pointer.as_ptr(), c_name.as_ptr(), value.0)) }
            .map_err(|error| ort_error(format!("cannot bind the {what} `{name}`"), error))?;
        self.bound.insert(name.to_owned(), (id, shape.to_vec()));
        Ok(())
    }

    /// Runs the session on what is bound.
    pub fn run(&mut self, session: &mut Session) -> Result<()> {
        assert!(std::sync::Arc::ptr_eq(&self.raw.session, &session.inner.inner()), "bindings of another session");
        // SAFETY: binding and session are alive and belong together (asserted), and both are borrowed mutably, so
        // nothing else touches the buffers.
        unsafe {
            check((ort::api().RunWithBinding)(
                session.inner.ptr().cast_mut(),
                std::ptr::null(),
                self.raw.pointer.as_ptr(),
            ))
        }
        .map_err(|error| ort_error("the run failed", error))
    }

    fn value(&self, name: &str, id: BufferId, dtype: Dtype, shape: &[usize]) -> Result<RawValue> {
        let buffer = &self.buffers[id.0];
        let bytes = shape.iter().product::<usize>() * dtype.size();
        assert!(bytes <= buffer.bytes, "`{name}` of {bytes} bytes does not fit its buffer of {} bytes", buffer.bytes);
        let dims: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let mut value = std::ptr::null_mut();
        // SAFETY: the memory is in bounds (asserted) and outlives the value, which only the binding keeps.
        unsafe {
            check((ort::api().CreateTensorWithDataAsOrtValue)(
                self.memory.ptr(),
                buffer.start.as_ptr().cast(),
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

/// `BindInput` or `BindOutput` of ONNX Runtime.
type BindFunction = unsafe extern "system" fn(
    *mut sys::OrtIoBinding,
    *const std::ffi::c_char,
    *const sys::OrtValue,
) -> sys::OrtStatusPtr;

/// A value that is released when its scope ends; bindings hold references of their own.
struct RawValue(*mut sys::OrtValue);

impl Drop for RawValue {
    fn drop(&mut self) {
        // SAFETY: created by `CreateTensorWithDataAsOrtValue`, released once.
        unsafe { (ort::api().ReleaseValue)(self.0) };
    }
}

fn element_type(dtype: Dtype) -> sys::ONNXTensorElementDataType {
    use sys::ONNXTensorElementDataType as Type;
    match dtype {
        Dtype::Float32 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        Dtype::Float16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        Dtype::Int64 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        Dtype::Int32 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    }
}

/// # Safety
/// The status must come from the call right before and be handed over once.
unsafe fn check(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ort::Error::<()>::result_from_status(status) }
}
