//! Whether the kernel killed a process for memory. A process killed by SIGKILL does not say by whom; the kernel's
//! counters do.

use std::fs;
use std::path::{Path, PathBuf};

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryKills(Vec<Option<u64>>);

impl MemoryKills {
    /// Reads the counters of the machine and of this process's control group.
    pub fn read() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut counters = vec![counter(Path::new("/proc/vmstat"))];
        counters.extend(counter_files(&groups).iter().map(|path| counter(path)));
        Self(counters)
    }

    /// True when a kill was counted since `earlier`.
    pub fn rose_since(&self, earlier: &Self) -> bool {
        self.0.iter().zip(&earlier.0).any(|(now, then)| now.zip(*then).is_some_and(|(now, then)| now > then))
    }
}

/// The files that count kills of the control groups in the text of `/proc/self/cgroup`: version 2 says `0::/path`,
/// version 1 `4:memory:/path`. In a container the path may be the host's, and the group itself is at the root.
fn counter_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.events")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.oom_control")
        } else {
            continue;
        };
        files.push(Path::new(root).join(path.trim_start_matches('/')).join(file));
        files.push(Path::new(root).join(file));
    }
    files
}

/// The kills that a file counts. All three files have a line `oom_kill N`.
pub(super) fn counter(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_both_versions_of_control_groups() {
        let files = counter_files("5:devices:/\n4:cpu,memory:/jobs/a\n0::/user.slice\nodd\n");
        let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/jobs/a/memory.oom_control",
                "/sys/fs/cgroup/memory/memory.oom_control",
                "/sys/fs/cgroup/user.slice/memory.events",
                "/sys/fs/cgroup/memory.events",
            ]
        );
    }

    #[test]
    fn a_counter_that_appears_late_is_no_kill() {
        let kills = |values: &[Option<u64>]| MemoryKills(values.to_vec());
        assert!(kills(&[Some(1), Some(5)]).rose_since(&kills(&[Some(1), Some(4)])));
        assert!(!kills(&[Some(1), Some(5)]).rose_since(&kills(&[Some(1), None])));
        assert!(!kills(&[None]).rose_since(&kills(&[Some(3)])));
    }
}
