//! How memory for activations grows on the CPU.

use std::sync::OnceLock;

use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use super::binding::check;
use super::{Runtime, ort_error};
use crate::error::Result;

/// The arena in which the CPU provider keeps freed memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arena {
    /// One a session that asks the system for twice as much each time: ONNX Runtime's default.
    Doubling,
    /// One for all sessions that asks for no more than what is wanted.
    AsRequested,
    /// None: what is freed goes back to the heap.
    Off,
}

impl Arena {
    /// The word in options and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Doubling => "default",
            Self::AsRequested => "same_as_requested",
            Self::Off => "off",
        }
    }
}

/// `kSameAsRequested` of ONNX Runtime's arenas.
const AS_REQUESTED: usize = 1;

/// Gives the environment an arena that grows as requested; sessions with `session.use_env_allocators` take it.
pub(super) fn register(runtime: &Runtime) -> Result<()> {
    // The environment is one a process, and takes one arena.
    static REGISTERED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| register_once(runtime).map_err(|error| error.to_string()));
    let failed =
        |words: &String| ort_error("cannot give ONNX Runtime an arena that grows as requested", ort::Error::new(words));
    registered.as_ref().map_err(failed).copied()
}

fn register_once(runtime: &Runtime) -> ort::Result<()> {
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let (keys, values) = ([c"arena_extend_strategy".as_ptr()], [AS_REQUESTED]);
    let (api, mut settings) = (ort::api(), std::ptr::null_mut());
    // SAFETY: one key and one value, both alive; the out-pointer is valid. ONNX Runtime copies the settings into the
    // environment's arena, so that they are released here, once; environment and description are alive.
    unsafe {
        check((api.CreateArenaCfgV2)(keys.as_ptr(), values.as_ptr(), 1, &mut settings))?;
        let registered =
            check((api.CreateAndRegisterAllocator)(runtime.environment.ptr().cast_mut(), memory.ptr(), settings));
        (api.ReleaseArenaCfg)(settings);
        registered
    }
}
