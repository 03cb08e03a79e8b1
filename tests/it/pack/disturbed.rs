//! Packing that is killed, runs out of room or memory, or finds something else; packs that are damaged.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ortbench::loader::pack::{self, Options, Quiet};
use ortbench::package::Package;
use ortbench::package::onnx::GraphProto;
use ortbench::package::shards::{Form, ShardIndex};
use rustix::process::{Pid, Signal, kill_process};

use super::{edited, options, packed};
use crate::real::{fails, ortbench, package, package_of};

#[test]
fn a_damaged_source_is_refused_before_anything_is_written() {
    type Edit = fn(&mut GraphProto);
    let edits: [(&str, Edit); 4] = [
        ("leads out of the package", |graph| entry(graph, "location", "../secret")),
        ("are asked for", |graph| entry(graph, "offset", "99999999999")),
        ("is no number", |graph| entry(graph, "offset", "-5")),
        ("where its shape asks for", |graph| entry(graph, "length", "5")),
    ];
    for (cause, edit) in edits {
        let from = edited(edit);
        let package = Package::open(from.path()).expect("a package");
        let output = from.path().join("pack");
        let error = pack::pack(&package, &output, &Options::default(), &Quiet).expect_err(cause);
        assert!(error.chain().contains(cause), "{cause}: {}", error.chain());
        assert!(!output.exists());
    }
}

/// Sets an entry of the last constant's external data.
fn entry(graph: &mut GraphProto, key: &str, value: &str) {
    let tensor = graph.initializer.iter_mut().rfind(|tensor| tensor.location().is_some()).expect("external data");
    for entry in tensor.external_data.iter_mut().filter(|entry| entry.key() == key) {
        entry.value = Some(value.to_owned());
    }
}

/// Every file below a folder, by its path there, with its bytes.
fn contents(folder: &Path) -> HashMap<PathBuf, Vec<u8>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let name = PathBuf::from(path.file_name().expect("a name"));
        if path.is_dir() {
            found.extend(contents(&path).into_iter().map(|(inside, bytes)| (name.join(inside), bytes)));
        } else {
            found.insert(name, fs::read(&path).expect("a file"));
        }
    }
    found
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let from = package_of("qwen3-moe-tiny", "int4-fused");
    let (_folder, undisturbed, _) = packed(&from, &Options::default());
    let expected = contents(&undisturbed);
    let folder = tempfile::tempdir().expect("a folder");
    // Killed when so many shards were whole, and at whatever point after that the signal found it.
    for shards in 0..4 {
        let output = folder.path().join(shards.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ortbench"));
        command.arg("pack").arg(&from).arg("--output").arg(&output);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("standard error")));
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            seen += usize::from(line.starts_with('['));
            if seen >= shards {
                break;
            }
        }
        let _ = kill_process(Pid::from_child(&child), Signal::KILL);
        child.wait().expect("its end");
        // Torn files under temporary names may be there; nothing half under a final one.
        for (path, bytes) in contents(&output) {
            let unfinished = path.to_string_lossy().ends_with(".part") || path.to_string_lossy().starts_with('.');
            assert!(unfinished || expected.get(&path) == Some(&bytes), "{}", path.display());
        }
        if output.join("manifest.json").exists() {
            continue;
        }
        // A line that was being written when the process died.
        let journal = output.join(".pack-journal.jsonl");
        if let Ok(mut text) = fs::read(&journal) {
            text.extend(b"{\"entry\":{\"path\":\"shards/0");
            fs::write(&journal, text).expect("a journal");
        }
        let again = ortbench(&["pack", from.to_str().unwrap(), "--output", output.to_str().unwrap()]);
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        let told = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(told.matches("was there").count() >= shards.saturating_sub(1), "{told}");
        let found = contents(&output);
        assert_eq!(found.keys().collect::<HashSet<_>>(), expected.keys().collect::<HashSet<_>>());
        assert!(found == expected, "other bytes after {shards} shards");
    }
}

#[test]
fn other_options_start_anew_and_finished_packs_are_replaced_on_demand() {
    let from = package("int4-fused");
    let package = Package::open(&from).expect("a package");
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("pack");
    let plain = options(Form::Operators);
    pack::pack(&package, &output, &plain, &Quiet).expect("a pack");
    let expected = contents(&output);

    let refused = pack::pack(&package, &output, &plain, &Quiet).expect_err("it is there");
    assert!(refused.find_hint().is_some_and(|hint| hint.contains("--force")));
    let forced = Options { force: true, ..options(Form::Inputs) };
    pack::pack(&package, &output, &forced, &Quiet).expect("a pack");
    assert!(!output.join("model.onnx").exists());
    pack::pack(&package, &output, &Options { force: true, ..plain }, &Quiet).expect("a pack");
    assert!(contents(&output) == expected);

    // Unfinished, then with another codec.
    fs::remove_file(output.join("manifest.json")).expect("it was finished");
    fs::write(output.join(".pack-journal.jsonl"), "{\"source\":\"other\",\"program\":\"1\",\"options\":\"{}\"}\n")
        .unwrap();
    fs::write(output.join("shards/001.bin"), "of another pack").unwrap();
    fs::write(output.join("shards/009.bin.part"), "half").unwrap();
    pack::pack(&package, &output, &plain, &Quiet).expect("a pack");
    assert!(contents(&output) == expected);

    // Neither packages nor other people's files are replaced.
    for content in ["manifest.json", "notes.txt"] {
        let other = folder.path().join(content.replace('.', "-"));
        fs::create_dir(&other).unwrap();
        fs::copy(from.join("manifest.json"), other.join(content)).unwrap();
        let refused = pack::pack(&package, &other, &Options { force: true, ..plain }, &Quiet);
        assert_eq!(refused.expect_err("not a pack").exit_code(), 2);
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    }
    // A pack is no package to pack.
    let again = Package::open(&output).expect("a pack");
    assert!(pack::pack(&again, &folder.path().join("b"), &plain, &Quiet).is_err());
}

#[test]
fn a_full_disk_leaves_no_half_file() {
    let from = package("fp32-fused");
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("pack");
    // No file may grow beyond 512 KiB: a shard stops in the middle, with an error as from a full disk.
    let script = "trap '' XFSZ; ulimit -f 1024; exec \"$0\" pack \"$1\" --output \"$2\"";
    let run = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_ortbench")]).arg(&from).arg(&output).output();
    let run = run.expect("a shell");
    let error = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(3), "{error}");
    assert!(error.contains("cannot write") && error.contains("hint:") && !error.contains("panicked"), "{error}");
    assert!(!output.join("manifest.json").exists());
    let (_other, whole, _) = packed(&from, &Options::default());
    let expected = contents(&whole);
    for (path, bytes) in contents(&output) {
        let journal = path.to_string_lossy().starts_with('.');
        assert!(journal || expected.get(&path) == Some(&bytes), "{}", path.display());
    }
    let again = ortbench(&["pack", from.to_str().unwrap(), "--output", output.to_str().unwrap()]);
    assert!(again.status.success());
    assert!(contents(&output) == expected);
}

#[test]
fn damage_is_named() {
    let (_folder, output, summary) = packed(&package("int4-fused"), &Options::default());
    let folder = output.to_str().unwrap();
    assert!(ortbench(&["pack", "--verify", folder]).status.success());
    let record = &summary.index.records[3];
    let shard = output.join(&summary.index.files[record.file].file);
    let whole = fs::read(&shard).unwrap();
    let mut bytes = whole.clone();
    bytes[record.offset as usize + 100] ^= 4;
    fs::write(&shard, &bytes).unwrap();
    let run = ortbench(&["pack", "--verify", folder]);
    assert_eq!(run.status.code(), Some(2));
    let told = String::from_utf8_lossy(&run.stdout).into_owned();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.starts_with(&format!("damaged: {} in shards/001.bin", record.name)), "{told}");

    // Cut off: the index says so before anything is read, and `--verify` names what is missing.
    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    assert!(ShardIndex::read(&output).unwrap_err().find_hint().is_some_and(|hint| hint.contains("pack it again")));
    let (code, _) = fails(&["pack", "--verify", folder]);
    assert_eq!(code, 2);
    fs::write(&shard, &whole).unwrap();
    fs::write(output.join("tokenizer.json"), "{}").unwrap();
    let run = ortbench(&["pack", "--verify", folder]);
    assert!(String::from_utf8_lossy(&run.stdout).starts_with("damaged: tokenizer.json"));
}

#[test]
fn an_index_that_cannot_be_true_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change, &str); 12] = [
        ("format", |index| index["format"] = 99.into(), "format is 99"),
        ("architecture", |index| index["made"]["architecture"] = "z80".into(), "architecture z80"),
        ("order", |index| index["records"].as_array_mut().unwrap().swap(0, 1), "out of order"),
        ("overlap", |index| index["records"][1]["offset"] = 0.into(), "overlaps"),
        ("end", |index| index["records"][0]["stored"] = (1_u64 << 60).into(), "two lengths"),
        ("beyond", |index| index["files"][0]["bytes"] = 4096.into(), "beyond the end"),
        ("aligned", |index| index["records"][1]["offset"] = 5.into(), "not aligned"),
        ("names", |index| index["records"][1]["name"] = index["records"][0]["name"].clone(), "two records"),
        ("file", |index| index["records"][0]["file"] = 77.into(), "not listed"),
        ("segments", |index| index["segments"][1]["records"] = 1.into(), "segment"),
        ("outside", |index| index["files"][0]["file"] = "../x".into(), "leads out"),
        ("key", |index| index["records"][0]["what"]["new"] = 1.into(), "unknown field"),
    ];
    let (_folder, output, _) = packed(&package("int4-fused"), &Options::default());
    let path = output.join("shards.json");
    let whole: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (name, change, cause) in changes {
        let mut index = whole.clone();
        change(&mut index);
        fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
        let error = ShardIndex::read(&output).expect_err(name);
        assert!(error.chain().contains(cause), "{name}: {}", error.chain());
        assert!(error.find_hint().is_some_and(|hint| hint.contains("pack it again")), "{name}");
    }
    // Another layout is no concern of the package, but of the kernels.
    let mut index = whole.clone();
    index["made"]["layout"] = "columns".into();
    fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
    assert!(ShardIndex::read(&output).is_ok());
    assert!(pack::open(&output).unwrap_err().chain().contains("`columns`"));
    index = whole;
    index["records"][0]["what"]["shape"]["rows"] = 1.into();
    fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
    assert!(pack::open(&output).is_err(), "a shape of another length");
}

#[test]
fn too_little_memory_names_what_would_do() {
    let package = Package::open(&package("int4-fused")).expect("a package");
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("pack");
    let little = Options { memory: 1000, ..Options::default() };
    let error = pack::pack(&package, &output, &little, &Quiet).expect_err("too little");
    assert!(error.find_hint().is_some_and(|hint| hint.contains("--memory 1MiB")), "{error:?}");
    assert!(!output.exists(), "nothing is written");
    // The least memory packs to the same bytes.
    let least = Options { memory: 1 << 20, ..Options::default() };
    pack::pack(&package, &output, &least, &Quiet).expect("a pack");
    let (_folder, other, _) = packed(&package.root, &Options::default());
    assert!(contents(&output) == contents(&other));
}
