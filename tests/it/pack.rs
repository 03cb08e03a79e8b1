//! `ortbench pack` on the exported miniatures: what a pack holds is the package.

pub mod checks;
mod disturbed;

use std::fs;
use std::path::{Path, PathBuf};

use ortbench::loader::pack::{self, CodecChoice, Options, Quiet};
use ortbench::package::Package;
use ortbench::package::onnx::{self, GraphProto};
use ortbench::package::shards::{Form, Record, What};

use crate::real::{fails, ortbench, package, package_of, root};
use checks::{graph, holds_the_package, is_whole, names, segments_fit};

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
    let from = edited(|graph| {
        let mut products = graph.node.iter_mut().filter(|node| node.op_type() == "MatMulNBits");
        for attribute in &mut products.next().expect("a product").attribute {
            if attribute.name() == "accuracy_level" {
                attribute.i = Some(0);
            }
        }
    });

    let (_folder, output, summary) = packed(from.path(), &options(Form::Operators));
    let whole = graph(&output.join("model.onnx"));
    let stock: Vec<_> = whole.node.iter().filter(|node| node.op_type() == "MatMulNBits").collect();
    assert_eq!((stock.len(), summary.stock.len(), summary.stock[0].2), (1, 1, 1));
    assert!(summary.stock[0].1.contains("--int8-activations"), "{:?}", summary.stock);
    let weight = whole.node.iter().find(|node| node.makes().any(|name| name == stock[0].input[1]));
    assert!(weight.expect("its weights").op_type().starts_with("Weight"));

    let rounding = Options { int8_activations: true, ..options(Form::Operators) };
    assert!(packed(from.path(), &rounding).2.stock.is_empty());
    // Sixteen-bit activations never.
    let (_folder, _, summary) = packed(&package("fp16-fused"), &rounding);
    assert!(summary.index.records.iter().all(|record| matches!(record.what, What::Tensor { .. })));
}

/// An edited copy of the dense miniature.
fn edited(edit: impl Fn(&mut GraphProto)) -> tempfile::TempDir {
    let from = tempfile::tempdir().expect("a folder");
    copy_package(&package("int4-fused"), from.path());
    let path = from.path().join("model.onnx");
    let mut model = onnx::read_whole(&fs::read(&path).expect("a model")).expect("a model");
    edit(model.graph.as_mut().expect("a graph"));
    replace(from.path(), "model.onnx", &onnx::write(&model));
    from
}

fn raw(name: &str, data_type: i32, dims: &[i64], bytes: Vec<u8>) -> onnx::TensorProto {
    let (name, data_type, raw_data) = (Some(name.to_owned()), Some(data_type), Some(bytes));
    onnx::TensorProto { dims: dims.to_vec(), data_type, name, raw_data, ..onnx::TensorProto::default() }
}

#[test]
fn zero_points_biases_and_shared_weights_are_packed() {
    let from = edited(|graph| {
        let of = |layer: usize, part: &str| format!("/model/layers.{layer}/{part}/MatMulNBits");
        let zeros: Vec<u8> = (0..384 * 4).map(|n| (n * 7 % 256) as u8).collect();
        graph.initializer.push(raw("zeros", 2, &[384 * 4], zeros));
        graph.initializer.push(raw("bias", 1, &[384], vec![0; 4 * 384]));
        let inputs = |name: &str| graph.node.iter().find(|node| node.name() == name).expect("a node").input.clone();
        let shared = inputs(&of(0, "mlp/up_proj"));
        for node in &mut graph.node {
            let zeros = |zeros: &str, bias: &str| [zeros, "", bias].map(str::to_owned);
            if node.name() == of(0, "attn/qkv_proj") {
                node.input.extend(zeros("zeros", "bias"));
            } else if node.name() == of(1, "attn/qkv_proj") {
                node.input.extend(zeros("", "bias"));
            } else if node.name() == of(2, "mlp/up_proj") || node.name() == of(2, "mlp/gate_proj") {
                node.input[1..].clone_from_slice(&shared[1..]);
            }
        }
    });
    let (_folder, output, summary) = packed(from.path(), &Options::default());
    assert!(summary.stock.is_empty(), "{:?}", summary.stock);
    holds_the_package(from.path(), &output, &summary.index);
    segments_fit(from.path(), &output, &summary.index);
    let whole = graph(&output.join("model.onnx"));
    is_whole(from.path(), &output, &graph(&from.path().join("model.onnx")), &whole);
    let adds: Vec<_> = whole.node.iter().filter(|node| node.op_type() == "Add").collect();
    assert_eq!(adds.len(), 2);
    assert!(adds.iter().all(|add| add.input[1] == "bias"));
    let with_zeros = |record: &&Record| matches!(record.what, What::Matrix { shape } if shape.zero_points);
    assert_eq!(summary.index.records.iter().filter(with_zeros).count(), 1);
    // Used twice in layer 2, and in layer 0: a record a layer.
    let uses: Vec<_> =
        summary.index.records.iter().filter(|record| record.name.contains("layers.0.mlp.up_proj")).collect();
    assert_eq!(uses.iter().map(|record| record.layer).collect::<Vec<_>>(), [Some(0), Some(2)]);
    assert!(uses[1].name.ends_with("@2"));
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
fn help_is_as_documented() {
    // The width of a terminal must not fold it otherwise.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ortbench"));
    let help = command.args(["pack", "--help"]).env_remove("COLUMNS").output().expect("the program");
    insta::assert_snapshot!("pack_help", String::from_utf8(help.stdout).expect("UTF-8"));
    let run = ortbench(&["pack"]);
    assert_eq!(run.status.code(), Some(2));
    let (code, error) = fails(&["pack", "nowhere", "--output", root().join("target/never").to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(error.contains("hint:"), "{error}");
}
