//! Runs one worker process: hands it the job, passes on its lines, and sees to its end, whatever end that is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::error::{Context, Error, Kind, Result};
use crate::orchestrator::conditions::Conditions;
use crate::orchestrator::interrupt::Interrupt;
use crate::orchestrator::memory_group::{GroupUse, MemoryGroup};
use crate::orchestrator::memory_kills::MemoryKills;
use crate::probe::memory::Resident;
use crate::protocol::Job;
use crate::results::folder::write_error;

/// How to start a worker.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The program, which is this one outside of tests.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Worker {
    /// This program's own hidden command.
    ///
    /// # Errors
    /// A program that does not know where it lies.
    pub fn this_program() -> Result<Self> {
        let program = std::env::current_exe()
            .context("cannot find this program's own file")
            .map_err(|error| error.kind(Kind::Environment))?;
        Ok(Self { program, arguments: vec!["worker".into()] })
    }
}

/// Why a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, or by a signal that was not ours.
    Own(ExitStatus),
    /// It took longer than allowed and was killed.
    TimedOut,
    /// The user asked for the end and it was killed.
    Interrupted,
}

/// A process that ended.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub end: End,
    /// From its start.
    pub seconds: f64,
    /// True when the kernel counted a kill for memory meanwhile.
    pub memory_kill: bool,
    /// What its control group held, where it had one.
    pub group: Option<GroupUse>,
    /// What was seen of its memory, where it was looked at.
    pub peaks: Option<Peaks>,
}

/// The largest of the readings of a process's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peaks {
    /// Without a file behind it.
    pub anonymous: u64,
    /// Mapped files.
    pub file_backed: u64,
}

impl Peaks {
    fn add(&mut self, resident: &Resident) {
        self.anonymous = self.anonymous.max(resident.anonymous);
        self.file_backed = self.file_backed.max(resident.file_backed);
    }
}

/// A longer line is no message.
const LONGEST_LINE: u64 = 64 << 20;
/// How soon a request to end is noticed. Each waking costs the measured process some ten microseconds of one core.
const WAKING: Duration = Duration::from_millis(250);
/// The same where the process's memory is looked at each time.
const SAMPLING: Duration = Duration::from_millis(100);
/// How long the output of a process that ended may still be held open by one that escaped from its group.
const DRAINING: Duration = Duration::from_secs(2);

enum Event {
    Line(Vec<u8>),
    Closed,
    Exited,
}

/// Runs the job in a fresh process. Every line of its standard output goes to `on_line`; its standard error goes to
/// `log`. When this returns, the process and its process group are gone.
///
/// Call it from a thread that outlives the process: the kernel ends a worker with the thread that started it.
///
/// # Errors
/// A program that cannot be started, a log that cannot be written, a process that its control group does not take.
pub fn run(
    worker: &Worker,
    job: &Job,
    log: &Path,
    conditions: &Conditions,
    interrupt: &Interrupt,
    on_line: &mut dyn FnMut(&[u8]),
) -> Result<Ended> {
    let message = serde_json::to_vec(job).context("cannot express a job as JSON")?;
    let kills = MemoryKills::read();
    let start = Instant::now();
    let mut child = spawn(worker, log)?;
    prefer_as_victim(&child);
    // The worker waits for its job, so it has loaded nothing when it enters its group.
    let entered = conditions.group.as_ref().map_or(Ok(()), |group| group.add(child.id()));
    if let Err(error) = entered {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    if let Some(mut stdin) = child.stdin.take() {
        // A worker that ended before it read its job tells why by its end.
        let _ = stdin.write_all(&message);
    }
    let pid = Pid::from_child(&child);
    let events = listen(pid, child.stdout.take());
    let mut peaks = conditions.sampled.then(Peaks::default);
    let killed = attend(pid, &events, start + conditions.timeout, interrupt, peaks.as_mut(), on_line);
    let status =
        child.wait().context("cannot learn how the worker ended").map_err(|error| error.kind(Kind::Environment))?;
    Ok(Ended {
        end: killed.unwrap_or(End::Own(status)),
        seconds: start.elapsed().as_secs_f64(),
        memory_kill: MemoryKills::read().rose_since(&kills),
        group: conditions.group.as_ref().map(MemoryGroup::usage),
        peaks: peaks.filter(|peaks| *peaks != Peaks::default()),
    })
}

fn spawn(worker: &Worker, log: &Path) -> Result<Child> {
    let stderr = open_log(log)?;
    let mut command = Command::new(&worker.program);
    command.args(&worker.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
    command.spawn().map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        let error = Error::environment(format!("cannot start `{}`", worker.program.display())).because(error);
        if missing { error.hint("the program's file was moved or replaced during the run; resume it") } else { error }
    })
}

/// Opens a log to append to: the process and its reader both write it.
pub fn open_log(path: &Path) -> Result<File> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.map_err(|error| write_error(path, "cannot write the log", error))
}

/// When memory runs out, the worker that took it is to be killed and not the runner that reports it.
fn prefer_as_victim(child: &Child) {
    // Where the kernel does not allow it, its own choice stands.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "500");
}

fn listen(pid: Pid, stdout: Option<ChildStdout>) -> Receiver<Event> {
    let (sender, events) = channel();
    if let Some(stdout) = stdout {
        let sender = sender.clone();
        thread::spawn(move || read_lines(stdout, &sender));
    } else {
        let _ = sender.send(Event::Closed);
    }
    thread::spawn(move || {
        // NOWAIT leaves the process as a zombie, so that its id (and its group's) stays taken until the group is
        // killed.
        while matches!(
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT),
            Err(rustix::io::Errno::INTR)
        ) {}
        let _ = sender.send(Event::Exited);
    });
    events
}

fn read_lines(stdout: ChildStdout, sender: &Sender<Event>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if sender.send(Event::Line(line)).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = sender.send(Event::Closed);
}

/// Passes lines on until the process is gone and its output closed; returns why it was killed, if it was.
fn attend(
    pid: Pid,
    events: &Receiver<Event>,
    deadline: Instant,
    interrupt: &Interrupt,
    mut peaks: Option<&mut Peaks>,
    on_line: &mut dyn FnMut(&[u8]),
) -> Option<End> {
    let waking = if peaks.is_some() { SAMPLING } else { WAKING };
    let mut looked = Instant::now();
    let mut killed = None;
    let mut closed = false;
    let mut drained_by: Option<Instant> = None;
    while !(closed && drained_by.is_some()) {
        let now = Instant::now();
        if let Some(limit) = drained_by {
            if now >= limit {
                break;
            }
        } else if killed.is_none() {
            if interrupt.requested() {
                killed = Some(End::Interrupted);
            } else if now >= deadline {
                killed = Some(End::TimedOut);
            }
            if killed.is_some() {
                kill_group(pid);
            }
        }
        if let Some(peaks) = peaks.as_mut().filter(|_| drained_by.is_none() && now - looked >= SAMPLING) {
            looked = now;
            // A process that just ended has no memory to look at.
            if let Ok(resident) = Resident::of(pid.as_raw_nonzero().get().unsigned_abs()) {
                peaks.add(&resident);
            }
        }
        let until = match (drained_by, killed) {
            (Some(limit), _) => limit.saturating_duration_since(now),
            (None, Some(_)) => waking,
            (None, None) => deadline.saturating_duration_since(now),
        };
        match events.recv_timeout(until.min(waking).max(Duration::from_millis(1))) {
            Ok(Event::Line(line)) => on_line(&line),
            Ok(Event::Closed) => closed = true,
            Ok(Event::Exited) => {
                kill_group(pid);
                drained_by = Some(Instant::now() + DRAINING);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    killed
}

/// Ends the process and all that it started. An empty group is as good as a killed one.
fn kill_group(pid: Pid) {
    let _ = kill_process_group(pid, Signal::KILL);
}
