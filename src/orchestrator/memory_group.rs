//! A control group with a memory limit around one worker: made before the worker gets its job, asked after its end,
//! then removed. Both versions of control groups are known; swap is switched off, or a limit would be none, unless it is
//! the kernel's swapping that is to be seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};
use crate::orchestrator::memory_kills::counter;

const REMEDY: &str = "run as root (in a container, with /sys/fs/cgroup writable), or in a control group of your own: \
                      `systemd-run --user --scope -p Delegate=yes ortbench run …`";

/// Groups of this program are named `ortbench-PID-NUMBER`, by which those of dead runs are known.
const PREFIX: &str = "ortbench-";

/// How long the kernel may take until a group without processes can be removed.
const REMOVAL: Duration = Duration::from_secs(2);

/// A group that exists.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    files: &'static Files,
    limit: u64,
    may_swap: bool,
    swap_is_off: bool,
}

/// What a group did until its process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupUse {
    /// Its limit in bytes.
    pub limit: u64,
    /// The most that it held in bytes, page cache included; `None` where the kernel does not say.
    pub peak: Option<u64>,
    /// Whether the kernel killed one of its processes for the limit.
    pub killed: bool,
}

/// The files of a version of control groups.
#[derive(Debug)]
struct Files {
    limit: &'static str,
    /// What must be the limit (version 1: memory and swap together) or zero.
    swap: &'static str,
    swap_is_sum: bool,
    peak: &'static str,
    kills: &'static str,
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    swap_is_sum: true,
    peak: "memory.max_usage_in_bytes",
    kills: "memory.oom_control",
};

const VERSION_2: Files = Files {
    limit: "memory.max",
    swap: "memory.swap.max",
    swap_is_sum: false,
    peak: "memory.peak",
    kills: "memory.events",
};

impl MemoryGroup {
    /// Makes a group with that limit in bytes, and removes those that dead runs left.
    ///
    /// # Errors
    /// A machine or a user without control groups of memory, `unsupported` and with the remedy.
    pub fn create(limit: u64) -> Result<Self> {
        Self::create_below(Path::new("/"), limit, false)
    }

    /// The same where what exceeds the limit may go to swap, as far as the machine has some.
    ///
    /// # Errors
    /// As [`MemoryGroup::create`].
    pub fn create_swapping(limit: u64) -> Result<Self> {
        Self::create_below(Path::new("/"), limit, true)
    }

    /// The same on a recorded tree.
    fn create_below(root: &Path, limit: u64, may_swap: bool) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (parents, files) = parents(root)?;
        let mut failure = None;
        for parent in parents {
            sweep(&parent, root);
            let folder = parent.join(&name);
            match fs::create_dir(&folder) {
                // From here on it is removed whatever happens.
                Ok(()) => return Self { folder, files, limit, may_swap, swap_is_off: false }.limited(),
                Err(error) => failure = failure.or(Some((folder, error))),
            }
        }
        Err(match failure {
            Some((folder, error)) => {
                unsupported(format!("cannot make the control group `{}`", folder.display()), error)
            }
            None => {
                Error::unsupported("this process's control group cannot have groups of its own with a memory limit")
                    .hint(REMEDY)
            }
        })
    }

    fn limited(mut self) -> Result<Self> {
        let write = |file: &str, value: u64| fs::write(self.folder.join(file), value.to_string());
        let swap = if self.files.swap_is_sum { self.limit } else { 0 };
        // Version 1 refuses a sum below the limit, so the limit comes first.
        write(self.files.limit, self.limit).map_err(|error| {
            unsupported(format!("cannot limit the memory of the control group `{}`", self.folder.display()), error)
        })?;
        // A group is made without a bound of swap.
        let known = !self.may_swap && self.folder.join(self.files.swap).exists();
        self.swap_is_off = known && write(self.files.swap, swap).is_ok();
        Ok(self)
    }

    /// Puts a process into the group. What it holds already stays on the account of the group that it comes from.
    ///
    /// # Errors
    /// A kernel that does not allow it.
    pub fn add(&self, process: u32) -> Result<()> {
        fs::write(self.folder.join("cgroup.procs"), process.to_string()).map_err(|error| {
            unsupported(format!("cannot put a process into the control group `{}`", self.folder.display()), error)
        })
    }

    /// What it did so far.
    pub fn usage(&self) -> GroupUse {
        let peak = fs::read_to_string(self.folder.join(self.files.peak)).ok();
        GroupUse {
            limit: self.limit,
            peak: peak.and_then(|text| text.trim().parse().ok()),
            killed: counter(&self.folder.join(self.files.kills)).is_some_and(|kills| kills > 0),
        }
    }

    /// Whether what exceeds the limit is refused, and not moved to swap.
    pub fn swap_is_off(&self) -> bool {
        self.swap_is_off
    }
}

impl Drop for MemoryGroup {
    /// Ends what is left in the group, and removes it. What cannot be removed now the next run removes.
    fn drop(&mut self) {
        let start = Instant::now();
        while fs::remove_dir(&self.folder).is_err() && self.folder.exists() && start.elapsed() < REMOVAL {
            for process in processes(&self.folder) {
                let _ = kill_process(process, Signal::KILL);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn unsupported(message: String, error: std::io::Error) -> Error {
    Error::unsupported(message).because(error).hint(REMEDY)
}

fn processes(folder: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect()
}

/// Where groups may be made, best first, and what their files are called.
fn parents(root: &Path) -> Result<(Vec<PathBuf>, &'static Files)> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if controllers.split(',').any(|name| name == "memory") {
            let own = own_group(&root.join("sys/fs/cgroup/memory"), path);
            return Ok((vec![own], &VERSION_1));
        }
    }
    let mount = root.join("sys/fs/cgroup");
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    match path.filter(|_| has_memory(&mount.join("cgroup.controllers"))) {
        Some(path) => {
            let own = own_group(&mount, path);
            share_out(&own);
            let inside = own.ancestors().take_while(|folder| folder.starts_with(&mount));
            let shared = inside.filter(|folder| has_memory(&folder.join("cgroup.subtree_control")));
            Ok((shared.map(Path::to_owned).collect(), &VERSION_2))
        }
        None => Err(Error::unsupported("this machine shows no control groups with the memory controller").hint(REMEDY)),
    }
}

/// In a container the path may be the host's, and the group itself is the mount's root.
fn own_group(mount: &Path, path: &str) -> PathBuf {
    let inside = mount.join(path.trim_start_matches('/'));
    if inside.is_dir() { inside } else { mount.to_owned() }
}

fn has_memory(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|name| name == "memory"))
}

/// Version 2 lets a group either have processes or share controllers out to groups below it. Where this process is alone
/// in a group that is its own (`Delegate=yes`), it moves to one below, so that there can be others beside it.
fn share_out(own: &Path) {
    let control = own.join("cgroup.subtree_control");
    let this = std::process::id();
    let alone = processes(own).iter().all(|process| process.as_raw_nonzero().get().unsigned_abs() == this);
    if has_memory(&control) || !has_memory(&own.join("cgroup.controllers")) || !alone {
        return;
    }
    let leaf = own.join(format!("{PREFIX}{this}-runner"));
    // Where one of these steps is not allowed, the groups above are tried.
    if fs::create_dir(&leaf).is_err() {
        return;
    }
    let moved = fs::write(leaf.join("cgroup.procs"), this.to_string()).is_ok();
    if !moved || fs::write(&control, "+memory").is_err() {
        let _ = fs::write(own.join("cgroup.procs"), this.to_string());
        let _ = fs::remove_dir(&leaf);
    }
}

/// Removes groups of runs that are no more. A group with processes cannot be removed, so nobody loses a living one.
fn sweep(parent: &Path, root: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !root.join("proc").join(owner.to_string()).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::fixture::tree;

    fn below(root: &tempfile::TempDir) -> (Vec<String>, &'static str) {
        let (parents, files) = parents(root.path()).unwrap();
        let mount = root.path().join("sys/fs/cgroup");
        let names = parents.iter().map(|parent| parent.strip_prefix(&mount).unwrap().display().to_string());
        (names.collect(), files.limit)
    }

    #[test]
    fn version_1_nests_in_the_own_group() {
        let root = tree(&[
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/jobs/a\n0::/\n"),
            ("sys/fs/cgroup/memory/jobs/a/cgroup.procs", ""),
        ]);
        assert_eq!(below(&root), (vec!["memory/jobs/a".to_owned()], "memory.limit_in_bytes"));
        let root =
            tree(&[("proc/self/cgroup", "4:memory:/docker/elsewhere\n"), ("sys/fs/cgroup/memory/cgroup.procs", "")]);
        assert_eq!(below(&root).0, ["memory"]);
    }

    #[test]
    fn version_2_takes_the_nearest_group_that_shares_memory_out() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/user.slice/session.scope\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n"),
            ("sys/fs/cgroup/cgroup.subtree_control", "cpu memory\n"),
            ("sys/fs/cgroup/user.slice/cgroup.subtree_control", "memory pids\n"),
            ("sys/fs/cgroup/user.slice/session.scope/cgroup.subtree_control", "\n"),
            // Another process is there too, so the group cannot be shared out.
            ("sys/fs/cgroup/user.slice/session.scope/cgroup.procs", "1\n2\n"),
            ("sys/fs/cgroup/user.slice/session.scope/cgroup.controllers", "memory\n"),
        ]);
        assert_eq!(below(&root), (vec!["user.slice".to_owned(), String::new()], "memory.max"));
    }

    #[test]
    fn a_group_of_ones_own_is_shared_out() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/run.scope\n"),
            ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
            ("sys/fs/cgroup/run.scope/cgroup.controllers", "memory\n"),
            ("sys/fs/cgroup/run.scope/cgroup.subtree_control", ""),
            ("sys/fs/cgroup/run.scope/cgroup.procs", &format!("{}\n", std::process::id())),
        ]);
        let _ = parents(root.path()).unwrap();
        let own = root.path().join("sys/fs/cgroup/run.scope");
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+memory");
        let leaf = own.join(format!("ortbench-{}-runner", std::process::id()));
        assert_eq!(fs::read_to_string(leaf.join("cgroup.procs")).unwrap(), std::process::id().to_string());
    }

    #[test]
    fn no_controller_is_unsupported_with_a_remedy() {
        let error =
            MemoryGroup::create_below(tree(&[("proc/self/cgroup", "0::/\n")]).path(), 1 << 20, false).unwrap_err();
        assert_eq!(error.root_kind(), crate::error::Kind::Unsupported);
        assert!(error.find_hint().unwrap().contains("Delegate=yes"));
        let nothing_shared = tree(&[
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
            ("sys/fs/cgroup/a/cgroup.procs", "1\n"),
        ]);
        assert!(
            MemoryGroup::create_below(nothing_shared.path(), 1, false).unwrap_err().to_string().contains("of its own")
        );
    }

    #[test]
    fn swap_is_left_alone_where_it_may_be_used() {
        let limits = |may_swap: bool| {
            let root = tree(&[("sys/fs/cgroup/memory/g/memory.memsw.limit_in_bytes", "9223372036854771712")]);
            let folder = root.path().join("sys/fs/cgroup/memory/g");
            let group = MemoryGroup { folder, files: &VERSION_1, limit: 4096, may_swap, swap_is_off: false };
            let group = group.limited().unwrap();
            let text = |file: &str| fs::read_to_string(group.folder.join(file)).unwrap();
            let found = (text(VERSION_1.limit), text(VERSION_1.swap), group.swap_is_off());
            // The folder is no group that could be removed as one.
            fs::remove_dir_all(&group.folder).unwrap();
            found
        };
        assert_eq!(limits(false), ("4096".to_owned(), "4096".to_owned(), true));
        assert_eq!(limits(true), ("4096".to_owned(), "9223372036854771712".to_owned(), false));
    }

    #[test]
    fn groups_of_dead_runs_are_removed_and_others_stay() {
        let root = tree(&[
            ("proc/self/cgroup", "4:memory:/\n"),
            ("proc/77/status", ""),
            ("sys/fs/cgroup/memory/cgroup.procs", ""),
        ]);
        let memory = root.path().join("sys/fs/cgroup/memory");
        for name in ["ortbench-76-0", "ortbench-77-0", "ortbench-x", "other-76-0"] {
            fs::create_dir(memory.join(name)).unwrap();
        }
        sweep(&memory, root.path());
        let mut left: Vec<_> = fs::read_dir(&memory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["cgroup.procs", "ortbench-77-0", "ortbench-x", "other-76-0"]);
    }
}
