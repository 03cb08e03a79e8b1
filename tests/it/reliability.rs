//! Packs that are damaged, before and while they run, and memory and disk that do not suffice: through the program, each
//! a row with its reason and a message with its remedy. What only an injected disk can do (reads that fail, that are
//! slow, that are short) is in the loader's own tests (`src/loader/pager/tests/failures.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ortbench::loader::pack::{self, Options, Quiet};
use ortbench::package::Package;
use ortbench::package::shards::{self, ShardIndex};
use rustix::process::{Pid, Signal, kill_process};

use crate::limits::{Mount, limits_can_be_set};
use crate::real::{fails, ortbench, package_of};
use crate::support::{only_run, summary};

type Row = BTreeMap<String, String>;

/// A pack of the mixture's miniature in a folder of its own.
struct Packed {
    folder: tempfile::TempDir,
    index: ShardIndex,
}

impl Packed {
    fn new() -> Self {
        Self::of("qwen3-moe-tiny", "int4-fused")
    }

    fn of(model: &str, kind: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let package = Package::open(&package_of(model, kind)).expect("a package");
        let options = Options { threshold: 4096, ..Options::default() };
        let summary = pack::pack(&package, &folder.path().join("pack"), &options, &Quiet).expect("a pack");
        Self { folder, index: summary.index }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("pack")
    }

    fn text(&self) -> String {
        self.path().to_str().expect("UTF-8").to_owned()
    }

    /// A record in the middle of the pack, and where its bytes are.
    fn record(&self) -> (String, PathBuf, u64) {
        let record = &self.index.records[self.index.records.len() / 2];
        let shard = self.path().join(&self.index.files[record.file].file);
        (record.name.clone(), shard, record.offset + record.stored / 2)
    }

    /// The largest shard.
    fn shard(&self) -> PathBuf {
        let largest = self.index.files.iter().max_by_key(|file| file.bytes).expect("a shard");
        self.path().join(&largest.file)
    }

    fn edit_index(&self, edit: impl Fn(&mut serde_json::Value)) {
        let path = self.path().join(shards::FILE);
        let mut index = serde_json::from_slice(&fs::read(&path).expect("an index")).expect("JSON");
        edit(&mut index);
        fs::write(&path, serde_json::to_vec(&index).expect("JSON")).expect("an index");
        self.agree();
    }

    /// Writes into the manifest what its files really are: what is behind that check is to be found without it.
    fn agree(&self) {
        let path = self.path().join("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).expect("JSON");
        for file in manifest["files"].as_array_mut().expect("files") {
            let bytes = fs::read(self.path().join(file["path"].as_str().expect("a path"))).expect("a file");
            file["bytes"] = bytes.len().into();
            file["sha256"] = ortbench::digest::sha256(bytes).into();
        }
        fs::write(&path, serde_json::to_vec(&manifest).expect("JSON")).expect("a manifest");
    }

    /// A matrix file of the pack with these axes and top-level keys.
    fn matrix(&self, axes: &str, rest: &str) -> String {
        let text = format!(
            "version: 1\nname: it\nmodels: [{{name: m, package: '{}'}}]\n\
             backends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
             matrix: {{model: m, backend: cpu, precision: int4, threads: 2, prompt_tokens: 16, {axes}}}\n\
             categories: [speed]\n{rest}",
            self.text()
        );
        let path = self.folder.path().join("matrix.yaml");
        fs::write(&path, text).expect("a matrix");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn results(&self) -> PathBuf {
        self.folder.path().join("results")
    }

    /// Runs a matrix; its exit code and rows.
    fn run_with(&self, axes: &str, rest: &str) -> (i32, Vec<Row>) {
        let matrix = self.matrix(axes, rest);
        let results = self.results();
        let _ = fs::remove_dir_all(&results);
        let output = ortbench(&["run", &matrix, "--results", results.to_str().expect("UTF-8"), "--quiet"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!error.contains("panicked"), "{error}");
        assert!(results.is_dir(), "{error}");
        (output.status.code().expect("an exit code"), summary(&only_run(&results)))
    }

    fn run(&self, axes: &str) -> (i32, Vec<Row>) {
        self.run_with(&format!("batch: 1, generate_tokens: 8, {axes}"), QUICK)
    }

    /// The one cell of the pack ends as `failed` for these causes, and `generate` tells the same.
    fn fails_for(&self, residency: &str, causes: &[&str]) {
        let (code, rows) = self.run(&format!("residency: {residency}"));
        let row = &rows[0];
        assert_eq!((code, row["status"].as_str()), (1, "failed"), "{causes:?}: {}", row["reason"]);
        for cause in causes {
            assert!(row["reason"].contains(cause), "{residency}: `{cause}` is not in `{}`", row["reason"]);
        }
        assert!(!row["hint"].is_empty(), "{}", row["reason"]);
        assert!(row["tpot_median_seconds"].is_empty() && row["bytes_read_per_token"].is_empty());
        let pack = self.text();
        let arguments =
            ["generate", &pack, "--ids", "--prompt", "5 6 7", "--residency", residency, "-n", "4", "--quiet"];
        let (code, error) = fails(&arguments);
        assert!(code == 1 || code == 2 || code == 3, "{code}: {error}");
        assert!(causes.iter().all(|cause| error.contains(cause)) && error.contains("hint:"), "{causes:?}: {error}");
    }

    /// Starts a run that goes on for long, and waits until its worker has `sign` among its open or mapped files.
    fn start(&self, axes: &str, rest: &str, sign: &str) -> Running {
        let rest = format!("measurement: {{repetitions: 100000, processes: 1, timeout_seconds: 60}}\n{rest}");
        let matrix = self.matrix(&format!("batch: 2, generate_tokens: 64, {axes}"), &rest);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ortbench"));
        command.args(["run", &matrix, "--quiet", "--results"]).arg(self.results());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
        let mut running = Running { child, worker: 0 };
        let end = Instant::now() + Duration::from_secs(50);
        while Instant::now() < end {
            if let Some(worker) = children(running.child.id()).into_iter().find(|worker| shows(*worker, sign)) {
                running.worker = worker;
                // Into the measurement.
                std::thread::sleep(Duration::from_millis(1500));
                return running;
            }
            assert!(running.child.try_wait().expect("a child").is_none(), "the run ended before it began");
            std::thread::sleep(Duration::from_millis(20));
        }
        running.child.kill().expect("a child");
        panic!("no worker has `{sign}`");
    }

    /// The row of a run that has ended.
    fn ended(&self, mut running: Running) -> (i32, Row) {
        let code = running.child.wait().expect("its end").code().expect("an exit code");
        (code, summary(&only_run(&self.results())).remove(0))
    }
}

const QUICK: &str = "measurement: {profile: quick, repetitions: 2, min_seconds: 0}\n";

/// A run in the middle.
struct Running {
    child: Child,
    worker: i32,
}

/// Processes that a process started.
fn children(parent: u32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_parent = |id: &i32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default();
        fields.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    ids.filter(of_parent).collect()
}

/// Whether a process maps or has open a file with that in its name.
fn shows(process: i32, sign: &str) -> bool {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    maps.contains(sign) || links.any(|link| link.to_string_lossy().contains(sign))
}

const RESIDENCIES: [&str; 4] = ["resident", "mapped", "stream", "experts"];

#[test]
fn a_shard_that_is_cut_or_missing_is_named() {
    for residency in RESIDENCIES {
        let pack = Packed::new();
        let shard = pack.shard();
        let name = shard.file_name().unwrap().to_str().unwrap().to_owned();
        let length = fs::metadata(&shard).unwrap().len();
        fs::File::options().write(true).open(&shard).unwrap().set_len(length - 4096).unwrap();
        pack.fails_for(residency, &[&name]);
        fs::remove_file(&shard).unwrap();
        pack.fails_for(residency, &[&name]);
    }
}

#[test]
fn one_flipped_bit_is_named_by_its_record() {
    for residency in RESIDENCIES {
        let pack = Packed::new();
        let (record, shard, place) = pack.record();
        let mut bytes = fs::read(&shard).unwrap();
        bytes[place as usize] ^= 4;
        fs::write(&shard, bytes).unwrap();
        pack.fails_for(residency, &[&record, shard.file_name().unwrap().to_str().unwrap()]);
    }
}

#[test]
fn an_index_that_cannot_be_used_is_named() {
    let pack = Packed::new();
    let index = fs::read(pack.path().join(shards::FILE)).unwrap();
    fs::write(pack.path().join(shards::FILE), &index[..index.len() / 2]).unwrap();
    pack.fails_for("experts", &[shards::FILE]);
    type Edit = (fn(&mut serde_json::Value), &'static str);
    let edits: [Edit; 4] = [
        (|index| index["format"] = 999.into(), "999"),
        (|index| index["made"]["architecture"] = "m68k".into(), "m68k"),
        (|index| index["made"]["layout"] = "of another program".into(), "laid out as `of another program`"),
        (|index| index["records"][1]["offset"] = 1.into(), "record"),
    ];
    for (edit, cause) in edits {
        fs::write(pack.path().join(shards::FILE), &index).unwrap();
        pack.edit_index(edit);
        pack.fails_for("experts", &[cause]);
    }
}

#[test]
fn a_graph_and_shards_of_two_packs_do_not_run() {
    let (pack, other) = (Packed::new(), Packed::of("glm4-moe-lite-tiny", "int4-fused"));
    fs::remove_dir_all(pack.path().join("shards")).unwrap();
    let target = pack.path().join("shards");
    fs::create_dir(&target).unwrap();
    for file in &other.index.files {
        fs::copy(other.path().join(&file.file), pack.path().join(&file.file)).unwrap();
    }
    fs::copy(other.path().join(shards::FILE), pack.path().join(shards::FILE)).unwrap();
    pack.fails_for("stream", &["its manifest says"]);
    // Nor where sizes and hashes are made to agree.
    pack.agree();
    pack.fails_for("stream", &["pack"]);
}

#[test]
fn a_mapped_shard_that_is_cut_while_it_runs_ends_the_row_with_a_word() {
    let pack = Packed::new();
    let shard = pack.shard();
    let running = pack.start("residency: mapped", "", shard.to_str().unwrap());
    fs::File::options().write(true).open(&shard).unwrap().set_len(0).unwrap();
    let (code, row) = pack.ended(running);
    assert_eq!((code, row["status"].as_str()), (1, "failed"), "{}", row["reason"]);
    let reason = &row["reason"];
    assert!(reason.contains("SIGBUS") || reason.contains(shard.file_name().unwrap().to_str().unwrap()), "{reason}");
    assert!(reason.contains("pack"), "{reason}");
    assert!(!row["hint"].is_empty());
}

#[test]
fn a_mapped_shard_that_is_written_over_while_it_runs_is_noticed() {
    let pack = Packed::new();
    let shard = pack.shard();
    let running = pack.start("residency: mapped", "", shard.to_str().unwrap());
    let bytes = fs::metadata(&shard).unwrap().len() as usize;
    fs::write(&shard, vec![7; bytes]).unwrap();
    let (code, row) = pack.ended(running);
    assert_eq!((code, row["status"].as_str()), (1, "failed"), "{}", row["reason"]);
    assert!(row["reason"].contains(shard.file_name().unwrap().to_str().unwrap()), "{}", row["reason"]);
}

#[test]
fn a_killed_worker_leaves_nothing_where_its_caches_waited() {
    let pack = Packed::new();
    let waiting = pack.folder.path().join("caches");
    fs::create_dir(&waiting).unwrap();
    let rest = format!("offload_dir: '{}'\n", waiting.display());
    let running = pack.start("residency: stream, offload: disk, micro_batch: 1", &rest, waiting.to_str().unwrap());
    kill_process(Pid::from_raw(running.worker).unwrap(), Signal::KILL).unwrap();
    let (code, row) = pack.ended(running);
    assert_eq!((code, row["status"].as_str()), (1, "failed"), "{}", row["reason"]);
    assert!(row["reason"].contains("SIGKILL"), "{}", row["reason"]);
    assert_eq!(fs::read_dir(&waiting).unwrap().count(), 0, "a file was left");
}

#[test]
fn a_disk_without_room_for_the_caches_is_refused_with_what_is_free() {
    let pack = Packed::new();
    let waiting = pack.folder.path().join("caches");
    fs::create_dir(&waiting).unwrap();
    let Some(_mount) = Mount::tmpfs(&waiting, "size=64k") else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let rest = format!("{QUICK}offload_dir: '{}'\n", waiting.display());
    let (code, rows) = pack.run_with("batch: 8, generate_tokens: 64, offload: disk", &rest);
    assert_eq!((code, rows[0]["status"].as_str()), (1, "failed"), "{}", rows[0]["reason"]);
    let reason = &rows[0]["reason"];
    assert!(reason.contains("cannot make a file of") && reason.contains("only 64.0 KiB are free"), "{reason}");
    assert!(rows[0]["hint"].contains("more room"), "{}", rows[0]["hint"]);
}

#[test]
fn the_least_budget_that_is_named_works_under_a_limit_of_its_size() {
    if !limits_can_be_set() {
        return;
    }
    let pack = Packed::new();
    let (code, rows) = pack.run("residency: [stream, experts], memory_budget: 16MiB");
    assert_eq!(code, 1);
    for row in rows {
        assert_eq!(row["status"], "failed", "{}", row["reason"]);
        let (_, least) = row["reason"].split_once("the least that works here is ").expect("the least is named");
        let least = least.split("MiB").next().unwrap();
        let residency = &row["residency"];
        let (_, rows) = pack.run(&format!("residency: {residency}, memory_budget: {least}MiB, memory_limit: budget"));
        assert_eq!(rows[0]["status"], "measured", "{least} MiB, {residency}: {}", rows[0]["reason"]);
        let bytes = |name: &str| rows[0][name].parse::<u64>().unwrap();
        assert!(bytes("cgroup_peak_bytes") <= bytes("memory_budget_bytes"));
    }
}

#[test]
fn every_residency_stays_within_a_real_limit() {
    if !limits_can_be_set() {
        return;
    }
    let pack = Packed::new();
    let residencies = RESIDENCIES.join(", ");
    let axes = format!("residency: [{residencies}], memory_budget: 192MiB, memory_limit: budget");
    let (code, rows) = pack.run_with(
        &format!("batch: 2, generate_tokens: 8, micro_batch: [none, 1], offload: [none, disk], {axes}"),
        QUICK,
    );
    assert_eq!((code, rows.len()), (0, 16));
    let hash = &rows[0]["output_tokens_hash"];
    for row in &rows {
        assert_eq!(row["status"], "measured", "{}: {}", row["cell_id"], row["reason"]);
        let bytes = |name: &str| row[name].parse::<u64>().unwrap_or_else(|_| panic!("{name} is `{}`", row[name]));
        assert!(bytes("peak_anon_bytes") + bytes("peak_file_bytes") <= 192 << 20, "{}", row["cell_id"]);
        assert!(bytes("cgroup_peak_bytes") <= 192 << 20, "{}", row["cell_id"]);
        assert_eq!(&row["output_tokens_hash"], hash, "{}: other answers", row["cell_id"]);
        assert_eq!(row["spilled_bytes_per_token"].is_empty(), row["offload"].is_empty(), "{}", row["cell_id"]);
        let read = row["spill_read_bytes_per_token"].parse::<f64>().ok();
        assert_eq!(read.is_some_and(|bytes| bytes > 0.0), !row["offload"].is_empty(), "{}", row["cell_id"]);
    }
}

#[test]
fn random_weights_are_fed_drawn_tokens_and_trained_ones_their_own() {
    let pack = Packed::new();
    let (_, rows) = pack.run("residency: experts");
    assert_eq!((rows[0]["fed_tokens"].as_str(), rows[0]["prompt_repetition"].as_str()), ("greedy", "rotating"));
    assert!(rows[0]["loader_reads"].starts_with("pool, "), "{}", rows[0]["loader_reads"]);
    assert!(!rows[0]["disk_bandwidth_bytes_per_second"].is_empty() && !rows[0]["disk_bound_share"].is_empty());
    let manifest = pack.path().join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"weights\": \"checkpoint\"", "\"weights\": \"random\"")).unwrap();
    let (_, drawn) = pack.run("residency: experts");
    assert_eq!(drawn[0]["fed_tokens"], "drawn", "{}", drawn[0]["reason"]);
    assert_ne!(drawn[0]["output_tokens_hash"], rows[0]["output_tokens_hash"]);
    let (_, again) = pack.run("residency: [resident, mapped]");
    for row in &again {
        assert_eq!(row["output_tokens_hash"], drawn[0]["output_tokens_hash"], "other answers: {}", row["cell_id"]);
    }
    assert!(again[0]["disk_bandwidth_bytes_per_second"].is_empty(), "nothing is read from the disk");
}
