//! How much memory this process may use: control groups (v1 and v2) and the machine.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Values of v1 at or above this mean "no limit": the kernel rounds the largest count down to a page.
const NO_LIMIT: u64 = 1 << 62;

/// What bounds memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemoryLimits {
    /// MemTotal of the machine.
    pub machine_bytes: Option<u64>,
    /// MemAvailable of the machine, now.
    pub available_bytes: Option<u64>,
    /// Swap of the machine.
    pub swap_bytes: Option<u64>,
    /// The smallest limit of the process's control group and those above it.
    pub cgroup_bytes: Option<u64>,
    /// 1 or 2; `None` without control groups.
    pub cgroup_version: Option<u8>,
    /// The file that holds the group's largest use, where the kernel counts it.
    pub cgroup_peak_file: Option<PathBuf>,
}

impl MemoryLimits {
    /// Reads them below `/`.
    pub fn now() -> Self {
        Self::read(Path::new("/"))
    }

    /// Reads them below a recorded tree's root.
    fn read(root: &Path) -> Self {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|value| value * 1024)
        };
        let mut limits = Self {
            machine_bytes: field("MemTotal"),
            available_bytes: field("MemAvailable"),
            swap_bytes: field("SwapTotal"),
            ..Self::default()
        };
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            if controllers.split(',').any(|name| name == "memory") {
                limits.read_group(&root.join("sys/fs/cgroup/memory"), path, 1);
                return limits;
            }
            // A hybrid machine lists the unified hierarchy too, without the memory controller.
            if controllers.is_empty() && root.join("sys/fs/cgroup/cgroup.controllers").exists() {
                limits.read_group(&root.join("sys/fs/cgroup"), path, 2);
            }
        }
        limits
    }

    /// The limits from the group up to the hierarchy's root. In a container the path may name a group outside of
    /// what is mounted: then the mount's root is the group.
    fn read_group(&mut self, mount: &Path, path: &str, version: u8) {
        let (limit_file, peak_file) = match version {
            1 => ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            _ => ("memory.max", "memory.peak"),
        };
        let inside = mount.join(path.trim_start_matches('/'));
        let group = if inside.is_dir() { inside } else { mount.to_owned() };
        self.cgroup_version = Some(version);
        self.cgroup_bytes = group
            .ancestors()
            .take_while(|folder| folder.starts_with(mount))
            .filter_map(|folder| fs::read_to_string(folder.join(limit_file)).ok()?.trim().parse::<u64>().ok())
            .filter(|&limit| limit < NO_LIMIT)
            .min();
        self.cgroup_peak_file = Some(group.join(peak_file)).filter(|file| file.exists());
    }

    /// The smallest bound.
    pub fn smallest(&self) -> Option<u64> {
        self.cgroup_bytes.into_iter().chain(self.machine_bytes).min()
    }

    /// What a new process may use: the smallest bound, and of what other processes leave now all but a twentieth. Without
    /// any page cache a machine reads its programs from the disk again and again, and does not come to an end.
    pub fn usable(&self) -> Option<u64> {
        let left = self.available_bytes.map(|bytes| bytes - bytes / 20);
        self.smallest().into_iter().chain(left).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::fixture::tree;

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 600 kB\nSwapTotal: 0 kB\n");

    #[test]
    fn version_1_takes_the_smallest_of_the_hierarchy() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "12:cpu,cpuacct:/\n5:memory:/a/b\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "400000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "500000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.max_usage_in_bytes", "1\n"),
        ]);
        let limits = MemoryLimits::read(root.path());
        assert_eq!((limits.cgroup_version, limits.cgroup_bytes), (Some(1), Some(400_000)));
        assert_eq!(limits.smallest(), Some(400_000));
        assert!(limits.cgroup_peak_file.unwrap().ends_with("a/b/memory.max_usage_in_bytes"));
    }

    #[test]
    fn version_2_knows_max() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice/x\n"),
            ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/x/memory.max", "2097152\n"),
        ]);
        let limits = MemoryLimits::read(root.path());
        assert_eq!((limits.cgroup_version, limits.cgroup_bytes), (Some(2), Some(2_097_152)));
        assert_eq!((limits.smallest(), limits.usable()), (Some(1000 * 1024), Some(570 * 1024)));
        assert_eq!(limits.cgroup_peak_file, None);
    }

    #[test]
    fn a_group_outside_the_mount_is_the_mounts_root() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "5:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "300000\n"),
        ]);
        assert_eq!(MemoryLimits::read(root.path()).cgroup_bytes, Some(300_000));
    }

    #[test]
    fn nothing_is_known_of_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(MemoryLimits::read(root.path()), MemoryLimits::default());
        assert_eq!(MemoryLimits::default().smallest(), None);
    }
}
