//! Facts of the machine and meters: processor, memory, GPUs, limits, disks, ceilings, a sampling thread.

pub mod ceilings;
pub mod clock;
pub mod cpu;
pub mod disk;
mod environment;
#[cfg(test)]
pub(crate) mod fixture;
pub mod gpu;
pub mod limits;
pub mod memory;
mod nvml;
pub mod power;
pub mod sampler;
pub mod system;

pub use environment::{Environment, Program, environment};

/// The most memory that a process started now may use, in bytes: its control group's limit, or what the machine's other
/// processes leave.
pub fn usable_memory_bytes() -> Option<u64> {
    limits::MemoryLimits::now().usable()
}
