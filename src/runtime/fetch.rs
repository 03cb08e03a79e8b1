//! Fetching a pinned wheel with the machine's own tools, whose settings (index, proxy, certificates) hold.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::catalog::Pin;
use crate::error::{Error, Result};

/// A command that is pip.
#[derive(Debug, Clone)]
pub struct Pip {
    /// The program.
    pub program: OsString,
    /// What stands before pip's own arguments.
    pub arguments: &'static [&'static str],
}

/// The commands tried, in this order: pip of `$PYTHON` or `python3`, else the one that uv fetches.
pub fn pips() -> [Pip; 2] {
    let python = env::var_os("PYTHON").filter(|value| !value.is_empty()).unwrap_or_else(|| "python3".into());
    [
        Pip { program: python, arguments: &["-m", "pip"] },
        Pip { program: "uv".into(), arguments: &["tool", "run", "--quiet", "pip"] },
    ]
}

/// Fetches the wheel into a folder that holds no other.
///
/// # Errors
/// A machine without any of the commands; an index that cannot be reached or does not have the wheel.
pub fn fetch(pips: &[Pip], pin: &Pin, folder: &Path) -> Result<PathBuf> {
    let offline = format!("or fetch the wheel elsewhere and pass it with `--wheel` (SHA-256 {})", pin.sha256);
    let mut absent = Vec::new();
    for pip in pips {
        let output = Command::new(&pip.program)
            .args(pip.arguments)
            .args(["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
            .args(["--implementation", "cp", "--python-version", pin.python, "--platform", pin.platform, "--dest"])
            .arg(folder)
            .arg(format!("{}=={}", pin.project, pin.version))
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                absent.push(format!("`{}`: {error}", pip.program.display()));
                continue;
            }
        };
        if output.status.success() {
            return only_wheel(folder);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        if text.contains("No module named pip") {
            absent.push(format!("`{}` has no pip", pip.program.display()));
            continue;
        }
        return Err(Error::environment(format!("pip cannot fetch {} {}", pin.project, pin.version))
            .because(io::Error::other(cause(&text)))
            .hint(format!("check the network and pip's settings, {offline}")));
    }
    Err(Error::environment(format!("there is no pip to fetch {} {} with", pin.project, pin.version))
        .because(io::Error::other(absent.join("; ")))
        .hint(format!("install pip (Debian: `apt install python3-pip`) or uv, {offline}")))
}

/// What went wrong, in pip's words. Without a network it warns of each connection that failed, and its last word is
/// then only that it found nothing.
fn cause(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let broken = lines().find_map(|line| line.split_once("after connection broken by "));
    if let Some((_, reason)) = broken {
        // `'NewConnectionError('<… object at 0x…>: Failed to …')': /simple/…`: the object tells nobody anything.
        let reason = reason.rsplit_once("': ").map_or(reason, |(reason, _)| reason);
        let reason = reason.rsplit_once(">: ").map_or(reason, |(_, reason)| reason);
        return format!("no connection to the package index: {}", reason.trim_matches(['\'', '"', '(', ')']));
    }
    lines().next_back().unwrap_or("it said nothing").trim_start_matches("ERROR: ").to_owned()
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    let failed = || Error::environment("cannot find what pip fetched");
    let files = fs::read_dir(folder).map_err(|error| failed().because(error))?;
    files
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::catalog::PINS;

    /// A program that plays pip.
    fn pip(script: &'static str) -> Pip {
        // The arguments after the script are `$0` and so on.
        Pip { program: "sh".into(), arguments: Box::leak(Box::new(["-c", script])) }
    }

    fn outcome(pips: &[Pip]) -> Result<PathBuf> {
        let folder = tempfile::tempdir().unwrap();
        fetch(pips, &PINS[0], folder.path())
    }

    #[test]
    fn the_next_command_is_tried_when_one_is_absent() {
        let nowhere = Pip { program: "/nowhere/python3".into(), arguments: &["-m", "pip"] };
        let without = pip("echo 'python3: No module named pip' >&2; exit 1");
        let good = pip("while [ \"$1\" != --dest ]; do shift; done; touch \"$2/a.whl\"");
        assert!(outcome(&[nowhere.clone(), without.clone(), good]).unwrap().ends_with("a.whl"));

        let error = outcome(&[nowhere, without]).unwrap_err();
        assert!(error.chain().contains("no pip to fetch onnxruntime"), "{}", error.chain());
        assert!(error.chain().contains("`sh` has no pip"), "{}", error.chain());
        let hint = error.find_hint().unwrap();
        assert!(hint.contains("python3-pip") && hint.contains("--wheel"), "{hint}");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_missing_network_is_named_and_not_what_pip_says_last() {
        let text = "WARNING: Retrying (Retry(total=0)) after connection broken by 'ProxyError('Cannot connect to \
                    proxy.', NewConnectionError('<pip.HTTPSConnection object at 0x7f>: Failed to establish a new \
                    connection: [Errno 111] Connection refused'))': /simple/onnxruntime/\n\
                    ERROR: No matching distribution found for onnxruntime==1.31.1\n";
        assert_eq!(
            cause(text),
            "no connection to the package index: Failed to establish a new connection: [Errno 111] Connection refused"
        );
        assert_eq!(cause("x\nERROR: No matching distribution found\n\n"), "No matching distribution found");
        assert_eq!(cause(""), "it said nothing");

        let error = outcome(&[pip("echo 'ERROR: no such thing' >&2; exit 1")]).unwrap_err();
        assert!(error.chain().ends_with("pip cannot fetch onnxruntime 1.31.1: no such thing"), "{}", error.chain());
        let error = outcome(&[pip("exit 0")]).unwrap_err();
        assert_eq!(error.chain(), "cannot find what pip fetched");
    }
}
