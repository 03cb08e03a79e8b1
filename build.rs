//! Notes the commit that the program is built from, where there is one.

use std::path::Path;
use std::process::Command;

/// What the program is made of: a change of anything else does not make it another program.
const SOURCES: &[&str] = &["src", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() {
    for source in SOURCES.iter().filter(|source| Path::new(source).exists()) {
        println!("cargo::rerun-if-changed={source}");
    }
    // Sources from a tarball may lie inside of another project's repository, whose commit is not theirs.
    if git(&["ls-files", "--error-unmatch", "build.rs"]).is_none() {
        return;
    }
    // Every commit, checkout and reset appends to this log. In a worktree it lies elsewhere, and a path that does
    // not exist would make cargo build everything anew each time.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        let status = ["--no-optional-locks", "status", "--porcelain", "--"];
        let changed = git(&[&status[..], SOURCES].concat()).is_none_or(|changes| !changes.is_empty());
        println!("cargo::rustc-env=ORTBENCH_COMMIT={commit}{}", if changed { "-dirty" } else { "" });
    }
}

/// What git says, or `None` where there is no git, no repository or nothing to say.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}
