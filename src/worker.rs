//! The child's side: read one job, do it, write messages.
//!
//! Standard output carries messages and nothing else. Libraries print where they like, so before any of them is
//! loaded the descriptor is moved away and standard output is pointed at standard error.

use std::fs::File;
use std::io::Read;

use crate::categories;
use crate::cell::Status;
use crate::error::{Context, Error, Kind, Result};
use crate::optimizations::{self, Workshop};
use crate::protocol::{Job, Message, PROTOCOL_VERSION, Reporter, Work};
use crate::runtime::Runtime;

/// Takes standard output for messages, and leaves libraries standard error in its place.
///
/// # Errors
/// A process without standard output.
pub fn claim_stdout() -> Result<Reporter> {
    let messages = rustix::io::dup(rustix::stdio::stdout()).context("cannot take standard output for messages")?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr()).context("cannot point standard output at standard error")?;
    Ok(Reporter::new(File::from(messages)))
}

/// Reads a job.
///
/// # Errors
/// Bytes that are no job of this version.
pub fn read_job(mut input: impl Read) -> Result<Job> {
    let mut text = String::new();
    input.read_to_string(&mut text).context("cannot read the job")?;
    let job: Job = serde_json::from_str(&text).context("the job is not understood")?;
    if job.protocol != PROTOCOL_VERSION {
        return Err(Error::new(format!(
            "the job is of protocol {}, this worker speaks {PROTOCOL_VERSION}",
            job.protocol
        ))
        .hint("the program was replaced during a run; start the run again with `--resume`"));
    }
    Ok(job)
}

/// Does the job and reports how it ended. Returns whether it was measured.
///
/// # Errors
/// Only a parent that no longer listens: every failure of the work itself is a message.
pub fn run(job: &Job, report: &Reporter) -> Result<bool> {
    report.send(&Message::Hello { protocol: PROTOCOL_VERSION })?;
    match work(job, report) {
        Ok(()) => {
            report.send(&Message::Done)?;
            Ok(true)
        }
        Err(error) => {
            report.send(&Message::Failed {
                status: status_of(&error),
                reason: error.chain(),
                hint: error.find_hint().map(ToOwned::to_owned),
            })?;
            Ok(false)
        }
    }
}

fn work(job: &Job, report: &Reporter) -> Result<()> {
    report.phase("runtime")?;
    let arranged = match &job.work {
        Work::Measure { cell, category, process, .. } => {
            Some(optimizations::arrange(cell, optimizations::arm(*category, *process))?)
        }
        Work::Describe | Work::Ceilings { .. } | Work::Prepare { .. } => None,
    };
    let shared_threads = arranged.as_ref().and_then(|arranged| arranged.setup.plan.shared_threads());
    let runtime = Runtime::load_sharing(&job.library, shared_threads)?;
    report.fact("runtime_version", runtime.version()?)?;
    report.fact("runtime_build", runtime.build_info())?;
    match &job.work {
        Work::Describe => {
            report.fact("providers", runtime.compiled_providers()?.join(", "))?;
            report.fact("devices", runtime.devices().join(", "))
        }
        Work::Ceilings { threads } => categories::ceilings(&runtime, *threads, report),
        Work::Prepare { cell } => {
            let (backend, threads) = (&cell.backend, cell.threads);
            optimizations::prepare(cell, &Workshop { runtime: &runtime, backend, threads, report })
        }
        Work::Measure { cell, category, process, reference, offload } => {
            let Some(arranged) = &arranged else { return Err(Error::new("nothing was arranged; this is a bug")) };
            let context = categories::Context {
                runtime: &runtime,
                cell,
                setup: &arranged.setup,
                package: &arranged.package,
                evidence: &arranged.evidence,
                process: *process,
                reference: reference.as_deref(),
                offload: offload.as_deref(),
                report,
            };
            categories::of(cell, *category).measure(&context)
        }
    }
}

/// How a cell with this error ends. ONNX Runtime reports a failed allocation in words only.
fn status_of(error: &Error) -> Status {
    let chain = error.chain();
    let memory =
        ["bad allocation", "bad_alloc", "Failed to allocate memory", "Cannot allocate memory", "out of memory"];
    if memory.iter().any(|words| chain.contains(words)) {
        return Status::OutOfMemory;
    }
    match error.root_kind() {
        Kind::Unsupported => Status::Unsupported,
        Kind::Invalid => Status::Invalid,
        Kind::Input | Kind::Environment | Kind::Interrupted => Status::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_statuses() {
        assert_eq!(status_of(&Error::unsupported("x")), Status::Unsupported);
        assert_eq!(status_of(&Error::invalid("x")), Status::Invalid);
        assert_eq!(status_of(&Error::new("std::bad_alloc")), Status::OutOfMemory);
        assert_eq!(status_of(&Error::environment("x")), Status::Failed);
    }

    #[test]
    fn another_protocol_is_refused() {
        let job = r#"{"protocol": 999, "library": "/x", "work": "describe"}"#;
        assert!(read_job(job.as_bytes()).unwrap_err().chain().contains("999"));
        assert!(read_job(&b"nonsense"[..]).is_err());
    }
}
