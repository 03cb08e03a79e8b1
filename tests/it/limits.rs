//! Memory, disk and permissions that run out. What needs root or a control group says so when it is skipped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Runner, only_run, run, summary, two_cells};

/// A control group with that memory limit, removed at the end.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(limit: u64) -> Option<Self> {
        let name = format!("ortbench-test-{}", std::process::id());
        let version1 = Path::new("/sys/fs/cgroup/memory");
        let version2 = Path::new("/sys/fs/cgroup");
        let (root, file) = if version1.join("memory.limit_in_bytes").exists() {
            (version1, "memory.limit_in_bytes")
        } else {
            (version2, "memory.max")
        };
        let group = Self(root.join(name));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(file), limit.to_string()).ok()?;
        // Without this, swap would take what the limit refuses.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        Some(group)
    }

    fn add(&self, pid: u32) -> bool {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).is_ok()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_kill_for_memory_is_recognised_and_spares_the_runner() {
    let Some(group) = MemoryGroup::new(192 << 20) else {
        eprintln!("skipped: no memory control group can be made here");
        return;
    };
    let results = tempfile::tempdir().unwrap();
    let mut runner = Runner::start("ceilings=slow:1000;tiny-cpu/speed=allocate:1024", results.path());
    if !group.add(runner.child.id()) {
        runner.child.kill().unwrap();
        runner.child.wait().unwrap();
        eprintln!("skipped: no process can be moved into a memory control group here");
        return;
    }
    assert_eq!(runner.child.wait().unwrap().code(), Some(0));
    let rows = summary(&only_run(results.path()));
    assert_eq!(rows[0]["status"], "out_of_memory", "{}", rows[0]["reason"]);
    assert!(rows[0]["reason"].contains("the kernel killed the process in phase `load` because memory ran out"));
    assert_eq!(rows[0]["categories_measured"], "throughput memory");
    assert_eq!(rows[1]["status"], "measured");
}

#[test]
fn a_refused_allocation_is_out_of_memory() {
    let results = tempfile::tempdir().unwrap();
    // A shell that lowers the limit of address space stands between runner and worker.
    let wrapper = results.path().join("limited");
    let program = env!("CARGO_BIN_EXE_ortbench");
    fs::write(&wrapper, format!("#!/bin/sh\nulimit -v 400000\nexec {program} \"$@\"\n")).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();

    let mut quiet = ortbench::orchestrator::progress::Quiet;
    let mut options = crate::support::options("tiny-cpu/speed=allocate:1024", &mut quiet);
    options.worker.program = wrapper;
    let runs = results.path().join("runs");
    let report = ortbench::orchestrator::start(&crate::support::matrix(two_cells()), &runs, options).unwrap();
    let row = &summary(&report.folder)[0];
    assert_eq!(row["status"], "out_of_memory", "{}", row["reason"]);
    assert!(row["reason"].contains("an allocation was refused"), "{}", row["reason"]);
}

#[test]
fn a_results_folder_that_cannot_be_is_refused_beforehand() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results");
    fs::write(&file, "a file").unwrap();
    let error = run(two_cells(), "", &file).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.chain().contains(file.to_str().unwrap()), "{}", error.chain());
    assert!(error.find_hint().unwrap().contains("--results"));
}

#[test]
fn a_results_folder_that_is_not_writable_is_refused_beforehand() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(folder.path().join("probe"), "").is_ok() {
        // Root may write everywhere; a file system mounted read-only stops root too.
        let Some(_mount) = Mount::tmpfs(folder.path(), "ro") else {
            eprintln!("skipped: this user may write everywhere and cannot mount");
            return;
        };
        refuses_to_write(folder.path());
    } else {
        refuses_to_write(folder.path());
    }
}

fn refuses_to_write(folder: &Path) {
    let error = run(two_cells(), "", folder).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{}", error.chain());
    assert!(error.find_hint().unwrap().contains("--results"), "{:?}", error.find_hint());
}

/// A mounted file system, unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(path: &Path, options: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).output().ok()?;
        mount.status.success().then(|| Self(path.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_without_room_is_refused_beforehand() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::tmpfs(folder.path(), "size=1m") else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let error = run(two_cells(), "", folder.path()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("has 1.0 MiB left"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_disk_that_fills_up_ends_the_run_with_whole_files_and_the_run_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::tmpfs(folder.path(), "size=20m") else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let ballast = folder.path().join("ballast");
    let results = folder.path().join("results");
    let mut runner = Runner::start("tiny-cpu/memory/0=slow:1500", &results);
    runner.wait_for("tiny-cpu: memory 0");
    // Fills what is left, to the last byte.
    let _ = fs::write(&ballast, vec![0_u8; 32 << 20]);
    assert_eq!(runner.child.wait().unwrap().code(), Some(3));

    let run_folder = only_run(&results);
    let names: Vec<_> =
        fs::read_dir(&run_folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with(".part-")), "{names:?}");
    summary(&run_folder);
    fs::remove_file(&ballast).unwrap();
    assert!(crate::support::resume(&run_folder, "", false).unwrap().all_measured());
}
