//! The disk below a folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Facts of a mounted filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: Option<PathBuf>,
    /// Its type, e.g. `ext4`.
    pub filesystem: Option<String>,
    /// The device, e.g. `/dev/nvme0n1p2`.
    pub device: Option<String>,
    /// The device's model, where the system knows it.
    pub model: Option<String>,
    /// Bytes that this user may still write.
    pub free_bytes: Option<u64>,
}

impl Disk {
    /// The filesystem that holds a folder.
    pub fn of(folder: &Path) -> Self {
        let path = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut disk = Self::find(&path, &mounts);
        disk.free_bytes = rustix::fs::statvfs(&path).ok().map(|stat| stat.f_bavail * stat.f_frsize);
        disk.model = disk.device.as_deref().and_then(|device| model(Path::new("/sys/block"), device));
        disk
    }

    /// The last mount with the longest matching path wins, as the kernel has it.
    fn find(path: &Path, mounts: &str) -> Self {
        let mut best = Self::default();
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(device), Some(mount), Some(kind)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let mount = PathBuf::from(mount.replace("\\040", " "));
            let longer = best.mount.as_ref().is_none_or(|best| mount.components().count() >= best.components().count());
            if path.starts_with(&mount) && longer {
                best = Self {
                    mount: Some(mount),
                    filesystem: Some(kind.to_owned()),
                    device: Some(device.to_owned()),
                    ..Self::default()
                };
            }
        }
        best
    }
}

/// The model of the block device that a partition belongs to.
fn model(blocks: &Path, device: &str) -> Option<String> {
    let name = device.strip_prefix("/dev/")?;
    let block = fs::read_dir(blocks)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|block| name.starts_with(block.as_str()))
        .max_by_key(String::len)?;
    let text = fs::read_to_string(blocks.join(block).join("device/model")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_wins() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /data\\040x xfs rw 0 0\nbad\n";
        let kind = |path: &str| Disk::find(Path::new(path), mounts).filesystem.unwrap();
        assert_eq!(kind("/tmp/x"), "tmpfs");
        assert_eq!(kind("/tmpx"), "ext4");
        assert_eq!(kind("/data x/y"), "xfs");
        assert_eq!(Disk::find(Path::new("/x"), ""), Disk::default());
        assert!(Disk::of(Path::new("/")).free_bytes.is_some());
    }
}
