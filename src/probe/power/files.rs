//! Reading what sysfs says: small files with one number or word each.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::registry::Missing;
use crate::error::{Context, Error, Result};

/// A number of a file.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    text.trim().parse().map_err(|_| {
        let shown: String = text.trim().chars().take(40).collect();
        Error::invalid(format!("`{}` holds `{shown}`, which is no count", path.display()))
    })
}

/// The word or words of a file, if it is there and holds any.
pub fn word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Entries of a folder, sorted by name; none where there is no such folder.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The last part of a path.
pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Why a counter's file cannot be used, and what to do about it. `permission` is the remedy for a file that may not be
/// read.
pub fn unusable(path: &Path, error: &Error, permission: &str) -> Missing {
    let denied = denied(error);
    let remedy = if denied { permission } else { "look into the kernel's log: the driver of this sensor is at fault" };
    let reason = if denied { format!("`{}` may not be read", path.display()) } else { error.chain() };
    Missing { present: true, reason, remedy: remedy.to_owned() }
}

fn denied(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| io.kind() == ErrorKind::PermissionDenied)
}
