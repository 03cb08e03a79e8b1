//! The conditions of a run, as far as the parent process can know them.

use std::path::Path;

use serde::Serialize;

use crate::probe::cpu::Cpu;
use crate::probe::disk::Disk;
use crate::probe::gpu::Machine;
use crate::probe::limits::MemoryLimits;
use crate::probe::system::Os;

/// Everything that stands in `environment.json` beside the ceilings.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// This program.
    pub program: Program,
    /// The processor.
    pub cpu: Cpu,
    /// NVIDIA's GPUs.
    pub gpu: Machine,
    /// Memory and its limits.
    pub memory: MemoryLimits,
    /// The running system.
    pub system: Os,
    /// The disk of the results and, as a rule, of the packages.
    pub disk: Disk,
}

/// This program.
#[derive(Debug, Clone, Serialize)]
pub struct Program {
    /// Version of the crate.
    pub version: &'static str,
    /// Commit that it was built from, `-dirty` when files differed; absent where there was no git.
    pub commit: Option<&'static str>,
    /// `release` or `debug`.
    pub profile: &'static str,
}

/// Reads the environment now; `folder` lies on the disk that is described.
pub fn environment(folder: &Path) -> Environment {
    Environment {
        program: Program {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("ORTBENCH_COMMIT"),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        },
        cpu: Cpu::now(),
        gpu: Machine::now(),
        memory: MemoryLimits::now(),
        system: Os::now(),
        disk: Disk::of(folder),
    }
}
