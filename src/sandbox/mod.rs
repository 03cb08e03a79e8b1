//! Runs a program that a model wrote: confined, with limits, without network.
//!
//! Three processes take part, the first two of them this program's own file:
//!
//! 1. [`Sandbox::run`] writes the program's text into a fresh folder and starts the hidden command `ortbench sandbox`.
//! 2. That command (`supervise`) keeps the wall clock. All that the program starts stays below it, also what detaches
//!    itself, since it asks the kernel for orphans (`PR_SET_CHILD_SUBREAPER`); it ends only when nothing is left.
//! 3. `ortbench sandbox --enter` (`enter`) restricts itself (resource limits, Landlock, seccomp) and becomes the
//!    program through `exec`. Nothing that a program does later can widen what it entered with.
//!
//! What a program can do: read and execute whatever its user can; write in its own folder; use the processor, the
//! memory and the processes it is given. What it cannot: open a socket of any kind (pairs of connected local ones
//! excepted), write, rename, truncate or change modes elsewhere, signal or trace processes, make namespaces, mount,
//! leave anything running. A kernel that cannot forbid this runs nothing: [`Sandbox::check`] says so.
//!
//! What the limits do not say: memory and processor time are limits of each process, so a program with several can use
//! them several times. The size of a file is limited, the number of files is not. Files that the user may read are
//! readable to the program; it has no way to send them anywhere, but it can print them. If the supervising process is
//! killed outright from outside, the program dies with it, its children may outlive it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

mod enter;
mod filter;
mod output;
mod supervise;

pub use enter::enter;
pub use supervise::supervise;

/// Limits of one program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// From its start to the end of its first process, in seconds.
    pub wall_seconds: f64,
    /// Processor time of each process, in seconds.
    pub cpu_seconds: u64,
    /// Address space of each process, in bytes. An interpreter's own needs count.
    pub memory_bytes: u64,
    /// Size of each file that it writes, in bytes.
    pub file_bytes: u64,
    /// Processes and threads at one time, the first included.
    pub processes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { wall_seconds: 10.0, cpu_seconds: 10, memory_bytes: 1 << 30, file_bytes: 16 << 20, processes: 16 }
    }
}

impl Limits {
    fn wall(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.wall_seconds).ok().filter(|wall| !wall.is_zero()).ok_or_else(|| {
            Error::new(format!("a wall limit of {} s is no time", self.wall_seconds)).hint("give some seconds")
        })
    }
}

/// How a program ended. Running out of memory is no end of its own: the allocation fails, and what the program makes of
/// that (an exception, an abort) is the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// With exit code 0.
    Passed,
    /// With another exit code.
    Failed {
        /// That code.
        code: i32,
    },
    /// By a signal, its own or the kernel's.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It used up its wall or processor time.
    TimedOut,
}

/// A program that ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// How it ended.
    pub verdict: Verdict,
    /// What it wrote on standard output and standard error, in order; of a long text the beginning and the end.
    pub output: String,
    /// From the program's start to its end.
    pub seconds: f64,
}

/// What `supervise` answers on its standard output, and `enter` on its pipe when it fails.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ended { verdict: Verdict, seconds: f64 },
    Refused { message: String, hint: Option<String> },
}

impl Answer {
    fn refusal(error: &Error) -> Self {
        Self::Refused { message: error.chain(), hint: error.find_hint().map(str::to_owned) }
    }
}

/// The program that provides the hidden command.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The program, which is this one outside of tests.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// The user that programs become when the superuser runs them: `nobody`.
const NOBODY: u32 = 65534;
/// How long a supervising process may take beyond the program's wall time.
const GRACE: Duration = Duration::from_secs(15);
/// How long the output may stay open after the supervising process ended, which only an escape can cause.
const DRAINING: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const LONGEST_ANSWER: u64 = 64 << 10;

impl Sandbox {
    /// This program's own hidden command.
    ///
    /// # Errors
    /// A program that does not know where it lies.
    pub fn this_program() -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|error| Error::environment("cannot find this program's own file").because(error))?;
        Ok(Self { program, arguments: vec!["sandbox".into()] })
    }

    /// Whether this machine can confine programs and knows the command, to be asked once, before any model is loaded.
    ///
    /// # Errors
    /// What the kernel lacks, or the command that is not found, with the remedy.
    pub fn check(&self, command: &[String]) -> Result<()> {
        let Some(name) = command.first() else { return Err(no_command()) };
        let probe = ["/bin/sh", "-c", "command -v \"$1\" >/dev/null", "sh", name].map(str::to_owned);
        let run = self.run(&probe, "probe", "", &Limits::default()).map_err(|error| {
            let kind = error.root_kind();
            Error::new("this machine cannot run generated programs safely").kind(kind).because(error)
        })?;
        match run.verdict {
            Verdict::Passed => Ok(()),
            Verdict::Failed { code: 1 | 127 } => Err(unknown_command(name)),
            other => Err(Error::environment(format!("a probe in the sandbox ended with {other:?}: {}", run.output))),
        }
    }

    /// Writes `source` as `file` into a fresh folder, runs `command` there under the limits and without network, and
    /// removes the folder. The command's environment holds `PATH`, `HOME`, `LANG` and `TMPDIR` alone, its standard
    /// input is empty. When this returns, all that the program started is gone.
    ///
    /// # Errors
    /// A command that cannot be executed, limits that mean nothing, a kernel that cannot confine the program. What the
    /// program does is never an error.
    pub fn run(&self, command: &[String], file: &str, source: &str, limits: &Limits) -> Result<Run> {
        let wall = limits.wall()?;
        if command.is_empty() {
            return Err(no_command());
        }
        let folder = prepare(file, source)?;
        let limits =
            serde_json::to_string(limits).map_err(|error| Error::new("cannot encode limits").because(error))?;
        let mut supervisor = Command::new(&self.program);
        supervisor.args(&self.arguments).arg("--limits").arg(limits).arg("--").args(command);
        supervisor.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // An interrupt typed at the terminal reaches this process, and the supervising one notices when this one ends.
        supervisor.process_group(0);
        let mut supervisor = supervisor
            .spawn()
            .map_err(|error| Error::environment(format!("cannot start `{}`", self.program.display())).because(error))?;
        let output = in_thread(supervisor.stderr.take(), output::read_bounded);
        let answer = in_thread(supervisor.stdout.take(), |pipe| {
            let mut text = Vec::new();
            // What arrived before a failure is judged below.
            let _ = pipe.take(LONGEST_ANSWER).read_to_end(&mut text);
            text
        });
        let answer = answer.recv_timeout(wall + GRACE);
        if answer.is_err() {
            let _ = supervisor.kill();
        }
        let status = supervisor.wait();
        let output = output.recv_timeout(DRAINING).unwrap_or_default();
        remove(folder)?;
        match answer.ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            Some(Answer::Ended { verdict, seconds }) => Ok(Run { verdict, output, seconds }),
            Some(Answer::Refused { message, hint }) => {
                let error = Error::environment(message);
                Err(if let Some(hint) = hint { error.hint(hint) } else { error })
            }
            None => Err(Error::environment(format!(
                "the process that watches a program gave no answer ({}): {output}",
                status.map_or_else(|error| error.to_string(), |status| status.to_string())
            ))),
        }
    }
}

/// A fresh folder that holds the program, in the hands of the user that it runs as.
fn prepare(file: &str, source: &str) -> Result<tempfile::TempDir> {
    if file.is_empty() || file.contains(['/', '\0']) || [".", ".."].contains(&file) {
        return Err(Error::new(format!("`{file}` is no name for a program's file")).hint("give a name like `main.py`"));
    }
    let failed = |error| {
        Error::environment(format!("cannot write a program into `{}`", std::env::temp_dir().display()))
            .hint("set TMPDIR to a folder with room")
            .because(error)
    };
    let folder = tempfile::Builder::new().prefix("ortbench-program-").tempdir().map_err(failed)?;
    let path = folder.path().join(file);
    std::fs::File::create_new(&path).and_then(|mut open| open.write_all(source.as_bytes())).map_err(failed)?;
    if rustix::process::geteuid().is_root() {
        for each in [path.as_path(), folder.path()] {
            give_away(each)?;
        }
    }
    Ok(folder)
}

/// Removes the folder whatever the program made of it: folders that their owner may not list, and nests deeper than
/// this process could follow with open folders and calls, which `rm` can.
fn remove(folder: tempfile::TempDir) -> Result<()> {
    let path = folder.keep();
    for (tool, options) in [("rm", "-rf"), ("chmod", "-Rf"), ("rm", "-rf")] {
        let mut command = Command::new(tool);
        command.arg(options).args((tool == "chmod").then_some("u+rwx")).arg("--").arg(&path);
        // Whether it helped is seen at the end.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !path.exists() {
            return Ok(());
        }
    }
    Err(Error::environment(format!("cannot remove a program's folder `{}`", path.display())).hint("remove it by hand"))
}

fn give_away(path: &Path) -> Result<()> {
    std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).map_err(|error| as_root(error).kind(Kind::Environment))
}

/// The superuser could not become `nobody`.
fn as_root(error: std::io::Error) -> Error {
    Error::environment(format!("the superuser cannot run a program as user {NOBODY} (`nobody`)"))
        .hint("run ortbench as an ordinary user")
        .because(error)
}

fn no_command() -> Error {
    Error::new("the command that runs a program is empty").hint("give one, for example [python3, main.py]")
}

fn unknown_command(name: &str) -> Error {
    Error::environment(format!("a sandboxed program finds no `{name}`"))
        .hint(format!("install it, or give its whole path; looked for in {}", enter::PATH))
}

/// Reads a pipe in a thread of its own.
fn in_thread<P: Send + 'static, T: Send + 'static>(pipe: Option<P>, read: fn(P) -> T) -> Receiver<T> {
    let (sender, receiver) = channel();
    if let Some(pipe) = pipe {
        thread::spawn(move || sender.send(read(pipe)));
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(command: &[&str], file: &str, limits: &Limits) -> String {
        let nowhere = Sandbox { program: "/nowhere/ortbench".into(), arguments: Vec::new() };
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        nowhere.run(&command, file, "", limits).unwrap_err().chain()
    }

    #[test]
    fn input_that_means_nothing_is_refused() {
        let limits = Limits::default();
        assert!(refused(&[], "a.py", &limits).contains("empty"));
        for file in ["", ".", "..", "a/b", "/etc/passwd", "a\0b"] {
            assert!(refused(&["true"], file, &limits).contains("no name"), "{file:?}");
        }
        for wall_seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let limits = Limits { wall_seconds, ..Limits::default() };
            assert!(refused(&["true"], "a.py", &limits).contains("no time"), "{wall_seconds}");
        }
        assert!(refused(&["true"], "a.py", &limits).contains("cannot start `/nowhere/ortbench`"));
    }
}
