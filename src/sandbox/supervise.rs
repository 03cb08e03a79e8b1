//! The process between ortbench and a program: it keeps the wall clock, and ends only when all is gone that the program
//! started.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, set_child_subreaper,
    set_dumpable_behavior, wait,
};

use super::{Answer, Limits, NOBODY, Verdict, as_root};
use crate::error::{Context, Error, Kind, Result};

/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How long ending a program's processes may take.
const ENDING: Duration = Duration::from_secs(10);

/// The body of the hidden command: runs `command` in the current folder and answers on standard output. Standard error
/// is the program's output.
///
/// # Errors
/// Standard output that cannot be written. Everything else is part of the answer.
pub fn supervise(limits: &str, command: &[OsString]) -> Result<()> {
    let answer = attend(limits, command).unwrap_or_else(|error| Answer::refusal(&error));
    let text = serde_json::to_string(&answer).context("cannot encode the end of a program")?;
    writeln!(std::io::stdout(), "{text}").context("cannot report the end of a program")
}

fn attend(text: &str, command: &[OsString]) -> Result<Answer> {
    let limits: Limits = serde_json::from_str(text).context("cannot read the limits")?;
    let wall = limits.wall()?;
    let parent = getppid();
    let environment = |error: Errno| {
        Error::environment("cannot keep a program's processes together").because(std::io::Error::from(error))
    };
    // The program must not read or write this process's memory and descriptors, where it runs as the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(environment)?;
    set_child_subreaper(Some(getpid())).map_err(environment)?;
    let program = start(text, command)?;
    let begin = Instant::now();
    let verdict = loop {
        // The program itself last, so that its zombie is not mistaken for a process that still runs.
        if let Some(status) = reap(program)? {
            break verdict_of(status);
        }
        if begin.elapsed() >= wall || getppid() != parent {
            break Verdict::TimedOut;
        }
        thread::sleep(LOOK);
    };
    let seconds = begin.elapsed().as_secs_f64();
    end_all()?;
    Ok(Answer::Ended { verdict, seconds })
}

/// Starts `enter` and returns once it became the program.
fn start(limits: &str, command: &[OsString]) -> Result<Pid> {
    let environment = |error| Error::environment("cannot start a program").because(error);
    let (mut told, teller) = std::io::pipe().map_err(environment)?;
    let output = || std::io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
    // Its own file under a name that any user can follow, wherever it lies.
    let mut entering = Command::new("/proc/self/exe");
    entering.arg0("ortbench").args(["sandbox", "--enter", "--limits", limits, "--"]).args(command);
    // Standard input carries what `enter` has to tell; before the program starts it becomes `/dev/null`.
    entering.stdin(teller).stdout(output().map_err(environment)?).stderr(output().map_err(environment)?);
    let root = rustix::process::geteuid().is_root();
    if root {
        entering.uid(NOBODY).gid(NOBODY);
    }
    let child = entering.spawn().map_err(|error| if root { as_root(error) } else { environment(error) })?;
    // `entering` holds the pipe's other end, which must be closed for the end to be seen.
    drop(entering);
    let mut refusal = Vec::new();
    told.read_to_end(&mut refusal).map_err(environment)?;
    if refusal.is_empty() {
        return Ok(Pid::from_child(&child));
    }
    match serde_json::from_slice(&refusal).context("cannot read why a program did not start")? {
        Answer::Refused { message, hint: Some(hint) } => Err(Error::environment(message).hint(hint)),
        Answer::Refused { message, hint: None } => Err(Error::environment(message)),
        Answer::Ended { .. } => Err(Error::environment("a program ended before it started")),
    }
}

/// Collects ended processes; returns the end of the program's first one, if it is among them.
fn reap(program: Pid) -> Result<Option<WaitStatus>> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == program => return Ok(Some(status)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(lost(error.into())),
        }
    }
}

fn verdict_of(status: WaitStatus) -> Verdict {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Verdict::Passed,
        (Some(code), _) => Verdict::Failed { code },
        (None, Some(signal)) if signal == Signal::XCPU.as_raw() => Verdict::TimedOut,
        (None, signal) => Verdict::Killed { signal: signal.unwrap_or_default() },
    }
}

/// Ends what is left. Processes are stopped before they are killed, so that none forks meanwhile; that no child is left
/// is what the kernel says, since orphans come to this process.
fn end_all() -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < ENDING {
        let mut stopped = BTreeSet::new();
        loop {
            let fresh: Vec<_> = descendants().into_iter().filter(|pid| !stopped.contains(pid)).collect();
            if fresh.is_empty() || begin.elapsed() >= ENDING {
                break;
            }
            signal_all(&fresh, Signal::STOP);
            stopped.extend(fresh);
        }
        signal_all(&stopped, Signal::KILL);
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(Errno::CHILD) => return Ok(()),
                Err(error) => return Err(lost(error.into())),
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(Error::environment("processes of a program could not be ended").hint("look for processes of its user"))
}

fn signal_all<'a>(pids: impl IntoIterator<Item = &'a i32>, signal: Signal) {
    for pid in pids.into_iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // One that ended meanwhile is as good as a killed one; its id stays taken until this process collects it.
        let _ = kill_process(pid, signal);
    }
}

/// The ids of all processes below this one.
fn descendants() -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent_in(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = children.remove(&getpid().as_raw_nonzero().get()).unwrap_or_default();
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// The parent's id in a line of `/proc/PID/stat`; the name before it may hold anything, also blanks and parentheses.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn lost(error: std::io::Error) -> Error {
    Error::new("cannot learn how a program ended").kind(Kind::Environment).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_stands_behind_any_name() {
        assert_eq!(parent_in("12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in("12 (a) S 9 (b) R 7 12"), Some(7));
        assert_eq!(parent_in(""), None);
    }
}
