//! `ortbench pack` on the exported miniatures: what a pack holds is the package, and what happens when it is disturbed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ortbench::loader::pack::{self, CodecChoice, Options, Quiet};
use ortbench::loader::{codec, kernels};
use ortbench::package::Package;
use ortbench::package::onnx::{self, GraphProto, NodeProto};
use ortbench::package::shards::{Form, Record, ShardIndex, What};
use rustix::process::{Pid, Signal, kill_process};

use crate::real::{fails, ortbench, package, package_of, root};

const MODELS: [&str; 5] =
    ["qwen3-tiny", "qwen3-moe-tiny", "qwen3-vl-tiny", "glm4-moe-lite-tiny", "glm4-moe-lite-tiny-absorbed"];

/// Small enough that miniatures have tensors above it.
fn options(form: Form) -> Options {
    Options { form, threshold: 8 << 10, ..Options::default() }
}

fn packed(from: &Path, options: &Options) -> (tempfile::TempDir, PathBuf, pack::Summary) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("pack");
    let package = Package::open(from).expect("a package");
    let summary = pack::pack(&package, &output, options, &Quiet).unwrap_or_else(|error| panic!("{}", error.chain()));
    (folder, output, summary)
}

fn graph(path: &Path) -> GraphProto {
    let bytes = fs::read(path).expect("a model");
    let (graph, sets) = onnx::read(&bytes).expect("a model");
    let domains: HashSet<&str> = sets.iter().map(|set| set.domain()).collect();
    for node in &graph.node {
        assert!(domains.contains(node.domain()), "{}: {}", path.display(), node.domain());
    }
    graph
}

/// A constant's bytes, wherever they are.
fn constant(folder: &Path, graph: &GraphProto, name: &str) -> Vec<u8> {
    let tensor = graph.initializer.iter().find(|tensor| tensor.name() == name);
    let tensor = tensor.unwrap_or_else(|| panic!("`{name}` is no constant"));
    let Some(location) = tensor.location() else { return tensor.raw().expect("its bytes") };
    let number = |key| tensor.external(key).map_or(0, |text| text.parse::<usize>().expect("a number"));
    let bytes = fs::read(folder.join(location)).expect("external data");
    bytes[number("offset")..number("offset") + number("length")].to_vec()
}

fn stored(folder: &Path, index: &ShardIndex, record: &Record) -> Vec<u8> {
    let file = fs::read(folder.join(&index.files[record.file].file)).expect("a shard");
    let stored = &file[record.offset as usize..(record.offset + record.stored) as usize];
    let mut bytes = vec![0; record.bytes as usize];
    codec::decode(record.codec, stored, &mut bytes).expect("what was encoded");
    bytes
}

fn bytes_of(scales: &[f32]) -> Vec<u8> {
    scales.iter().flat_map(|scale| scale.to_le_bytes()).collect()
}

/// Everything in the records is the source's, bit for bit.
fn holds_the_package(from: &Path, output: &Path, index: &ShardIndex) {
    let package = Package::open(from).expect("a package");
    let source = graph(&from.join(&package.decoder().expect("a decoder").file));
    let find = |wanted: &dyn Fn(&&NodeProto) -> bool| source.node.iter().find(wanted).expect("a node");
    for record in &index.records {
        let bytes = stored(output, index, record);
        // A second use in another segment has a number behind its name.
        let name = record.name.split('@').next().expect("a name");
        match &record.what {
            What::Tensor { .. } => assert!(bytes == constant(from, &source, name), "{name}"),
            What::Matrix { shape } => {
                let node = find(&|node| node.op_type() == "MatMulNBits" && node.input[1] == name);
                let (codes, scales, zeros) = kernels::unpack(shape, &bytes);
                assert!(codes == constant(from, &source, name), "{name}");
                assert!(bytes_of(&scales) == constant(from, &source, &node.input[2]), "{name}");
                assert_eq!(zeros, node.input_at(3).map(|zeros| constant(from, &source, zeros)), "{name}");
            }
            What::Expert { mixture, expert, gate_up, down } => {
                let node = find(&|node| node.op_type() == "QMoE" && node.name() == mixture);
                let at = *expert as usize;
                let down_at = kernels::down_offset(gate_up);
                for (shape, packed, codes_of, scales_of) in [
                    (gate_up, &bytes[..kernels::packed_bytes(gate_up)], &node.input[2], &node.input[3]),
                    (down, &bytes[down_at..], &node.input[5], &node.input[6]),
                ] {
                    let (codes, scales, _) = kernels::unpack(shape, packed);
                    let all = constant(from, &source, codes_of);
                    assert!(codes == all[at * codes.len()..(at + 1) * codes.len()], "{}", record.name);
                    let (all, scales) = (constant(from, &source, scales_of), bytes_of(&scales));
                    assert!(scales == all[at * scales.len()..(at + 1) * scales.len()], "{}", record.name);
                }
            }
        }
    }
}

/// Every input is there before it is used, every name is made once, external data is what the source has.
fn is_whole(from: &Path, output: &Path, source: &GraphProto, graph: &GraphProto) {
    let mut known: HashSet<&str> = graph.input.iter().map(|input| input.name()).collect();
    for tensor in &graph.initializer {
        assert!(known.insert(tensor.name()), "{}", tensor.name());
        let same = constant(output, graph, tensor.name()) == constant(from, source, tensor.name());
        assert!(same, "{}", tensor.name());
    }
    for node in &graph.node {
        for name in node.reads() {
            assert!(known.contains(name), "{} reads `{name}` before it is made", node.name());
        }
        for name in node.makes() {
            assert!(known.insert(name), "`{name}` is made twice");
        }
    }
    for value in &graph.output {
        assert!(known.contains(value.name()), "{}", value.name());
    }
    for value in graph.input.iter().chain(&graph.output) {
        assert!(value.elem_type().is_some(), "{}", value.name());
    }
    let read: HashSet<&str> = graph.node.iter().flat_map(NodeProto::reads).collect();
    let unused = graph.initializer.iter().find(|tensor| !read.contains(tensor.name()));
    assert!(unused.is_none(), "{unused:?} is not used");
}

/// Names of records that nodes ask for.
fn asked(graph: &GraphProto) -> HashSet<String> {
    let ours = graph.node.iter().filter(|node| node.domain() == "ortbench");
    ours.map(|node| String::from_utf8(node.string("record").expect("a record").to_vec()).expect("UTF-8")).collect()
}

fn names(values: &[onnx::ValueInfoProto]) -> HashSet<String> {
    values.iter().map(|value| value.name().to_owned()).collect()
}

/// The segments are the graph, cut: they pass on what they say, and have their own records.
fn segments_fit(from: &Path, output: &Path, index: &ShardIndex) {
    let package = Package::open(from).expect("a package");
    let source = graph(&from.join(&package.decoder().expect("a decoder").file));
    let (inputs, outputs) = (names(&source.input), names(&source.output));
    let (mut made, mut given, mut layers) = (HashSet::new(), HashSet::new(), Vec::new());
    for segment in &index.segments {
        let graph = graph(&output.join(&segment.file));
        is_whole(from, output, &source, &graph);
        let records = &index.records[segment.first_record..segment.first_record + segment.records];
        let of_records: HashSet<String> = records.iter().map(|record| record.name.clone()).collect();
        let takes: HashSet<String> = segment.takes.iter().cloned().collect();
        assert!(takes.is_subset(&made), "{}", segment.file);
        let mut expected: HashSet<String> = takes.clone();
        if index.form == Form::Inputs {
            expected.extend(of_records);
        } else {
            let mixtures = records.iter().filter_map(|record| match &record.what {
                What::Expert { mixture, .. } => Some(mixture.clone()),
                _ => None,
            });
            let dense = records.iter().filter(|record| !matches!(record.what, What::Expert { .. }));
            let all: HashSet<String> = dense.map(|record| record.name.clone()).chain(mixtures).collect();
            assert_eq!(asked(&graph), all, "{}", segment.file);
        }
        let here = names(&graph.input);
        expected.extend(here.intersection(&inputs).cloned());
        assert_eq!(here, expected, "{}", segment.file);
        let makes: HashSet<String> = segment.makes.iter().cloned().collect();
        let there = names(&graph.output);
        assert!(makes.is_subset(&there));
        for name in there.difference(&makes) {
            assert!(outputs.contains(name), "{name}");
        }
        given.extend(there.intersection(&outputs).cloned());
        made.extend(makes);
        assert!(records.iter().all(|record| record.layer == segment.layer), "{}", segment.file);
        layers.push(segment.layer);
    }
    assert_eq!(given, outputs);
    let count = package.manifest.shape.layers as u32;
    let expected: Vec<_> = std::iter::once(None).chain((0..count).map(Some)).chain([None]).collect();
    assert_eq!(layers, expected);
}

#[test]
fn every_miniature_is_packed_and_loses_nothing() {
    let mut kinds = [0; 3];
    for model in MODELS {
        for precision in ["int4", "int8", "fp16", "fp32"] {
            for flavour in ["fused", "plain"] {
                let from = package_of(model, &format!("{precision}-{flavour}"));
                for form in [Form::Operators, Form::Inputs] {
                    let (_folder, output, _) = packed(&from, &options(form));
                    let package = Package::open(&output).expect("a pack");
                    package.verify().expect("hashes of all files");
                    let index = package.shards().expect("an index").expect("a pack");
                    assert_eq!(pack::open(&output).expect("this program's layout"), index);
                    assert!(pack::verify(&output).expect("a pack").damage.is_empty());
                    assert!(!index.records.is_empty());
                    holds_the_package(&from, &output, &index);
                    segments_fit(&from, &output, &index);
                    if form == Form::Operators {
                        let source = graph(&from.join("model.onnx"));
                        let whole = graph(&output.join("model.onnx"));
                        is_whole(&from, &output, &source, &whole);
                        assert_eq!(names(&whole.input), names(&source.input));
                        assert_eq!(package.decoder().expect("a decoder").file, "model.onnx");
                    } else {
                        assert!(!output.join("model.onnx").exists());
                    }
                    for record in &index.records {
                        kinds[match record.what {
                            What::Matrix { .. } => 0,
                            What::Expert { .. } => 1,
                            What::Tensor { .. } => 2,
                        }] += 1;
                    }
                }
            }
        }
    }
    assert!(kinds.iter().all(|count| *count > 100), "{kinds:?}");
}

#[test]
fn a_graph_that_is_written_again_is_the_same_bytes() {
    for model in MODELS {
        for kind in ["int4-fused", "int8-plain", "fp16-plain"] {
            let bytes = fs::read(package_of(model, kind).join("model.onnx")).expect("a model");
            let read = onnx::read_whole(&bytes).expect("a model");
            assert!(onnx::write(&read) == bytes, "{model} {kind}");
        }
    }
}

#[test]
fn quantized_nodes_are_replaced_and_tables_stay() {
    let (_folder, output, summary) = packed(&package_of("qwen3-moe-tiny", "int4-fused"), &Options::default());
    let whole = graph(&output.join("model.onnx"));
    let count = |name: &str| whole.node.iter().filter(|node| node.op_type() == name).count();
    assert_eq!((count("MatMulNBits"), count("QMoE"), count("Matrix"), count("Experts")), (0, 0, 9, 4));
    let experts = whole.node.iter().find(|node| node.op_type() == "Experts").expect("a mixture");
    assert_eq!((experts.int("k"), experts.int("normalize"), experts.input.len()), (Some(2), Some(1), 2));
    // The table is read by rows; the head, which has the same weights, is packed.
    assert!(whole.initializer.iter().any(|tensor| tensor.name() == "model.embed_tokens.weight_q4"));
    assert!(summary.index.records.iter().any(|record| record.name == "lm_head.weight_q4"));
    // A layer's dense records, then its experts.
    let of_layer = summary.index.records.iter().filter(|record| record.layer == Some(0));
    let kinds: Vec<bool> = of_layer.map(|record| matches!(record.what, What::Expert { .. })).collect();
    assert_eq!(kinds, [false, false, true, true, true, true, true, true, true, true]);

    let (_folder, output, _) = packed(&package_of("glm4-moe-lite-tiny", "int8-fused"), &Options::default());
    let whole = graph(&output.join("model.onnx"));
    let experts = whole.node.iter().find(|node| node.op_type() == "Experts").expect("a mixture");
    // Its router's own weights mix.
    assert_eq!((experts.input.len(), experts.int("normalize")), (3, Some(0)));
}

#[test]
fn what_the_kernels_cannot_do_keeps_its_operator() {
    let from = tempfile::tempdir().expect("a folder");
    copy_package(&package("int4-fused"), from.path());
    let path = from.path().join("model.onnx");
    let mut model = onnx::read_whole(&fs::read(&path).expect("a model")).expect("a model");
    let nodes = &mut model.graph.as_mut().expect("a graph").node;
    let mut products = nodes.iter_mut().filter(|node| node.op_type() == "MatMulNBits");
    for attribute in &mut products.next().expect("a product").attribute {
        if attribute.name() == "accuracy_level" {
            attribute.i = Some(0);
        }
    }
    replace(from.path(), "model.onnx", &onnx::write(&model));

    let (_folder, output, summary) = packed(from.path(), &options(Form::Operators));
    let whole = graph(&output.join("model.onnx"));
    let stock: Vec<_> = whole.node.iter().filter(|node| node.op_type() == "MatMulNBits").collect();
    assert_eq!((stock.len(), summary.stock.len(), summary.stock[0].2), (1, 1, 1));
    assert!(summary.stock[0].1.contains("--int8-activations"), "{:?}", summary.stock);
    let weight = whole.node.iter().find(|node| node.makes().any(|name| name == stock[0].input[1]));
    assert_eq!(weight.expect("its weights").op_type(), "Weight");

    let rounding = Options { int8_activations: true, ..options(Form::Operators) };
    assert!(packed(from.path(), &rounding).2.stock.is_empty());
    // Sixteen-bit activations never.
    let (_folder, _, summary) = packed(&package("fp16-fused"), &rounding);
    assert!(summary.index.records.iter().all(|record| matches!(record.what, What::Tensor { .. })));
}

#[test]
fn codecs_are_lossless_and_used_where_they_pay() {
    for codec in [CodecChoice::Zstd, CodecChoice::Lz4, CodecChoice::Planes, CodecChoice::Auto] {
        for kind in ["fp16-fused", "int4-fused"] {
            let from = package(kind);
            let choice = Options { codec, ..options(Form::Operators) };
            let (_folder, output, summary) = packed(&from, &choice);
            holds_the_package(&from, &output, &summary.index);
            assert!(pack::verify(&output).expect("a pack").damage.is_empty());
            let shrunk = summary.index.records.iter().all(|record| record.stored <= record.bytes);
            assert!(shrunk, "what does not shrink is stored as it is");
            if kind == "fp16-fused" && codec == CodecChoice::Auto {
                let stored: u64 = summary.index.records.iter().map(|record| record.stored).sum();
                assert!(stored * 100 < summary.source_bytes * 95, "{stored} of {}", summary.source_bytes);
            }
        }
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

fn copy_package(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a package") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
}

/// Replaces a file of a package, and its size in the manifest.
fn replace(folder: &Path, name: &str, bytes: &[u8]) {
    fs::write(folder.join(name), bytes).expect("a file");
    let path = folder.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
    for file in manifest["files"].as_array_mut().expect("files") {
        if file["path"] == name {
            file["bytes"] = bytes.len().into();
        }
    }
    fs::write(&path, serde_json::to_vec(&manifest).expect("JSON")).expect("a manifest");
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

#[test]
fn help_is_as_documented() {
    let help = ortbench(&["pack", "--help"]);
    insta::assert_snapshot!("pack_help", String::from_utf8(help.stdout).expect("UTF-8"));
    let run = ortbench(&["pack"]);
    assert_eq!(run.status.code(), Some(2));
    let (code, error) = fails(&["pack", "nowhere", "--output", root().join("target/never").to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(error.contains("hint:"), "{error}");
}
