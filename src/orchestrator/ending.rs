//! Ends of processes in words.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use crate::cell::Status;
use crate::orchestrator::memory_group::GroupUse;
use crate::units;

/// How a process that did not say `Done` or `Failed` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// [`Status::Failed`] or [`Status::OutOfMemory`].
    pub status: Status,
    /// What happened.
    pub reason: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

/// Texts by which libraries say that an allocation was refused before they end their process.
const REFUSED_ALLOCATION: [&str; 6] = [
    "memory allocation of",
    "std::bad_alloc",
    "bad allocation",
    "Failed to allocate memory",
    "Cannot allocate memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
];

/// Says how the process ended. `phase` is the last one that it entered, `memory_kill` whether the kernel counted a kill
/// for memory meanwhile, `group` its control group, `log` what it wrote.
pub fn describe(
    status: ExitStatus,
    memory_kill: bool,
    group: Option<GroupUse>,
    phase: Option<&str>,
    log: &Path,
) -> Ending {
    let place = phase.map(|phase| format!(" in phase `{phase}`")).unwrap_or_default();
    let tail = last_lines(log);
    let words = tail.as_ref().map(|tail| format!("; its last words: {tail}")).unwrap_or_default();
    if let Some(group) = group.filter(|group| group.killed && status.signal() == Some(9)) {
        let peak = group.peak.map_or(String::new(), |peak| format!(", its peak was {}", units::bytes(peak)));
        let limit = units::bytes(group.limit);
        return Ending {
            status: Status::OutOfMemory,
            reason: format!("the kernel killed the process{place} because it reached its limit of {limit}{peak}"),
            hint: Some("raise `memory_limit`, or lower `memory_budget`, the batch or the context".to_owned()),
        };
    }
    if status.signal() == Some(9) && memory_kill {
        return Ending {
            status: Status::OutOfMemory,
            reason: format!("the kernel killed the process{place} because memory ran out"),
            hint: Some("use a smaller model, precision, batch or context, or raise the memory limit".to_owned()),
        };
    }
    let refused = tail.as_ref().is_some_and(|tail| REFUSED_ALLOCATION.iter().any(|text| tail.contains(text)));
    let ended = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("the process ended by {}{place}", signal_name(signal)),
        (None, Some(0)) => format!("the process ended{place} without a result"),
        (None, code) => format!("the process ended{place} with exit code {}", code.unwrap_or(-1)),
    };
    if refused && !status.success() {
        return Ending {
            status: Status::OutOfMemory,
            reason: format!("an allocation was refused: {ended}{words}"),
            hint: Some("use a smaller model, precision, batch or context, or raise the memory limit".to_owned()),
        };
    }
    Ending { status: Status::Failed, reason: format!("{ended}{words}"), hint: Some(format!("see `{}`", log.display())) }
}

fn signal_name(signal: i32) -> String {
    // The numbers are Linux's on x86-64 and AArch64.
    match signal {
        4 => "SIGILL (an instruction that this processor does not have)".to_owned(),
        6 => "SIGABRT (it aborted itself)".to_owned(),
        7 => "SIGBUS (a mapped file became shorter, or its disk failed)".to_owned(),
        8 => "SIGFPE (an arithmetic fault)".to_owned(),
        9 => "SIGKILL (killed from outside)".to_owned(),
        11 => "SIGSEGV (a memory fault)".to_owned(),
        15 => "SIGTERM (ended from outside)".to_owned(),
        24 => "SIGXCPU (its limit of processor time)".to_owned(),
        25 => "SIGXFSZ (its limit of file size)".to_owned(),
        31 => "SIGSYS (a forbidden system call)".to_owned(),
        number => format!("signal {number}"),
    }
}

/// The last three lines of a log in one, each kept short.
fn last_lines(log: &Path) -> Option<String> {
    const TAIL_BYTES: u64 = 8 << 10;
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().rev().map(clean).filter(|line| !line.is_empty()).take(3).collect();
    lines.reverse();
    (!lines.is_empty()).then(|| lines.join(" / "))
}

fn clean(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(300).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(raw_status: i32, memory_kill: bool, log: &str) -> Ending {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), log).unwrap();
        describe(ExitStatus::from_raw(raw_status), memory_kill, None, Some("load"), file.path())
    }

    #[test]
    fn names_signals_codes_and_last_words() {
        let end = ending(11, false, "one\ntwo\n\nthree\nfour\n");
        assert_eq!(end.status, Status::Failed);
        assert_eq!(
            end.reason,
            "the process ended by SIGSEGV (a memory fault) in phase `load`; its last words: two / three / four"
        );
        assert_eq!(ending(3 << 8, false, "").reason, "the process ended in phase `load` with exit code 3");
        assert_eq!(ending(0, false, "").reason, "the process ended in phase `load` without a result");
    }

    #[test]
    fn a_limit_that_was_reached_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let end = |killed| {
            let group = GroupUse { limit: 4 << 30, peak: Some(3 << 30), killed };
            describe(ExitStatus::from_raw(9), true, Some(group), Some("load"), file.path())
        };
        assert_eq!(end(true).status, Status::OutOfMemory);
        assert_eq!(
            end(true).reason,
            "the kernel killed the process in phase `load` because it reached its limit of 4.0 GiB, its peak was 3.0 GiB"
        );
        assert!(end(false).reason.ends_with("because memory ran out"), "another group's limit, or the machine's");
    }

    #[test]
    fn tells_memory_from_other_kills() {
        assert_eq!(ending(9, true, "").status, Status::OutOfMemory);
        assert_eq!(ending(9, false, "").status, Status::Failed);
        assert_eq!(ending(11, true, "").status, Status::Failed);
        assert_eq!(ending(6, false, "memory allocation of 5 bytes failed\n").status, Status::OutOfMemory);
    }
}
