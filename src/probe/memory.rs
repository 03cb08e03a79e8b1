//! What this process holds in memory, by Linux's own account.

use std::fs;
use std::path::Path;

use crate::error::{Context, Error, Result};

/// A reading of `/proc/self/status`; bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// VmRSS: all resident pages.
    pub total: u64,
    /// RssAnon: memory without a file behind it.
    pub anonymous: u64,
    /// RssFile: mapped files, weights and libraries alike.
    pub file_backed: u64,
    /// VmHWM: the largest VmRSS since the start or the last [`reset_peak`].
    pub peak: u64,
}

/// Counters of `/proc/self/stat` and `/proc/self/io` since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Page faults served from memory.
    pub minor_faults: u64,
    /// Page faults that needed the disk.
    pub major_faults: u64,
    /// Bytes that the process caused to be read from the disk; `None` where the kernel does not say.
    pub read_bytes: Option<u64>,
}

impl Resident {
    /// Reads it now.
    ///
    /// # Errors
    /// A system without `/proc`.
    pub fn now() -> Result<Self> {
        Self::read(Path::new("/proc/self/status"))
    }

    /// Reads that of another process.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn of(process: u32) -> Result<Self> {
        Self::read(Path::new(&format!("/proc/{process}/status")))
    }

    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let field = |name: &str| {
            kibibytes(&text, name).ok_or_else(|| Error::environment(format!("`{}` has no `{name}`", path.display())))
        };
        Ok(Self {
            total: field("VmRSS")?,
            anonymous: field("RssAnon")?,
            file_backed: field("RssFile")? + field("RssShmem")?,
            peak: field("VmHWM")?,
        })
    }
}

impl Counters {
    /// Reads them now.
    ///
    /// # Errors
    /// A system without `/proc`.
    pub fn now() -> Result<Self> {
        let path = "/proc/self/stat";
        let stat = fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
        let (minor_faults, major_faults) =
            faults(&stat).ok_or_else(|| Error::environment(format!("`{path}` is not as expected")))?;
        let io = fs::read_to_string("/proc/self/io").ok();
        let read_bytes = io.as_deref().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("read_bytes:")).and_then(|value| value.trim().parse().ok())
        });
        Ok(Self { minor_faults, major_faults, read_bytes })
    }

    /// What was counted since an earlier reading.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            minor_faults: self.minor_faults - earlier.minor_faults,
            major_faults: self.major_faults - earlier.major_faults,
            read_bytes: self.read_bytes.zip(earlier.read_bytes).map(|(now, then)| now - then),
        }
    }
}

/// The proportional set size in bytes: shared pages divided among those who map them. `None` where the kernel has no
/// smaps_rollup.
pub fn proportional() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/smaps_rollup").ok()?, "Pss")
}

/// Sets the peak counter back to what is resident now. Returns whether the kernel let us.
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// A `Name:   123 kB` line, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|value| value * 1024)
}

/// Fields 10 and 12 of a stat line; the command's name in parentheses may hold spaces.
fn faults(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let shows = || {
            let before = Resident::now().unwrap();
            let block = std::hint::black_box(vec![1_u8; 32 << 20]);
            let after = Resident::now().unwrap();
            assert!(after.peak >= after.total);
            drop(block);
            after.anonymous >= before.anonymous + (31 << 20)
        };
        // Tests beside this one give memory back at any moment.
        assert!((0..20).any(|_| shows()));
        assert!(Counters::now().unwrap().minor_faults > 0);
    }

    #[test]
    fn parses_names_with_spaces_and_parentheses() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 111 0 222 0 5 6";
        assert_eq!(faults(stat), Some((111, 222)));
        assert_eq!(kibibytes("VmRSSx: 1 kB\nVmRSS:\t 12 kB\n", "VmRSS"), Some(12 * 1024));
        assert_eq!(kibibytes("", "VmRSS"), None);
    }
}
