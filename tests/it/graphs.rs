//! Any ONNX file through the real program: small graphs made here, on real libraries.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ortbench::cell::ElementType;
use ortbench::package::onnx::{build, data_type, write};

use crate::measuring::{only_run, rows};
use crate::real::{fails, ortbench};

type Row = BTreeMap<String, String>;

fn save(folder: &Path, name: &str, model: ortbench::package::onnx::ModelProto) {
    fs::write(folder.join(name), write(&model)).expect("a graph");
}

/// `y = relu(x · w)` on rows of three.
fn net(folder: &Path, name: &str, weight: f32) {
    let nodes = vec![build::node("MatMul", &["x", "w"], "product"), build::node("Relu", &["product"], "y")];
    let value = |name: &str, dims: &str| build::tensor(name, data_type::FLOAT, &build::dims(dims));
    let weights: Vec<f32> = (0..6).map(|place| weight * (place as f32 - 2.5)).collect();
    let weights = vec![build::floats("w", &[3, 2], &weights)];
    save(folder, name, build::model(nodes, vec![value("x", "batch 3")], vec![value("y", "batch 2")], weights));
}

/// Runs a matrix of graphs; returns its folder, how the program ended, and what it printed.
fn run(folder: &Path, models: &str, rest: &str) -> (PathBuf, Option<i32>, String) {
    let text = format!(
        "version: 1\nname: graphs\nmodels:\n{models}backends:\n  - {{name: cpu, runtime: cpu, provider: cpu}}\n  \
         - {{name: openvino, runtime: openvino, provider: openvino}}\n{rest}measurement: {{profile: quick}}\n"
    );
    let (file, results) = (folder.join("matrix.yaml"), folder.join("results"));
    fs::write(&file, text).expect("a matrix");
    let _ = fs::remove_dir_all(&results);
    let (file, path) = (file.to_str().expect("UTF-8"), results.to_str().expect("UTF-8"));
    let output = ortbench(&["run", file, "--results", path, "--quiet"]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("panicked"), "{text}");
    (only_run(&results), output.status.code(), text)
}

fn number(row: &Row, name: &str) -> f64 {
    row[name].parse().unwrap_or_else(|_| panic!("{}: `{name}` is `{}`", row["cell_id"], row[name]))
}

#[test]
fn a_graph_is_measured_in_every_category() {
    let folder = tempfile::tempdir().expect("a folder");
    net(folder.path(), "net.onnx", 1.0);
    let models = "  - {name: net, kind: graph, path: net.onnx, precision: fp32, items: batch}\n";
    let rest = "matrix: {model: net, backend: [cpu, openvino], threads: 2, dimensions: [{batch: 1}, {batch: 8}]}\n\
                accuracy: {reference: {backend: cpu}}\n";
    let (run, code, text) = run(folder.path(), models, rest);
    assert_eq!(code, Some(0), "{text}");
    let rows = rows(&run.join("summary.csv"));
    assert_eq!(rows.len(), 4);
    for row in &rows {
        assert_eq!(row["status"], "measured", "{}: {}", row["cell_id"], row["reason"]);
        assert_eq!((row["kind"].as_str(), row["package"].as_str()), ("graph", "net.onnx"));
        assert_eq!(row["dimensions"], format!("batch={}", row["batch"]));
        let rate = number(row, "items_median_per_second") / number(row, "runs_median_per_second");
        assert!((rate - number(row, "batch")).abs() < 1e-6 * rate);
        assert!(number(row, "latency_median_seconds") < number(row, "load_median_seconds"));
        let timing = number(row, "smallest_timing_seconds");
        assert!(timing >= 100.0 * number(row, "clock_resolution_seconds"));
        assert_eq!((row["graph_nodes"].as_str(), row["parameters_total"].as_str()), ("2", "6"));
        assert!(number(row, "steady_anonymous_median_bytes") > 0.0);
        assert!(row["ttft_median_seconds"].is_empty() && row["decode_bytes_per_step"].is_empty());
    }
    let of = |backend: &str, batch: &str| {
        rows.iter().find(|row| row["backend"] == backend && row["batch"] == batch).expect("a row")
    };
    assert_eq!(of("cpu", "8")["inputs_hash"], of("openvino", "8")["inputs_hash"]);
    assert_ne!(of("cpu", "8")["inputs_hash"], of("cpu", "1")["inputs_hash"]);
    assert_eq!(of("cpu", "8")["accuracy_gate"], "", "a reference is not judged");
    assert_eq!(of("openvino", "8")["accuracy_gate"], "pass");
    assert_eq!(of("openvino", "8")["output_elements"], "16");
    assert_eq!(of("openvino", "8")["reference_cell"], of("cpu", "8")["cell_id"]);
    assert!(text.contains("net · fp32 · batch=8 · 2 threads") && text.contains("latency of a run"), "{text}");
    // A block of timings is a repetition.
    let mut samples = csv::Reader::from_path(run.join("samples.csv")).expect("samples");
    let samples: Vec<Row> = samples.deserialize().map(|row| row.expect("a row")).collect();
    let latencies = |row: &Row| {
        samples.iter().filter(|s| s["cell_id"] == row["cell_id"] && s["metric"] == "latency_seconds").count()
    };
    assert!(rows.iter().all(|row| latencies(row) as f64 == number(row, "latency_seconds_samples")));
    // Nothing is left to do, and what was done stays.
    let again = ortbench(&["run", "--resume", run.to_str().expect("UTF-8"), "--quiet"]);
    assert!(again.status.success());
}

#[test]
fn a_model_that_answers_otherwise_fails_and_says_where() {
    let folder = tempfile::tempdir().expect("a folder");
    net(folder.path(), "a.onnx", 1.0);
    net(folder.path(), "b.onnx", 1.5);
    let models = "  - {name: a, kind: graph, path: a.onnx, inputs: {x: {fill: ones}}}\n  \
                  - {name: b, kind: graph, path: b.onnx, inputs: {x: {fill: ones}}}\n";
    let rest = "matrix: {model: [a, b], backend: cpu, threads: 1, dimensions: {batch: 2}}\ncategories: accuracy\n\
                accuracy: {reference: {model: a}}\n";
    let (run, _, text) = run(folder.path(), models, rest);
    let rows = rows(&run.join("summary.csv"));
    assert_eq!((rows[0]["accuracy_gate"].as_str(), rows[1]["accuracy_gate"].as_str()), ("", "fail"), "{text}");
    // The sums of the columns are −1.5 and 1.5, of which a rectifier leaves the second.
    assert_eq!(rows[1]["worst_element"], "[0, 1] is 2.250000 and should be 1.500000");
    assert_eq!((rows[1]["output_mismatches"].as_str(), rows[1]["worst_output"].as_str()), ("2", "y"));
    assert_eq!(number(&rows[1], "output_max_relative_difference"), 0.5);
    assert!(number(&rows[1], "output_min_cosine") > 0.999_999);
    assert!(text.contains("cpu (FAILS accuracy)") && text.contains("FAILS accuracy: 2 of 4 elements"), "{text}");
}

#[test]
fn shapes_that_the_run_decides_and_texts_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let value = |name: &str, kind: i32, dims: &str| build::tensor(name, kind, &build::dims(dims));
    // Another number of elements in every run.
    let nodes = vec![
        build::node("RandomUniformLike", &["x"], "drawn"),
        build::node("Greater", &["drawn", "x"], "above"),
        build::node("NonZero", &["above"], "places"),
    ];
    let inputs = vec![value("x", data_type::FLOAT, "n")];
    let places = vec![value("places", data_type::INT64, "1 count")];
    save(folder.path(), "drawn.onnx", build::model(nodes, inputs, places, vec![]));
    let nodes = vec![build::node("StringConcat", &["a", "b"], "c")];
    let texts = |name: &str| value(name, 8, "n");
    save(folder.path(), "texts.onnx", build::model(nodes, vec![texts("a"), texts("b")], vec![texts("c")], vec![]));
    npy_texts(&folder.path().join("a.npy"), &["ab", "c", ""]);
    npy_texts(&folder.path().join("c.npy"), &["ab!", "c!", "?"]);
    let models = "  - {name: drawn, kind: graph, path: drawn.onnx}\n  \
                  - {name: texts, kind: graph, path: texts.onnx, inputs: {a: {fill: a.npy}, b: {text: '!', shape: [3]}}, \
                  outputs: {c: {expected: c.npy}}}\n";
    let rest = "matrix: {model: [drawn, texts], backend: cpu, threads: 1, dimensions: {n: 64}}\n\
                overrides: [{when: {model: drawn}, set: {categories: [speed, memory]}}]\n";
    let (run, _, text) = run(folder.path(), models, rest);
    let rows = rows(&run.join("summary.csv"));
    assert!(rows.iter().all(|row| row["status"] == "measured"), "{text}");
    assert_eq!(rows[0]["dimensions"], "n=64");
    assert_eq!(rows[1]["dimensions"], "", "the files give every size");
    assert_eq!(rows[1]["worst_element"], "[2] is \"!\" and should be \"?\"");
}

#[test]
fn an_output_of_another_shape_than_its_graph_says_is_made_anew_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let value = |name: &str, kind: i32, dims: &str| build::tensor(name, kind, &build::dims(dims));
    let nodes = vec![build::node("NonZero", &["x"], "places")];
    let (x, places) = (value("x", data_type::FLOAT, "n"), value("places", data_type::INT64, "1 3"));
    save(folder.path(), "wrong.onnx", build::model(nodes, vec![x], vec![places], vec![]));
    let models = "  - {name: wrong, kind: graph, path: wrong.onnx, inputs: {x: {fill: ones}}}\n";
    let rest = "matrix: {model: wrong, backend: cpu, threads: 1, dimensions: {n: 5}}\ncategories: speed\n";
    let (run, code, text) = run(folder.path(), models, rest);
    assert_eq!(code, Some(0), "{text}");
    assert!(number(&rows(&run.join("summary.csv"))[0], "latency_median_seconds") > 0.0);
}

/// A file of NumPy's strings of three letters.
fn npy_texts(path: &Path, texts: &[&str]) {
    let header = format!("{{'descr': '<U3', 'fortran_order': False, 'shape': ({},), }}\n", texts.len());
    let length = u16::try_from(header.len()).expect("short").to_le_bytes();
    let mut file = [b"\x93NUMPY\x01\0", &length[..], header.as_bytes()].concat();
    for text in texts {
        let letters = text.chars().chain(std::iter::repeat('\0')).take(3);
        file.extend(letters.flat_map(|letter| u32::from(letter).to_le_bytes()));
    }
    fs::write(path, file).expect("an array");
}

#[test]
fn every_type_goes_in_and_comes_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut nodes, mut inputs, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    let mut fills = Vec::new();
    for element in ElementType::ALL {
        let name = element.name();
        nodes.push(build::node("Identity", &[name], &format!("{name}_out")));
        inputs.push(build::tensor(name, element.onnx(), &build::dims("2 3")));
        outputs.push(build::tensor(&format!("{name}_out"), element.onnx(), &build::dims("2 3")));
        fills.push(match element {
            ElementType::String => format!("{name}: {{text: word}}"),
            ElementType::Bool => format!("{name}: {{fill: random}}"),
            element if element.is_float() => format!("{name}: {{fill: range}}"),
            _ => format!("{name}: {{fill: random, low: 1, high: 99}}"),
        });
    }
    save(folder.path(), "types.onnx", build::model(nodes, inputs, outputs, vec![]));
    let models = format!("  - {{name: types, kind: graph, path: types.onnx, inputs: {{{}}}}}\n", fills.join(", "));
    let rest = "matrix: {model: types, backend: cpu, threads: [1, 2]}\ncategories: [speed, accuracy]\n\
                accuracy: {reference: {threads: 1}}\n";
    let (run, code, text) = run(folder.path(), &models, rest);
    assert_eq!(code, Some(0), "{text}");
    let rows = rows(&run.join("summary.csv"));
    assert_eq!(rows[1]["accuracy_gate"], "pass", "{text}");
    assert_eq!(number(&rows[1], "outputs_compared"), ElementType::ALL.len() as f64);
}

#[test]
fn what_does_not_fit_is_said_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    net(folder.path(), "net.onnx", 1.0);
    let matrix = |dimensions: &str| {
        let file = folder.path().join("matrix.yaml");
        let text = format!(
            "version: 1\nname: graphs\nmodels: [{{name: net, kind: graph, path: net.onnx}}]\n\
             backends: [{{name: cpu, runtime: cpu, provider: cpu}}]\n\
             matrix: {{model: net, backend: cpu, threads: 1{dimensions}}}\n"
        );
        fs::write(&file, text).expect("a matrix");
        file.to_str().expect("UTF-8").to_owned()
    };
    let (code, error) = fails(&["plan", &matrix("")]);
    assert_eq!(code, 2);
    assert!(error.contains("the free dimension `batch` of the input `x` has no size"), "{error}");
    let plan = ortbench(&["plan", &matrix(", dimensions: [{batch: 4}, {batch: 100000000000}]")]);
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains("net-cpu-t1-batch4-") && plan.contains("out_of_memory"), "{plan}");
    assert!(plan.contains("inputs and outputs") && plan.contains("smaller shapes"), "{plan}");
}

#[test]
fn a_profile_is_a_table_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    net(folder.path(), "net.onnx", 1.0);
    let models = "  - {name: net, kind: graph, path: net.onnx}\n";
    let rest = "matrix: {model: net, backend: [cpu, openvino], threads: 1, dimensions: {batch: 64}}\n\
                categories: operators\n";
    let (run, code, text) = run(folder.path(), models, rest);
    assert_eq!(code, Some(0), "{text}");
    let (cells, nodes) = (rows(&run.join("summary.csv")), rows(&run.join("operators.csv")));
    for cell in &cells {
        assert_eq!(cell["profiled_runs"], "10", "{}", cell["reason"]);
        let of_cell: Vec<_> = nodes.iter().filter(|node| node["cell_id"] == cell["cell_id"]).collect();
        assert!(!of_cell.is_empty() && of_cell.iter().all(|node| node["dimensions"] == "batch=64"));
        assert!(of_cell.iter().enumerate().all(|(place, node)| node["rank"] == (place + 1).to_string()));
        let shares: f64 = of_cell.iter().map(|node| number(node, "share")).sum();
        // Kernels of less than a microsecond take none, by ONNX Runtime's account.
        assert!(shares == 0.0 || (shares - 1.0).abs() < 1e-9, "{shares}");
    }
    let on_cpu: Vec<_> = nodes.iter().filter(|node| node["backend"] == "cpu").collect();
    assert!(on_cpu.iter().all(|node| node["provider"] == "CPUExecutionProvider" && node["calls"] == "10"));
    assert!(on_cpu.iter().any(|node| node["operator"].contains("MatMul") || node["operator"].contains("Gemm")));
}
