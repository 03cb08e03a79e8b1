//! Memory of the provider's device: for weights that are copied to it, and for what stays there from run to run.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::SharedSessionInner;
use ort::sys;

use super::binding::{RawBinding, RawValue, check};
use super::buffers::{Memory, Region};
use super::providers::{self, Computes};
use super::session::{Session, SessionOptions};
use super::{Runtime, ort_error};
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
        memory: MemoryInfo<'static>,
        /// Whether the host may read and write it at its address.
        host_sees: bool,
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

    fn host_sees(&self) -> bool {
        match &self.owner {
            Owner::Ours(_) => true,
            Owner::Theirs { host_sees, .. } => *host_sees,
        }
    }

    /// Its bytes, where the host sees them, to write.
    pub fn host_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: exactly the memory that the block owns, which has been written since it was allocated, borrowed as
        // `self` is; whoever else writes it (ONNX Runtime, in a run) does so while its owner is borrowed mutably.
        self.host_sees().then(|| unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) })
    }

    /// The same, to read.
    pub fn as_host(&self) -> Option<&[u8]> {
        // SAFETY: as in `host_mut`.
        self.host_sees().then(|| unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) })
    }

    /// For transfers by another thread, where it is memory of our own.
    pub fn region(&self) -> Option<Region> {
        match &self.owner {
            Owner::Ours(memory) => Some(memory.region()),
            Owner::Theirs { .. } => None,
        }
    }

    /// Where it starts, in the device's addresses.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The kind of its memory; `None` for the host's.
    pub(super) fn description(&self) -> Option<&MemoryInfo<'static>> {
        match &self.owner {
            Owner::Ours(_) => None,
            Owner::Theirs { memory, .. } => Some(memory),
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

fn memory_of(place: &Place) -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(place.0.clone(), place.1, AllocatorType::Device, MemoryType::Default)
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
    /// Of host memory that the device reaches without a copy by the driver (CUDA's pinned memory).
    pinned: Arc<Mutex<Allocator>>,
    place: Place,
    pinned_place: Place,
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
        let host = (AllocationDevice::CPU, 0);
        let (provider, place, pinned_place) = match providers::of(backend.provider).computes() {
            Computes::Host => (ProviderKind::Cpu, host.clone(), host),
            // TensorRT computes in CUDA's memory.
            Computes::Cuda => {
                let id = device_id(backend)?;
                (ProviderKind::Cuda, (AllocationDevice::CUDA, id), (AllocationDevice::CUDA_PINNED, id))
            }
            Computes::Unknown => {
                let message = format!("the memory of {}'s device is not known here", providers::name_of(backend));
                return Err(Error::unsupported(message));
            }
        };
        let options = backend.options.iter().filter(|(key, _)| provider == ProviderKind::Cuda && *key == "device_id");
        let options = options.map(|(key, value)| (key.clone(), value.clone())).collect();
        let backend = Backend { provider, options, plugin: None, ..backend.clone() };
        let options = SessionOptions::with_threads(1);
        let session = Session::of_bytes(runtime, copier, &backend, &options)?;
        let allocator = |place: &Place| {
            let name = place.0.as_str().to_owned();
            let allocator = Allocator::new(&session.inner, memory_of(place)?)
                .map_err(|error| ort_error(format!("ONNX Runtime has no allocator for memory of {name}"), error))?;
            Ok(Arc::new(Mutex::new(allocator)))
        };
        let (allocator, pinned) = (allocator(&place)?, allocator(&pinned_place)?);
        Ok(Self { session, allocator, pinned, place, pinned_place })
    }

    /// What ONNX Runtime calls this memory.
    pub(super) fn description(&self) -> Result<MemoryInfo<'static>> {
        memory_of(&self.place)
    }

    /// Memory of the device for what stays there from run to run: all zeros, and never seen by the host, not even where
    /// the device is the host itself.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn allocate_cleared(&mut self, bytes: usize) -> Result<Block> {
        let mut block = self
            .block(bytes, &self.place, &self.allocator, false)
            .map_err(|error| error.hint("a smaller batch or a shorter context needs less memory"))?;
        self.clear(&mut block)?;
        Ok(block)
    }

    /// Memory that the host sees and the device reaches directly, for what comes back from it after every run.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn allocate_pinned(&mut self, bytes: usize) -> Result<Block> {
        let mut block = self.block(bytes, &self.pinned_place, &self.pinned, true)?;
        block.host_mut().into_iter().for_each(|bytes| bytes.fill(0));
        Ok(block)
    }

    /// Writes zeros to all of a block.
    ///
    /// # Errors
    /// A transfer that fails.
    pub fn clear(&mut self, block: &mut Block) -> Result<()> {
        let zeros = vec![0; block.bytes().min(CHUNK)];
        for start in (0..block.bytes()).step_by(CHUNK) {
            let chunk = &zeros[..zeros.len().min(block.bytes() - start)];
            self.copy(chunk, block, start)?;
        }
        Ok(())
    }

    /// Copies a block's first bytes to the host.
    ///
    /// # Errors
    /// A transfer that fails.
    ///
    /// # Panics
    /// Bytes beyond the block: a bug of the caller.
    pub fn read(&mut self, block: &Block, bytes: usize) -> Result<Vec<u8>> {
        assert!(bytes <= block.bytes(), "a copy beyond its block");
        let host = memory_of(&(AllocationDevice::CPU, 0))?;
        let mut copy = vec![0; bytes];
        for (number, chunk) in copy.chunks_mut(CHUNK).enumerate() {
            // SAFETY: both memories are in bounds (asserted) and outlive the values, which go at this scope's end with
            // the binding that holds them. The block is only read; the chunk is this function's alone.
            let (from, to) = unsafe {
                let from = block.start().add(number * CHUNK);
                let to = bytes_value(&host, chunk.as_mut_ptr(), chunk.len())?;
                (bytes_value(block.description().unwrap_or(&host), from, chunk.len())?, to)
            };
            self.transfer(&from, &to)?;
        }
        Ok(copy)
    }

    /// Copies a block's first bytes to another, either of which may be the host's.
    ///
    /// # Errors
    /// A transfer that fails.
    ///
    /// # Panics
    /// Bytes beyond either block: a bug of the caller.
    pub fn copy_block(&mut self, from: &Block, to: &mut Block, bytes: usize) -> Result<()> {
        assert!(bytes <= from.bytes() && bytes <= to.bytes(), "a copy beyond its block");
        let host = memory_of(&(AllocationDevice::CPU, 0))?;
        for start in (0..bytes).step_by(CHUNK) {
            let length = CHUNK.min(bytes - start);
            // SAFETY: both memories are in bounds (asserted) and outlive the values, which go at this scope's end with
            // the binding that holds them. One is only read, the other is the caller's alone.
            let (source, target) = unsafe {
                let value =
                    |block: &Block| bytes_value(block.description().unwrap_or(&host), block.start().add(start), length);
                (value(from)?, value(to)?)
            };
            self.transfer(&source, &target)?;
        }
        Ok(())
    }

    fn block(&self, bytes: usize, place: &Place, allocator: &Arc<Mutex<Allocator>>, host_sees: bool) -> Result<Block> {
        let failed = || format!("cannot allocate {} in {}", crate::units::bytes(bytes as u64), place.0.as_str());
        let memory = memory_of(place)?;
        let block = allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .alloc::<u8>(bytes.max(1))
            .map(|block| NonNull::new(block.into_raw().cast::<u8>()).ok_or_else(|| Error::environment(failed())));
        let start = block.map_err(|error| ort_error(failed(), error))??;
        let (allocator, session) = (Arc::clone(allocator), self.session.inner.inner());
        Ok(Block { start, bytes, owner: Owner::Theirs { memory, host_sees, allocator, _session: session } })
    }

    /// One run of the copier.
    fn copy_chunk(&mut self, bytes: &[u8], block: &Block, offset: usize) -> Result<()> {
        let host = memory_of(&(AllocationDevice::CPU, 0))?;
        // SAFETY: both memories are in bounds and outlive the values, which go at this function's end with the binding
        // that holds them. The input is only read; the block is the caller's alone.
        let (from, to) = unsafe {
            let to = block.start().add(offset);
            let from = bytes_value(&host, bytes.as_ptr().cast_mut(), bytes.len())?;
            (from, bytes_value(block.description().unwrap_or(&host), to, bytes.len())?)
        };
        self.transfer(&from, &to)
    }

    /// One run of the copier between two values of the same size.
    fn transfer(&mut self, from: &RawValue, to: &RawValue) -> Result<()> {
        // A binding a chunk: what it copied to the device goes back with it.
        let mut binding = RawBinding::new(&self.session)?;
        binding.bind_input("bytes", from)?;
        binding.bind_output("copied", to)?;
        // Returns when the device has done its work.
        binding.run(&mut self.session)
    }
}

impl Device for ProviderMemory {
    fn allocate(&mut self, bytes: usize) -> Result<Block> {
        self.block(bytes, &self.place, &self.allocator, false)
            .map_err(|error| error.hint("residency `stream` keeps two layers' weights there instead of all of them"))
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
