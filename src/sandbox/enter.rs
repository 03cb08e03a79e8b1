//! The last steps before a program starts: this process restricts itself and becomes the program.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, Signal, getppid, getuid, set_parent_process_death_signal, setrlimit, setsid};

use super::{Answer, Limits, filter, unknown_command};
use crate::error::{Context, Error, Result};

/// Where commands are looked for.
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Files that a program may have open at one time.
const OPEN_FILES: u64 = 256;

/// The body of the hidden command with `--enter`: restricts this process and executes `command` in the current folder.
/// Standard input is a pipe on which a failure is told; it is never the program's.
///
/// # Errors
/// A pipe that cannot be written. It does not return otherwise, but by a failure that was told.
pub fn enter(limits: &str, command: &[OsString]) -> Result<()> {
    let pipe =
        std::io::stdin().as_fd().try_clone_to_owned().context("cannot keep the pipe to the supervising process")?;
    let mut pipe = File::from(pipe);
    let Err(error) = close_others(&pipe).and_then(|()| become_program(limits, command));
    let text = serde_json::to_vec(&Answer::refusal(&error)).context("cannot encode a failure")?;
    pipe.write_all(&text).context("cannot tell why a program did not start")
}

/// Closes what came down to this process from whoever started ortbench, which might be a connection: a program shall
/// not find it. Besides the pipe this process has opened nothing yet.
fn close_others(pipe: &File) -> Result<()> {
    let listing = fs::read_dir("/proc/self/fd").map_err(failed("cannot list open files"))?;
    let open: Vec<RawFd> = listing.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2 && *descriptor != pipe.as_raw_fd()) {
        // The listing's own descriptor is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

fn become_program(limits: &str, command: &[OsString]) -> Result<Infallible> {
    let limits: Limits = serde_json::from_str(limits).context("cannot read the limits")?;
    let [name, arguments @ ..] = command else { return Err(super::no_command()) };
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(failed("cannot open `/dev/null`"))?;
    rustix::stdio::dup2_stdin(null).map_err(failed("cannot empty the standard input"))?;
    // Away from the terminal and from the signals that it sends.
    setsid().map_err(failed("cannot start a session"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("cannot tie a program to its supervisor"))?;
    if getppid().is_none_or(|parent| parent.is_init()) {
        return Err(Error::environment("the supervising process is gone"));
    }
    let folder = std::env::current_dir().map_err(failed("cannot find a program's folder"))?;
    let processes = tasks_of_this_user().saturating_sub(1).saturating_add(limits.processes);
    confine_files(&folder)?;
    filter::apply()?;
    for (resource, soft, hard) in [
        (Resource::Core, 0, 0),
        (Resource::Nofile, OPEN_FILES, OPEN_FILES),
        (Resource::Fsize, limits.file_bytes, limits.file_bytes),
        (Resource::Nproc, processes, processes),
        // At the first a signal that tells what happened, a second later one that cannot be ignored.
        (Resource::Cpu, limits.cpu_seconds, limits.cpu_seconds.saturating_add(1)),
        (Resource::As, limits.memory_bytes, limits.memory_bytes),
    ] {
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        setrlimit(resource, limit).map_err(failed(&format!("cannot set a program's limit {resource:?} to {hard}")))?;
    }
    let mut program = Command::new(name);
    program.args(arguments).env_clear();
    program.env("PATH", PATH).env("HOME", &folder).env("TMPDIR", &folder).env("LANG", "C.UTF-8");
    let error = program.exec();
    let shown = name.to_string_lossy();
    Err(match error.kind() {
        ErrorKind::NotFound => unknown_command(&shown),
        _ => Error::environment(format!("cannot execute `{shown}` (as user {})", getuid().as_raw()))
            .hint("programs that the superuser runs become `nobody`, who must be able to read and execute it")
            .because(error),
    })
}

fn failed<E: Into<std::io::Error>>(what: &str) -> impl FnOnce(E) -> Error {
    let what = what.to_owned();
    move |error| Error::environment(what).because(error.into())
}

/// How many processes and threads this user has on the machine: the kernel counts all of them against a limit of
/// processes, so a program's own share stands on top of them.
fn tasks_of_this_user() -> u64 {
    let user = getuid().as_raw().to_string();
    let mut tasks = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.split_whitespace().next())
        };
        if field("Uid:") == Some(&user) {
            tasks += field("Threads:").and_then(|count| count.parse().ok()).unwrap_or(1);
        }
    }
    tasks
}

/// All files may be read and executed, the folder and `/dev/null` be written, nothing else.
fn confine_files(folder: &Path) -> Result<()> {
    let open = |path: &Path| {
        PathFd::new(path).map_err(|error| {
            Error::environment(format!("cannot open `{}` to confine a program", path.display()))
                .hint("set TMPDIR to a folder that every user can enter")
                .because(error)
        })
    };
    let (root, folder, null) = (open(Path::new("/"))?, open(folder)?, open(Path::new("/dev/null"))?);
    let restrict = || -> Result<RulesetStatus, RulesetError> {
        // Before the third version a file could be emptied that must not be written. What later versions add
        // (devices, ports, signals) the filter of system calls forbids too.
        let needed = AccessFs::from_all(ABI::V3);
        let everywhere = AccessFs::from_read(ABI::V3);
        let inside = needed & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock);
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(needed)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::from_all(ABI::V4))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rule(PathBeneath::new(root, everywhere))?
            .add_rule(PathBeneath::new(folder, inside))?
            .add_rule(PathBeneath::new(null, AccessFs::ReadFile | AccessFs::WriteFile))?
            .restrict_self()?;
        Ok(status.ruleset)
    };
    let lacking = || {
        Error::environment("the kernel cannot confine a program to its folder (Landlock, third version)")
            .hint("use Linux 6.2 or newer with `landlock` among the security modules (/sys/kernel/security/lsm)")
    };
    match restrict() {
        Ok(RulesetStatus::NotEnforced) => Err(lacking()),
        Ok(_) => Ok(()),
        Err(error) => Err(lacking().because(error)),
    }
}
