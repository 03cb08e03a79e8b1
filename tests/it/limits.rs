//! Memory, disk and permissions that run out. What needs root or a control group says so when it is skipped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
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
pub struct Mount(PathBuf);

impl Mount {
    pub fn tmpfs(path: &Path, options: &str) -> Option<Self> {
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

/// Whether limits can be set here; says so where they cannot.
pub fn limits_can_be_set() -> bool {
    let group = ortbench::orchestrator::memory_group::MemoryGroup::create(64 << 20);
    if let Err(error) = &group {
        eprintln!("skipped: {}", error.chain());
    }
    group.is_ok()
}

/// Control groups of a runner's workers.
fn groups_of(runner: u32) -> Vec<PathBuf> {
    let prefix = format!("ortbench-{runner}-");
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path());
            }
            folders.push(entry.path());
        }
    }
    found
}

/// [`two_cells`] whose workers may hold that much.
pub fn limited_cells(bytes: u64) -> Vec<ortbench::cell::Cell> {
    let mut cells = two_cells();
    cells.iter_mut().for_each(|cell| cell.memory.limit_bytes = Some(bytes));
    cells
}

#[test]
fn a_worker_that_reaches_its_limit_is_out_of_memory_and_its_group_is_gone() {
    if !limits_can_be_set() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let report = run(limited_cells(128 << 20), "tiny-cpu/speed=allocate:1024", results.path()).unwrap();
    let rows = summary(&report.folder);
    assert_eq!(rows[0]["status"], "out_of_memory", "{}", rows[0]["reason"]);
    let reason = &rows[0]["reason"];
    assert!(
        reason.contains("in phase `load` because it reached its limit of 128 MiB, its peak was 128 MiB"),
        "{reason}"
    );
    assert!(rows[0]["hint"].contains("memory_limit"), "{}", rows[0]["hint"]);
    assert_eq!(rows[0]["categories_measured"], "throughput memory");
    assert_eq!(rows[1]["status"], "measured", "{}", rows[1]["reason"]);
    assert_eq!(rows[1]["process_memory_limit_bytes"], (128 << 20).to_string());
    let peak: u64 = rows[1]["cgroup_peak_bytes"].parse().unwrap();
    assert!(peak <= 128 << 20, "{peak}");
    assert!(groups_of(std::process::id()).iter().all(|group| !group.to_string_lossy().ends_with("-runner")));
}

#[test]
fn a_group_that_a_killed_runner_left_is_removed_by_the_next_one() {
    if !limits_can_be_set() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let mut runner = Runner::start_with("limited", "tiny-cpu/memory/0=hang;limit-test=measure", results.path());
    runner.wait_for("tiny-cpu: memory 0");
    let id = runner.child.id();
    // The runner says so before it makes the group.
    let moment = || std::thread::sleep(std::time::Duration::from_millis(50));
    (0..100).take_while(|_| groups_of(id).is_empty()).for_each(|_| moment());
    assert_eq!(groups_of(id).len(), 1);
    runner.kill();
    // The worker ends with its runner, a moment later.
    for _ in 0..100 {
        drop(ortbench::orchestrator::memory_group::MemoryGroup::create(64 << 20).unwrap());
        if groups_of(id).is_empty() {
            return;
        }
        moment();
    }
    panic!("{:?} is still there", groups_of(id));
}

#[test]
fn an_interrupted_runner_leaves_no_group() {
    if !limits_can_be_set() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let mut runner = Runner::start_with("limited", "tiny-cpu/memory/0=hang", results.path());
    runner.wait_for("tiny-cpu: memory 0");
    let id = runner.child.id();
    runner.signal(rustix::process::Signal::INT);
    assert_eq!(runner.child.wait().unwrap().code(), Some(130));
    assert_eq!(groups_of(id), Vec::<PathBuf>::new());
}

/// Rows of the dense miniature under that limit.
fn real_rows(limit: &str) -> Vec<std::collections::BTreeMap<String, String>> {
    let folder = tempfile::tempdir().unwrap();
    let package = crate::real::package("int4-fused");
    let file = folder.path().join("matrix.yaml");
    let text = format!(
        "version: 1\nname: limited\nmodels: [{{name: m, package: '{}'}}]\n\
         backends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
         matrix: {{model: m, backend: cpu, precision: int4, threads: 2, memory_limit: {limit}, batch: 1, \
         prompt_tokens: 16, generate_tokens: 8}}\n\
         categories: [speed, memory]\nmeasurement: {{profile: quick}}\n",
        package.display()
    );
    fs::write(&file, text).unwrap();
    let results = folder.path().join("results");
    let (file, folder) = (file.to_str().unwrap(), results.to_str().unwrap());
    crate::real::ortbench(&["run", file, "--results", folder, "--quiet"]);
    summary(&only_run(&results))
}

#[test]
fn a_real_worker_stays_within_its_limit_or_is_out_of_memory() {
    if !limits_can_be_set() {
        return;
    }
    let row = &real_rows("1GiB")[0];
    assert_eq!(row["status"], "measured", "{}", row["reason"]);
    assert!(row["cell_id"].contains("-t2-l1GiB-b1-"), "{}", row["cell_id"]);
    let number = |name: &str| row[name].parse::<u64>().unwrap_or_else(|_| panic!("`{name}` is `{}`", row[name]));
    assert_eq!(number("process_memory_limit_bytes"), 1 << 30);
    let peak = number("cgroup_peak_bytes");
    assert!((4 << 20..=1 << 30).contains(&peak), "{peak}");
    assert!(number("peak_anon_bytes") > 0 && number("peak_file_bytes") > 0);
    assert!(number("cold_start_cached_bytes") <= number("package_bytes") + (1 << 20));

    let row = &real_rows("8MiB")[0];
    assert_eq!(row["status"], "out_of_memory", "{}", row["reason"]);
    assert!(row["reason"].contains("reached its limit of 8.0 MiB"), "{}", row["reason"]);
}

#[test]
fn a_machine_without_control_groups_makes_the_cell_unsupported() {
    // Root may make groups; a user without rights shows what others see.
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_ortbench"));
    let Ok(output) = doctor.arg("doctor").uid(65_534).gid(65_534).output() else {
        eprintln!("skipped: the program cannot be started as another user here");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("missing  limits: `memory_limit` cannot be set: cannot make the control group"), "{text}");
    assert!(text.contains("Delegate=yes"), "{text}");
}
