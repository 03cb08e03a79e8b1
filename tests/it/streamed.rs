//! Packs under budgets that are smaller than their weights: what is evicted and read again changes how much is read,
//! never what is said; and what happens to a shard while it is read again ends the run with a word, or changes nothing.
//!
//! The miniatures are smaller than what the program itself holds, so that their packs never evict; these packages have
//! 60 and 75 MB of random weights, which `make test` writes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use ortbench::cell::Residency;
use ortbench::digest::sha256;
use ortbench::engine::{Decoder, Features, Plan, Prompt};
use ortbench::loader::pack::{self, Options, Quiet};
use ortbench::loader::pager::PagerFacts;
use ortbench::package::Package;
use ortbench::package::shards::ShardIndex;

use crate::limits::limits_can_be_set;
use crate::real::{fails, load_with, ortbench, package, package_of};
use crate::support::{only_run, summary};

type Row = BTreeMap<String, String>;

/// A kind of model, and the residency that is made for it.
const MODELS: [(&str, &str); 2] = [("dense", "stream"), ("moe", "experts")];

/// A pack with more weights than its budgets leave room for.
struct Streamed {
    folder: tempfile::TempDir,
    index: ShardIndex,
    residency: &'static str,
}

impl Streamed {
    fn new((model, residency): (&str, &'static str)) -> Self {
        // On the disk of the build: what is in memory anyway would not be read past the page cache.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let from = Package::open(&package_of(&format!("streamed/{model}"), "int4-fused")).expect("a package");
        let summary = pack::pack(&from, &folder.path().join("pack"), &Options::default(), &Quiet).expect("a pack");
        let streamed = Self { folder, index: summary.index, residency };
        streamed.give_tokenizer();
        streamed
    }

    /// Random weights have no tokenizer, and the dense miniature's has as many tokens. No token ends a text.
    fn give_tokenizer(&self) {
        let name = "tokenizer.json";
        let text = fs::read(package("int4-fused").join(name)).expect("a tokenizer");
        fs::write(self.path().join(name), &text).expect("a tokenizer");
        let manifest = self.path().join("manifest.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).expect("JSON");
        json["tokenizer"] = name.into();
        json["tokens"]["eos"] = serde_json::json!([]);
        let file = serde_json::json!({ "path": name, "bytes": text.len(), "sha256": sha256(&text) });
        json["files"].as_array_mut().expect("files").push(file);
        fs::write(&manifest, serde_json::to_vec(&json).expect("JSON")).expect("a manifest");
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("pack")
    }

    /// The least budget, in MiB, for so many sequences of so many new tokens: what a run with less says.
    fn least(&self, sequences: usize, tokens: usize) -> u64 {
        let path = self.path();
        let tokens = tokens.to_string();
        let mut all = vec!["generate", path.to_str().expect("UTF-8"), "--residency", self.residency, "-n", &tokens];
        all.extend(["--prompt", PROMPT].repeat(sequences));
        if sequences > 1 {
            all.extend(["--micro-batch", "1"]);
        }
        let (code, error) = fails(&[&all[..], &["--memory-budget", "16MiB"]].concat());
        let (_, least) = error.split_once("the least that works here is ").unwrap_or_else(|| panic!("{error}"));
        assert_eq!(code, 2, "{error}");
        least.split("MiB").next().and_then(|number| number.parse().ok()).expect("a number of MiB")
    }
}

const PROMPT: &str = "The quick brown";

/// Runs a matrix of packs, named by their places; its exit code and rows, in the order of the matrix.
fn run(packs: &[&Streamed], axes: &str, rest: &str) -> Vec<Row> {
    let place = |(at, pack): (usize, &&Streamed)| format!("{{name: m{at}, package: '{}'}}", pack.path().display());
    let models: Vec<String> = packs.iter().enumerate().map(place).collect();
    let text = format!(
        "version: 1\nname: it\nmodels: [{}]\nbackends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
         matrix: {{model: m0, backend: cpu, precision: int4, threads: 2, {axes}}}\n\
         measurement: {{profile: quick, repetitions: 1, min_seconds: 0}}\n{rest}",
        models.join(", ")
    );
    let folder = packs[0].folder.path();
    let (matrix, results) = (folder.join("matrix.yaml"), folder.join("results"));
    fs::write(&matrix, text).expect("a matrix");
    let [file, to] = [&matrix, &results].map(|path| path.to_str().expect("UTF-8"));
    let output = ortbench(&["run", file, "--results", to, "--quiet"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!error.contains("panicked") && results.is_dir(), "{error}");
    let rows = summary(&only_run(&results));
    for row in &rows {
        assert_eq!(row["status"], "measured", "{}: {}", row["cell_id"], row["reason"]);
    }
    rows
}

fn number(row: &Row, name: &str) -> f64 {
    row[name].parse().unwrap_or_else(|_| panic!("{name} of {} is `{}`: {}", row["cell_id"], row[name], row["reason"]))
}

/// Under the kernel's limit too, where one can be set.
#[test]
fn a_larger_budget_reads_less_and_says_the_same() {
    let packs = MODELS.map(Streamed::new);
    let budgets = [0, 1].map(|at| {
        let least = packs[at].least(1, 12);
        [4, 20, 36].map(|more| format!("{}MiB", least + more))
    });
    let limited = limits_can_be_set();
    let mut axes =
        format!("batch: 1, prompt_tokens: 4, generate_tokens: 8, residency: stream, memory_budget: {:?}", budgets[0]);
    let mut none = "memory_budget: none".to_owned();
    if limited {
        axes += ", memory_limit: budget";
        none += ", memory_limit: none";
    }
    let (dense, moe) = (&budgets[0][0], &budgets[1][0]);
    let rest = format!(
        "categories: [speed]\ninclude:\n  \
         - {{model: m1, residency: experts, memory_budget: {:?}}}\n  \
         - {{model: m0, residency: experts, memory_budget: {dense}}}\n  \
         - {{model: m1, residency: stream, memory_budget: {moe}}}\n  \
         - {{model: [m0, m1], residency: [resident, mapped], {none}}}\n\
         overrides:\n  \
         - {{when: {{memory_budget: [none, {dense}, {moe}]}}, set: {{categories: [speed, accuracy]}}}}\n\
         accuracy:\n  reference: {{residency: resident}}\n  fidelity: {{random_tokens: {{seed: 3}}, tokens: 16, \
         window: 8, context: 4, generations: 1, generate_tokens: 2}}\n",
        budgets[1]
    );
    let rows = run(&packs.each_ref(), &axes, &rest);
    assert_eq!(rows.len(), 12);
    for (model, made_for) in [("m0", "stream"), ("m1", "experts")] {
        let (tight, free): (Vec<&Row>, Vec<&Row>) =
            rows.iter().filter(|row| row["model"] == model).partition(|row| !row["memory_budget_bytes"].is_empty());
        assert_eq!((tight.len(), free.len()), (4, 2));
        for row in tight.iter().chain(&free) {
            assert_eq!(row["output_tokens_hash"], free[0]["output_tokens_hash"], "{}: other answers", row["cell_id"]);
        }
        // Distances from the reference as it is stored, which is rounded: equal logits are equally far from it.
        let compared: Vec<&&Row> =
            tight.iter().chain(&free).filter(|row| !row["kl_divergence_mean"].is_empty()).collect();
        assert_eq!(compared.len(), 3, "two budgets, and mapped");
        for row in compared {
            assert!(number(row, "max_logit_difference") < 1e-5, "{}", row["cell_id"]);
            let mapped = free.iter().find(|row| row["residency"] == "mapped").expect("a row");
            let resident = free.iter().find(|row| row["residency"] == "resident").expect("a row");
            assert_eq!(row["kl_divergence_mean"], mapped["kl_divergence_mean"], "{}", row["cell_id"]);
            assert_eq!(row["perplexity"], resident["perplexity"], "{}: other logits", row["cell_id"]);
        }
        let growing: Vec<&&Row> = tight.iter().filter(|row| row["residency"] == made_for).collect();
        for pair in growing.windows(2) {
            let [less, more] = [pair[0], pair[1]];
            let [many, few] = [less, more].map(|row| number(row, "bytes_read_per_token"));
            assert!(many > few, "{many} with {}, {few} with {}", less["cell_id"], more["cell_id"]);
            if made_for == "experts" {
                assert!(number(less, "expert_hit_rate") < number(more, "expert_hit_rate"), "{}", more["cell_id"]);
            } else {
                assert!(number(less, "pinned_bytes") < number(more, "pinned_bytes"), "{}", more["cell_id"]);
            }
        }
        // With the least a large part of what a token needs is read for it, without a budget nothing is.
        let weights = number(growing[0], "weights_bytes_per_step");
        assert!(number(growing[0], "bytes_read_per_token") > 0.2 * weights, "{}", growing[0]["bytes_read_per_token"]);
        let resident = free.iter().find(|row| row["residency"] == "resident").expect("a row");
        assert_eq!(number(resident, "bytes_read_per_token"), 0.0);
        for row in tight.iter().filter(|_| limited) {
            let [peak, budget] = ["cgroup_peak_bytes", "memory_budget_bytes"].map(|name| number(row, name));
            assert!(peak <= budget, "{}: {peak}", row["cell_id"]);
        }
    }
}

#[test]
fn a_layer_is_read_once_for_all_sequences_of_a_batch() {
    let pack = Streamed::new(MODELS[0]);
    let budget = pack.least(4, 8) + 4;
    let axes = format!(
        "batch: [1, 2, 4], micro_batch: 1, prompt_tokens: 2, generate_tokens: 4, residency: stream, \
         memory_budget: {budget}MiB"
    );
    let rows = run(&[&pack], &axes, "categories: [speed]\n");
    let read: Vec<f64> = rows.iter().map(|row| number(row, "bytes_read_per_token")).collect();
    eprintln!("bytes read a token with 1, 2 and 4 sequences: {read:?}");
    assert!(read[0] > 20e6, "{read:?}");
    // What the sequences themselves take comes off the budget, so that a little more is read.
    assert!(read[1] < 0.7 * read[0] && read[2] < 0.7 * read[1], "{read:?}");
}

/// `ortbench generate` in the middle of an answer.
struct Answering {
    child: Child,
}

impl Answering {
    /// Starts it under that budget in MiB. Tokens are drawn, so that it does not go round in circles on few experts.
    fn start(pack: &Streamed, tokens: usize, budget: u64) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ortbench"));
        command.arg("generate").arg(pack.path()).args(["--prompt", PROMPT, "--residency", pack.residency]);
        command.args(["--temperature", "1", "--seed", "7", "--threads", "2", "--quiet"]);
        command.args(["-n", &tokens.to_string(), "--memory-budget", &format!("{budget}MiB")]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
        Self { child }
    }

    /// Waits for the first piece of the answer, does something, and returns all of the answer, what is said on standard
    /// error, and how it ends.
    fn after_first(mut self, act: impl FnOnce()) -> (Vec<u8>, String, ExitStatus) {
        let (mut text, mut error) = (vec![0], String::new());
        let mut out = self.child.stdout.take().expect("its standard output");
        let started = out.read_exact(&mut text);
        if started.is_ok() {
            act();
        }
        out.read_to_end(&mut text).expect("an answer");
        self.child.stderr.take().expect("its standard error").read_to_string(&mut error).expect("UTF-8");
        started.unwrap_or_else(|_| panic!("it ended before it began: {error}"));
        (text, error, self.child.wait().expect("its end"))
    }
}

/// What is done to a shard, and whether the run can go on with what it has open.
struct Damage {
    name: &'static str,
    goes_on: bool,
    act: fn(&Streamed, &Path),
}

const DAMAGES: [Damage; 5] = [
    Damage {
        name: "a bit in each record",
        goes_on: false,
        act: |pack, shard| overwrite(pack, shard, |byte| byte ^ 16),
    },
    Damage {
        name: "written over",
        goes_on: false,
        act: |_, shard| {
            let bytes = fs::metadata(shard).expect("a shard").len() as usize;
            let mut file = fs::File::options().write(true).open(shard).expect("a shard");
            std::io::Write::write_all(&mut file, &vec![0x55; bytes]).expect("other bytes");
        },
    },
    Damage {
        name: "cut",
        goes_on: false,
        act: |_, shard| {
            fs::File::options().write(true).open(shard).and_then(|file| file.set_len(8192)).expect("a shard");
        },
    },
    // An open file stays what it was.
    Damage { name: "deleted", goes_on: true, act: |_, shard| fs::remove_file(shard).expect("a shard") },
    Damage {
        name: "replaced",
        goes_on: true,
        act: |_, shard| {
            let bytes = fs::metadata(shard).expect("a shard").len() as usize;
            let other = shard.with_extension("other");
            fs::write(&other, vec![0x55; bytes]).and_then(|()| fs::rename(other, shard)).expect("another file");
        },
    },
];

/// Changes one byte in the middle of each of a shard's records.
fn overwrite(pack: &Streamed, shard: &Path, edit: fn(u8) -> u8) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(shard).expect("a shard");
    let place = pack.index.files.iter().position(|known| shard.ends_with(&known.file)).expect("of the pack");
    for record in pack.index.records.iter().filter(|record| record.file == place) {
        let (mut byte, at) = ([0], record.offset + record.stored / 2);
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[edit(byte[0])], at).expect("another byte");
    }
}

#[test]
fn a_shard_that_changes_in_the_middle_of_a_run_ends_it_with_its_name_or_changes_nothing() {
    for model in MODELS {
        let pack = Streamed::new(model);
        let (few, many) = (12, 300);
        let budget = pack.least(1, many);
        let (undisturbed, error, status) = Answering::start(&pack, few, budget).after_first(|| ());
        assert!(status.success(), "{error}");
        let place = pack.index.files.len() / 2;
        let (name, shard) = (&pack.index.files[place].file, pack.path().join(&pack.index.files[place].file));
        let whole = fs::read(&shard).expect("a shard");
        for damage in &DAMAGES {
            let case = format!("{}, {}", model.0, damage.name);
            // What must end by itself would otherwise go on for long.
            let running = Answering::start(&pack, if damage.goes_on { few } else { many }, budget);
            let (text, error, status) = running.after_first(|| (damage.act)(&pack, &shard));
            if damage.goes_on {
                assert!(status.success() && text == undisturbed, "{case}: {status}: {error}");
            } else {
                // By itself, not by SIGBUS.
                assert_eq!(status.code(), Some(2), "{case}: {status}: {error}");
                let records = pack.index.records.iter().filter(|record| record.file == place);
                assert!(records.map(|record| &record.name).any(|record| error.contains(record)), "{case}: {error}");
                assert!(error.contains(name.as_str()) && error.contains("hint:"), "{case}: {error}");
                let said = text.len().min(undisturbed.len());
                assert_eq!(text[..said], undisturbed[..said], "{case}: another answer before the end");
            }
            fs::write(&shard, &whole).expect("the shard as it was");
        }
        assert!(pack::verify(&pack.path()).expect("a pack").damage.is_empty());
    }
}

/// A control group whose processes read slowly from the disk of a path, removed at the end.
struct SlowDisk(PathBuf);

impl SlowDisk {
    /// `None`, with a word, where that cannot be had.
    fn below(path: &Path, bytes_per_second: u64) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let device = fs::metadata(path).expect("a folder").dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let name = format!("ortbench-test-{}-slow", std::process::id());
        let (version1, version2) = (Path::new("/sys/fs/cgroup/blkio"), Path::new("/sys/fs/cgroup"));
        let (group, file, limit) = if version1.join("blkio.throttle.read_bps_device").exists() {
            (Self(version1.join(name)), "blkio.throttle.read_bps_device", format!("{device} {bytes_per_second}"))
        } else {
            (Self(version2.join(name)), "io.max", format!("{device} rbps={bytes_per_second}"))
        };
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(file), limit));
        if let Err(error) = &made {
            eprintln!("skipped: the disk cannot be made slow here: {error}");
        }
        made.is_ok().then_some(group)
    }

    /// Moves a process into it.
    fn add(&self, child: &Child) -> bool {
        fs::write(self.0.join("cgroup.procs"), child.id().to_string()).is_ok()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_slow_disk_changes_no_answer() {
    for model in MODELS {
        let pack = Streamed::new(model);
        let budget = pack.least(1, 6);
        let fast = std::time::Instant::now();
        let (expected, error, status) = Answering::start(&pack, 6, budget).after_first(|| ());
        assert!(status.success(), "{error}");
        let fast = fast.elapsed();
        let Some(disk) = SlowDisk::below(&pack.path(), 48 << 20) else { return };
        let slow = std::time::Instant::now();
        let running = Answering::start(&pack, 6, budget);
        if !disk.add(&running.child) {
            eprintln!("skipped: no process can be moved into a control group of the disk here");
            running.after_first(|| ());
            return;
        }
        let (found, error, status) = running.after_first(|| ());
        assert!(status.success() && found == expected, "{}: {status}: {error}", model.0);
        eprintln!("{}: {:.2?}, and {:.2?} from a disk of 48 MiB/s", model.0, fast, slow.elapsed());
    }
}

/// The logits of two sequences of some tokens, bytes read a pass of decode, and what the loader keeps.
fn decode(package: &Package, plan: &Plan) -> (Vec<f32>, u64, PagerFacts) {
    const PASSES: u64 = 3;
    let mut model = load_with(package, plan).expect("a model");
    let prompts = [5_u32, 9].map(|length| Prompt::text((3..3 + length).collect()));
    let mut decoder = Decoder::new(&model, 2, 32).expect("a decoder");
    decoder.prefill(&mut model, &prompts, &Features::default()).expect("a prefill");
    let mut all: Vec<f32> = decoder.logits().iter().copied().collect();
    let before = model.pager_statistics().expect("a pack").bytes_read;
    for step in 0..PASSES as u32 {
        decoder.step(&mut model, &[10 + step, 40 + 3 * step]).expect("a step");
        all.extend(decoder.logits().iter());
    }
    let read = model.pager_statistics().expect("a pack").bytes_read - before;
    (all, read / PASSES, model.pager_facts().expect("a pack"))
}

#[test]
fn a_share_of_the_weights_is_in_memory_and_reading_ahead_changes_no_answer() {
    for model in MODELS {
        let pack = Streamed::new(model);
        let package = Package::open(&pack.path()).expect("a package");
        let (expected, none, _) = decode(&package, &Plan::with_threads(2));
        assert_eq!(none, 0);
        let residency: Residency = if model.1 == "stream" { Residency::Stream } else { Residency::Experts };
        let whole: u64 = pack.index.records.iter().map(|record| record.bytes).sum();
        let mut before = u64::MAX;
        for share in [0.5, 0.8] {
            for read_ahead in [true, false] {
                let plan = Plan {
                    residency: Some(residency),
                    weights_share: Some(share),
                    read_ahead,
                    ..Plan::with_threads(2)
                };
                let (logits, read, facts) = decode(&package, &plan);
                let case = format!("{}, {share} of {whole} bytes, ahead: {read_ahead}", model.0);
                assert!(logits == expected, "{case}: other logits");
                let held = facts.pinned_bytes + facts.stream_bytes + facts.expert_bytes;
                eprintln!("{case}: {read} bytes read a pass, {held} may be in memory");
                assert!(held as f64 <= share * whole as f64 * 1.01, "{case}: {held}");
                if residency == Residency::Stream {
                    // What is not pinned is read, less at most what the stream's memory keeps of it.
                    let streamed = facts.streamed_bytes_per_pass;
                    assert!(read <= streamed + facts.stream_bytes, "{case}: {read} of {streamed}");
                    assert!(read + facts.stream_bytes >= streamed, "{case}: {read} of {streamed}");
                }
                if read_ahead {
                    assert!(read < before, "{case}: {read} is not less than {before}");
                    before = read;
                }
            }
        }
    }
}

#[test]
fn a_share_that_means_nothing_is_refused() {
    let pack = Streamed::new(MODELS[0]);
    let package = Package::open(&pack.path()).expect("a package");
    let stream = Plan { residency: Some(Residency::Stream), weights_share: Some(0.5), ..Plan::with_threads(2) };
    let refused = |plan: Plan| load_with(&package, &plan).expect_err("a share that means nothing").chain();
    for share in [0.0, -0.5, 1.5, f64::NAN] {
        assert!(refused(Plan { weights_share: Some(share), ..stream.clone() }).contains("above 0 and at most 1"));
    }
    assert!(refused(Plan { residency: None, ..stream.clone() }).contains("`resident`"));
    assert!(refused(Plan { budget: Some(1 << 30), ..stream.clone() }).contains("both say"));
    // Less than what works is what works.
    let (_, read, facts) = decode(&package, &Plan { weights_share: Some(1e-6), ..stream });
    assert!(read > 0 && facts.stream_bytes > 0, "{facts:?}");
}
