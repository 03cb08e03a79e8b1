//! Measures what the machine can do at most, once for each number of threads, in a process of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cell::{Cell, ProviderKind, RuntimeRef};
use crate::error::Result;
use crate::orchestrator::Host;
use crate::orchestrator::child::{self, Worker};
use crate::orchestrator::collect::Collector;
use crate::orchestrator::conditions::Conditions;
use crate::orchestrator::interrupt::Interrupt;
use crate::protocol::{Job, PROTOCOL_VERSION, Work};

const TIMEOUT_SECONDS: f64 = 120.0;

/// The library that measures the ceilings: of the first cell on the CPU provider whose library is there, else the
/// installed build for the CPU, else the first library there is. Every build has the CPU provider.
pub fn library(cells: &[Cell], host: &dyn Host) -> Option<PathBuf> {
    let on_cpu = cells.iter().filter(|cell| cell.backend.provider == ProviderKind::Cpu);
    let named = on_cpu.map(|cell| cell.backend.runtime.clone());
    let installed = std::iter::once(RuntimeRef::Installed("cpu".to_owned()));
    let others = cells.iter().map(|cell| cell.backend.runtime.clone());
    named.chain(installed).chain(others).find_map(|runtime| host.library(&runtime).ok())
}

/// Runs the process; returns the ceilings by name, and why some are missing. The run goes on without them.
///
/// # Errors
/// A worker that cannot be started at all.
pub fn measure(
    worker: &Worker,
    library: PathBuf,
    threads: u32,
    log: &Path,
    interrupt: &Interrupt,
) -> Result<(BTreeMap<String, f64>, Option<String>)> {
    let job = Job { protocol: PROTOCOL_VERSION, library, work: Work::Ceilings { threads } };
    let mut collector = Collector::default();
    let conditions = Conditions::within(Duration::from_secs_f64(TIMEOUT_SECONDS));
    let ended = child::run(worker, &job, log, &conditions, interrupt, &mut |line| {
        collector.line(line);
    })?;
    Ok(collector.ceilings(&ended, TIMEOUT_SECONDS, log))
}
