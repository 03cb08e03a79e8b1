//! Memory that weights are copied to: that of the provider's device.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::SharedSessionInner;
use ort::sys;

use super::bindings::{RawBinding, RawValue, check};
use super::buffers::Memory;
use super::session::{Session, SessionOptions};
use super::{Runtime, ort_error, providers};
use crate::cell::{Backend, ProviderKind};
use crate::error::{Error, Result};

/// Where weights can be copied to.
pub trait Device: Send + fmt::Debug {
    /// Memory there.
    ///
    /// # Errors
    /// Memory that cannot be had.
    fn allocate(&mut self, bytes: usize) -> Result<Block>;

    /// Copies to the block, from that byte on; the bytes have arrived when it returns.
    ///
    /// # Errors
    /// A transfer that fails.
    ///
    /// # Panics
    /// A copy beyond the block: a bug of the caller.
    fn copy(&mut self, bytes: &[u8], block: &mut Block, offset: usize) -> Result<()>;
}

/// Memory of a device.
pub struct Block {
    start: NonNull<u8>,
    bytes: usize,
    owner: Owner,
}

enum Owner {
    /// Memory of our own.
    Ours(Memory),
    /// Memory of ONNX Runtime.
    Theirs {
        place: Place,
        allocator: Arc<Mutex<Allocator>>,
        /// The allocator is the session's.
        _session: Arc<SharedSessionInner>,
    },
}

/// Which memory: ONNX Runtime's name of the device, and its number.
type Place = (AllocationDevice<'static>, i32);

// SAFETY: an address that belongs to the block alone; its memory is only read through `&Block`, and given back by the
// allocator, which a lock guards.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Memory of the host, of our own.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn ours(bytes: usize) -> Result<Self> {
        let memory = Memory::new(bytes)?;
        Ok(Self { start: memory.region().start(), bytes, owner: Owner::Ours(memory) })
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its bytes, where it is memory of our own.
    pub fn ours_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.owner {
            Owner::Ours(memory) => Some(memory.bytes_mut()),
            Owner::Theirs { .. } => None,
        }
    }

    /// The same, to read.
    pub fn as_host(&self) -> Option<&[u8]> {
        match &self.owner {
            // SAFETY: exactly the memory that the block owns, which is written through `&mut` only.
            Owner::Ours(_) => Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }),
            Owner::Theirs { .. } => None,
        }
    }

    /// Where it starts, in the device's addresses.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The kind of its memory.
    pub(super) fn memory(&self) -> Result<MemoryInfo<'static>> {
        match &self.owner {
            Owner::Ours(_) => memory_of((AllocationDevice::CPU, 0)),
            Owner::Theirs { place, .. } => memory_of(place.clone()),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Owner::Theirs { allocator, .. } = &self.owner {
            let allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: this allocator gave the memory, and nothing uses it: values over it keep the block.
            unsafe { allocator.free(self.start.as_ptr()) };
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("bytes", &self.bytes).finish()
    }
}

/// A block that goes back to its owner when nobody uses it any more.
pub struct Loan {
    block: Option<Block>,
    back: Box<dyn Fn(Block) + Send + Sync>,
}

impl Loan {
    /// The block; `back` gets it in the end.
    pub fn new(block: Block, back: impl Fn(Block) + Send + Sync + 'static) -> Self {
        Self { block: Some(block), back: Box::new(back) }
    }

    /// The block.
    pub fn block(&self) -> &Block {
        self.block.as_ref().expect("a block is there until the loan ends")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            (self.back)(block);
        }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Loan").field(&self.block).finish()
    }
}

fn memory_of(place: Place) -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(place.0, place.1, AllocatorType::Device, MemoryType::Default)
        .map_err(|error| ort_error("cannot describe a device's memory", error))
}

/// Bytes of one transfer. ONNX Runtime keeps a copy on the device of what is on its way there: small next to a layer,
/// large enough that a run's own cost does not show.
const CHUNK: usize = 16 << 20;

/// The memory that a backend's provider computes in, by ONNX Runtime's means: its allocator, and a graph that gives
/// back its input. A bound input is copied to the device at once, and the graph's only node copies it from there to
/// where its output is bound.
pub struct ProviderMemory {
    session: Session,
    allocator: Arc<Mutex<Allocator>>,
    place: Place,
}

impl fmt::Debug for ProviderMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderMemory").field("place", &self.place).finish()
    }
}

impl ProviderMemory {
    /// The memory of the backend's GPU, or of the host where the provider computes there. `copier` is an ONNX model
    /// with the input `bytes` and the output `copied`, of type uint8 and one dimension of any size.
    ///
    /// # Errors
    /// What [`Session::open`] refuses: a build without CUDA, a machine without a GPU.
    pub fn open(runtime: &Runtime, backend: &Backend, copier: &[u8]) -> Result<Self> {
        let (provider, place) = if providers::of(backend.provider).uses_host_memory() {
            (ProviderKind::Cpu, (AllocationDevice::CPU, 0))
        } else {
            // TensorRT computes in CUDA's memory.
            (ProviderKind::Cuda, (AllocationDevice::CUDA, device_id(backend)?))
        };
        let options = backend.options.iter().filter(|(key, _)| provider == ProviderKind::Cuda && *key == "device_id");
        let options = options.map(|(key, value)| (key.clone(), value.clone())).collect();
        let backend = Backend { provider, options, ..backend.clone() };
        let options = SessionOptions { threads: 1, config: [].into(), arena: true, profile: None };
        let session = Session::of_bytes(runtime, copier, &backend, &options)?;
        let allocator = Allocator::new(&session.inner, memory_of(place.clone())?)
            .map_err(|error| ort_error("ONNX Runtime has no allocator for the provider's memory", error))?;
        Ok(Self { session, allocator: Arc::new(Mutex::new(allocator)), place })
    }

    /// One run of the copier.
    fn copy_chunk(&mut self, bytes: &[u8], block: &Block, offset: usize) -> Result<()> {
        let host = memory_of((AllocationDevice::CPU, 0))?;
        // SAFETY: both memories are in bounds and outlive the values, which go at this function's end with the binding
        // that holds them. The input is only read; the block is the caller's alone.
        let (from, to) = unsafe {
            let to = block.start().add(offset);
            let from = bytes_value(&host, bytes.as_ptr().cast_mut(), bytes.len())?;
            (from, bytes_value(&block.memory()?, to, bytes.len())?)
        };
        // A binding a chunk: what it copied to the device goes back with it.
        let mut binding = RawBinding::new(&self.session)?;
        binding.bind_input("bytes", &from)?;
        binding.bind_output("copied", &to)?;
        // Returns when the device has done its work.
        binding.run(&mut self.session)
    }
}

impl Device for ProviderMemory {
    fn allocate(&mut self, bytes: usize) -> Result<Block> {
        let failed = || format!("cannot allocate {} in {}", crate::units::bytes(bytes as u64), self.place.0.as_str());
        let allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let block = allocator.alloc::<u8>(bytes.max(1)).map_err(|error| {
            ort_error(failed(), error).hint("residency `stream` keeps two layers' weights there instead of all of them")
        })?;
        let start = NonNull::new(block.into_raw().cast()).ok_or_else(|| Error::environment(failed()))?;
        drop(allocator);
        let (place, allocator) = (self.place.clone(), Arc::clone(&self.allocator));
        Ok(Block { start, bytes, owner: Owner::Theirs { place, allocator, _session: self.session.inner.inner() } })
    }

    fn copy(&mut self, bytes: &[u8], block: &mut Block, offset: usize) -> Result<()> {
        let ours = matches!(&block.owner, Owner::Theirs { allocator, .. } if Arc::ptr_eq(allocator, &self.allocator));
        assert!(ours, "a block of another device");
        assert!(offset + bytes.len() <= block.bytes, "a copy beyond its block");
        for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
            self.copy_chunk(chunk, block, offset + number * CHUNK)?;
        }
        Ok(())
    }
}

/// The GPU that a backend uses.
pub(super) fn device_id(backend: &Backend) -> Result<i32> {
    let Some(text) = backend.options.get("device_id") else { return Ok(0) };
    text.parse()
        .map_err(|_| Error::new(format!("the provider's option `device_id` is `{text}`, which is no number of a GPU")))
}

/// # Safety
/// The memory is of that kind and outlives the value.
unsafe fn bytes_value(memory: &MemoryInfo, start: *mut u8, bytes: usize) -> Result<RawValue> {
    let (mut value, dims) = (std::ptr::null_mut(), [bytes as i64]);
    // SAFETY: the caller's promise; the other pointers live for the call.
    unsafe {
        check((ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            start.cast(),
            bytes,
            dims.as_ptr(),
            dims.len(),
            sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
            &mut value,
        ))
    }
    .map_err(|error| ort_error("cannot make a tensor for a transfer", error))?;
    Ok(RawValue(value))
}
