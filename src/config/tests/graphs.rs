//! Models of the kind `graph`.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cell::{Category, ElementType, Fill, ModelKind};
use crate::config::{Matrix, parse};
use crate::error::Result;
use crate::package::onnx::{ElementType as Sequence, TypeProto, ValueInfoProto, build, data_type, write};

/// Two small graphs and some arrays.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let dims = build::dims;
    let (float, int64) = (data_type::FLOAT, data_type::INT64);
    let save = |name: &str, model| std::fs::write(folder.path().join(name), write(&model)).unwrap();
    let net = build::model(
        vec![build::node("Gemm", &["x", "w"], "y"), build::node("Identity", &["ids"], "z")],
        vec![
            build::tensor("x", float, &dims("batch 3")),
            build::tensor("ids", int64, &dims("batch sequence")),
            build::tensor("w", float, &dims("3 2")),
        ],
        vec![build::tensor("y", float, &dims("batch 2")), build::tensor("z", int64, &dims("batch sequence"))],
        vec![build::floats("w", &[3, 2], &[1.0; 6])],
    );
    save("net.onnx", net);
    let unnamed = build::model(
        vec![build::node("Relu", &["x"], "y")],
        vec![build::tensor("x", float, &dims("? 4"))],
        vec![build::tensor("y", float, &dims("? 4"))],
        vec![],
    );
    save("unnamed.onnx", unnamed);
    let sequence = TypeProto { sequence_type: Some(Sequence::default()), ..TypeProto::default() };
    let list = ValueInfoProto { name: Some("list".to_owned()), r#type: Some(sequence), ..ValueInfoProto::default() };
    let odd = build::model(
        vec![build::node("Odd", &["nibbles"], "list")],
        vec![build::tensor("nibbles", 22, &dims("4"))],
        vec![list],
        vec![],
    );
    save("odd.onnx", odd);
    std::fs::write(folder.path().join("text.onnx"), "no model").unwrap();
    npy(folder.path(), "x.npy", "<f4", "(4, 3)", 48);
    npy(folder.path(), "wide.npy", "<f4", "(4, 5)", 80);
    npy(folder.path(), "flat.npy", "<f4", "(12,)", 48);
    npy(folder.path(), "double.npy", "<f8", "(4, 3)", 96);
    folder
}

fn npy(folder: &Path, name: &str, descr: &str, shape: &str, bytes: usize) {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    let file = [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), &vec![0; bytes]].concat();
    std::fs::write(folder.join(name), file).unwrap();
}

fn load(folder: &Path, text: &str) -> Result<Matrix> {
    parse("b.yaml", &folder.join("b.yaml"), text.to_owned())
}

const GOOD: &str = "\
version: 1
name: graphs
models:
  - name: net
    kind: graph
    path: net.onnx
    precision: int8-qdq
    items: batch
    inputs:
      ids: {fill: random, high: 9}
  - name: tiny
    package: nowhere
backends:
  - {name: cpu, runtime: cpu, provider: cpu}
  - {name: ov, runtime: openvino, provider: openvino}
matrix:
  model: [net, tiny]
  backend: [cpu, ov]
  precision: [fp32, int4]
  threads: 2
  dimensions: [{batch: 1, sequence: 5}, {batch: 8, sequence: 5}]
  batch: [1, 4]
  prompt_tokens: 16
  generate_tokens: 8
exclude:
  - {backend: ov, dimensions: {batch: 8}, reason: too slow}
  - {batch: 4}
overrides:
  - when: {dimensions: {sequence: 5}}
    set: {categories: speed}
";

/// The file with graphs alone.
const ALONE: &str = "\
version: 1
name: graphs
models:
  - name: net
    kind: graph
    path: net.onnx
backends: [{name: cpu, runtime: cpu, provider: cpu}]
matrix:
  model: net
  backend: cpu
  threads: 2
  dimensions: {batch: 4, sequence: 2}
";

#[test]
fn one_matrix_holds_both_kinds() {
    let folder = folder();
    let matrix = load(folder.path(), GOOD).unwrap();
    let ids: Vec<_> = matrix.cells.iter().map(|cell| cell.id.0.as_str()).collect();
    insta::assert_snapshot!(ids.join("\n"));
    let excluded: Vec<_> = matrix.excluded.iter().map(|e| format!("{}: {}", e.id, e.reason)).collect();
    insta::assert_snapshot!(excluded.join("\n"));
    let net = &matrix.cells[0];
    assert_eq!((net.kind(), net.categories.as_slice()), (ModelKind::Graph, &[Category::Speed][..]));
    let plan = net.graph.as_ref().unwrap();
    assert_eq!((plan.precision.as_deref(), plan.items), (Some("int8-qdq"), Some(1)));
    let inputs: Vec<_> = plan.inputs.iter().map(|input| (input.name.as_str(), input.shape.as_slice())).collect();
    assert_eq!(inputs, [("x", &[1, 3][..]), ("ids", &[1, 5])], "the input with a constant is not fed");
    assert_eq!(plan.inputs[0].fill, Fill::Random { seed: 0, low: 0.0, high: 1.0 });
    assert_eq!(plan.inputs[1].fill, Fill::Random { seed: 0, low: 0.0, high: 9.0 });
    assert_eq!(plan.outputs[1].shape.as_deref(), Some(&[1, 5][..]));
    assert_eq!((plan.outputs[0].rtol, plan.outputs[1].rtol), (1e-3, 0.0), "whole numbers are exact");
    let tiny = matrix.cells.iter().find(|cell| cell.model.name == "tiny").unwrap();
    assert_eq!((tiny.kind(), tiny.categories.len()), (ModelKind::Package, 3));
}

#[test]
fn ids_of_packages_do_not_know_of_graphs() {
    let folder = folder();
    let ids = |text: &str| -> BTreeSet<String> {
        let cells = load(folder.path(), text).unwrap().cells;
        cells.into_iter().filter(|cell| cell.model.name == "tiny").map(|cell| cell.id.0).collect()
    };
    let without = GOOD
        .replace("model: [net, tiny]", "model: [tiny]")
        .replace("  - {backend: ov, dimensions: {batch: 8}, reason: too slow}\n", "")
        .replace("  dimensions: [{batch: 1, sequence: 5}, {batch: 8, sequence: 5}]\n", "");
    let without = &without[..without.find("overrides").unwrap()];
    assert_eq!(ids(GOOD), ids(without));
}

#[test]
fn fills_shapes_and_files() {
    let folder = folder();
    let with = |inputs: &str| ALONE.replace("path: net.onnx", &format!("path: net.onnx\n    inputs: {inputs}"));
    let fill = |inputs: &str| load(folder.path(), &with(inputs)).unwrap().cells[0].graph.clone().unwrap().inputs;
    assert_eq!(fill("{ids: {fill: 7}}")[1].fill, Fill::Constant(7.0));
    assert_eq!(fill("{ids: {fill: ones}}")[1].fill, Fill::Constant(1.0));
    assert_eq!(fill("{ids: {fill: range}}")[1].fill, Fill::Range);
    assert_eq!(fill("{x: {low: -2, high: 2, seed: 3}}")[0].fill, Fill::Random { seed: 3, low: -2.0, high: 2.0 });
    let path = folder.path().join("x.npy");
    assert_eq!(fill("{x: {fill: x.npy}}")[0].fill, Fill::File { path, array: None });
    assert_eq!(fill("{ids: {shape: [batch, 9]}}")[1].shape, [4, 9]);
    assert_eq!(fill("{w: {fill: 0.5}}").len(), 3, "an input with a constant is fed where it is named");
    assert_eq!(fill("{w: {fill: 0.5}}")[2].element, ElementType::Float32);
}

#[test]
fn mistakes_have_places_and_remedies() {
    let folder = folder();
    let inputs = |inputs: &str| ALONE.replace("path: net.onnx", &format!("path: net.onnx\n    inputs: {inputs}"));
    let outputs = |outputs: &str| ALONE.replace("path: net.onnx", &format!("path: net.onnx\n    outputs: {outputs}"));
    let cases = [
        ("missing file", ALONE.replace("net.onnx", "nat.onnx")),
        ("no model", ALONE.replace("net.onnx", "text.onnx")),
        ("a folder", ALONE.replace("net.onnx", ".")),
        ("no path", ALONE.replace("    path: net.onnx\n", "")),
        ("unknown kind", ALONE.replace("kind: graph", "kind: grapf")),
        ("a package's key", ALONE.replace("path: net.onnx", "path: net.onnx\n    flavour: fused")),
        ("a graph's key", ALONE.replace("    kind: graph\n", "")),
        ("types that are not run", ALONE.replace("net.onnx", "odd.onnx")),
        ("wrong name", inputs("{idds: {fill: ones}}")),
        ("unknown fill", inputs("{x: {fill: randm}}")),
        ("whole numbers without a bound", inputs("{ids: {fill: random}}")),
        ("a bound with a fraction", inputs("{ids: {fill: random, high: 2.5}}")),
        ("a bound without a draw", inputs("{ids: {fill: ones, high: 2}}")),
        ("nothing to draw from", inputs("{x: {low: 2, high: 2}}")),
        ("a constant of another type", inputs("{ids: {fill: 0.5}}")),
        ("a text for numbers", inputs("{ids: {text: hello}}")),
        ("a negative size", inputs("{ids: {shape: [batch, -1]}}")),
        ("another rank", inputs("{ids: {shape: [1, 2, 3]}}")),
        ("another fixed size", inputs("{x: {shape: [batch, 4]}}")),
        ("missing array", inputs("{x: {fill: nothing.npy}}")),
        ("no array", inputs("{x: {fill: text.npz}}")),
        ("another size in the file", inputs("{x: {fill: wide.npy}}")),
        ("another rank in the file", inputs("{x: {fill: flat.npy}}")),
        ("another type in the file", inputs("{x: {fill: double.npy}}")),
        ("a name of an array without an archive", inputs("{x: {fill: x.npy, array: x}}")),
        (
            "an unbound dimension",
            ALONE.replace("sequence: 2", "batch: 4").replace("{batch: 4, batch: 4}", "{batch: 4}"),
        ),
        (
            "a dimension without a name",
            ALONE.replace("net.onnx", "unnamed.onnx").replace("  dimensions: {batch: 4, sequence: 2}\n", ""),
        ),
        ("a dimension of no graph", ALONE.replace("sequence: 2", "sequense: 2")),
        ("a negative dimension", ALONE.replace("sequence: 2", "sequence: -2")),
        (
            "dimensions twice",
            ALONE.replace("{batch: 4, sequence: 2}", "[{batch: 4, sequence: 2}, {sequence: 2, batch: 4}]"),
        ),
        (
            "more than any memory",
            ALONE.replace("{batch: 4, sequence: 2}", "{batch: 1000000000000, sequence: 1000000000000}"),
        ),
        ("a rule of other dimensions", format!("{ALONE}exclude: [{{dimensions: {{batch: 9}}}}]\n")),
        ("axes of language models", ALONE.replace("threads: 2", "threads: 2\n  batch: 1\n  prompt_tokens: 5")),
        ("wrong output", outputs("{yy: {rtol: 0.1}}")),
        ("negative tolerance", outputs("{y: {rtol: -1}}")),
        ("expected of another shape", outputs("{y: {expected: x.npy}}")),
        ("expected of another type", outputs("{z: {expected: x.npy}}")),
        ("items of no dimension", ALONE.replace("path: net.onnx", "path: net.onnx\n    items: batsh")),
        ("accuracy without anything to compare", format!("{ALONE}categories: accuracy\n")),
    ];
    let root = folder.path().display().to_string();
    let text = |(name, text): &(&str, String)| {
        let error = load(folder.path(), text).expect_err(name).to_string();
        format!("## {name}\n{}\n", error.replace(&root, "FOLDER"))
    };
    insta::assert_snapshot!(cases.iter().map(text).collect::<Vec<_>>().join("\n"));
}

#[test]
fn graphs_have_references_of_their_own() {
    let folder = folder();
    let accuracy = "accuracy: {fidelity: {random_tokens: {}}, reference: {backend: cpu, precision: fp32}}\n";
    let text = GOOD.replace("    set: {categories: speed}", "    set: {categories: [speed, accuracy]}");
    let cells = load(folder.path(), &format!("{text}{accuracy}")).unwrap().cells;
    for cell in &cells {
        let plan = cell.accuracy.as_ref().expect("every cell has a reference");
        let reference = cells.iter().find(|other| Some(&other.id) == plan.reference.as_ref()).expect("in the matrix");
        assert_eq!((reference.backend.name.as_str(), &reference.model.name), ("cpu", &cell.model.name));
        assert_eq!(plan.fidelity.is_some(), cell.kind() == ModelKind::Package);
        if let (Some(ours), Some(theirs)) = (&cell.graph, &reference.graph) {
            assert_eq!(ours.dimensions, theirs.dimensions);
        }
    }
    // Expected outputs are enough, without a section of the file.
    npy(folder.path(), "y.npy", "<f4", "(4, 2)", 32);
    let text = ALONE.replace("path: net.onnx", "path: net.onnx\n    outputs: {y: {expected: y.npy}}");
    assert!(load(folder.path(), &text).unwrap().cells[0].categories.contains(&Category::Accuracy));
    assert!(!load(folder.path(), ALONE).unwrap().cells[0].categories.contains(&Category::Accuracy));
}
