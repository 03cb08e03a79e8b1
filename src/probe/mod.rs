//! Facts of the machine and meters: processor, memory, limits, disks, ceilings, a sampling thread.

pub mod ceilings;
pub mod clock;
pub mod cpu;
pub mod disk;
mod environment;
pub mod limits;
pub mod memory;
pub mod sampler;
pub mod system;

pub use environment::{Environment, Program, environment};

/// The most memory that this process may use, in bytes: the machine's or its control group's.
pub fn memory_limit_bytes() -> Option<u64> {
    limits::MemoryLimits::now().smallest()
}
