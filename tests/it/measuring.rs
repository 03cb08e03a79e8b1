//! A real matrix on the trained miniature: every category on both runtimes, and what its tables say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ortbench::engine::fake;
use ortbench::metrics;
use ortbench::results::columns;

use crate::real::{fails, ortbench, package, root};

fn matrix(folder: &Path, rest: &str) -> String {
    let text = format!(
        "version: 1\nname: it\nmodels: [{{name: qwen3-tiny, package: '{}/models/packages/qwen3-tiny/{{precision}}-{{flavour}}'}}]\n\
         backends:\n  - {{name: cpu, runtime: cpu, provider: cpu}}\n  - {{name: openvino, runtime: openvino, provider: openvino}}\n{rest}",
        root().display()
    );
    let path = folder.join("matrix.yaml");
    fs::write(&path, text).expect("the matrix is written");
    path.to_str().expect("UTF-8").to_owned()
}

/// Rows of a CSV file as name → field.
pub fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(path).expect("a table");
    reader.deserialize().map(|row| row.expect("a row")).collect()
}

pub fn only_run(results: &Path) -> std::path::PathBuf {
    let mut folders = fs::read_dir(results).expect("results").map(|entry| entry.expect("an entry").path());
    let folder = folders.next().expect("a run");
    assert!(folders.next().is_none(), "one run was started");
    folder
}

#[test]
fn both_providers_are_measured_in_every_category() {
    let folder = tempfile::tempdir().expect("a folder");
    package("fp32-fused");
    let file = matrix(
        folder.path(),
        "matrix: {model: qwen3-tiny, backend: [cpu, openvino], precision: [fp32, int4], flavour: plain, threads: 2, \
         batch: 2, prompt_tokens: 48, generate_tokens: 16}\nmeasurement: {profile: quick}\n",
    );
    let results = folder.path().join("results");
    let output = ortbench(&["run", &file, "--results", results.to_str().expect("UTF-8"), "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = only_run(&results);
    let rows = rows(&run.join("summary.csv"));
    assert_eq!(rows.len(), 4);
    for row in &rows {
        assert_eq!(row["status"], "measured", "{}: {}", row["cell_id"], row["reason"]);
        let medians = columns::all().iter().filter(|column| column.group == columns::Group::Medians);
        for (series, name) in metrics::SERIES.iter().zip(medians.map(|column| &column.name)) {
            let value = &row[name];
            let of_images = name.contains("vision") || name.contains("image");
            let of_graphs = metrics::is_empty_for(series.name, &fake::cell("qwen3-tiny", "cpu")) && !of_images;
            assert_eq!(value.is_empty(), of_images || of_graphs, "{}: `{name}` is `{value}`", row["cell_id"]);
        }
        let number = |name: &str| row[name].parse::<f64>().unwrap_or_else(|_| panic!("`{name}` is `{}`", row[name]));
        assert!(number("ttft_median_seconds") > number("tpot_median_seconds") / 10.0);
        assert!(number("peak_rss_median_bytes") > number("package_bytes"));
        assert!(number("decode_mbu_ratio") > 0.0);
        assert_eq!(row["profile"], "quick");
        assert_eq!(row["fallback_nodes"], "0", "{}", row["node_placement"]);
        // Growing buffers: both halves exist on both providers, since the graph is plain.
        assert_eq!(number("cache_computed_bytes"), 2.0 * 2.0 * 64.0 * number("cache_bytes_per_token"));
        let ratio = number("cache_measured_median_bytes") / number("cache_computed_bytes");
        assert!((0.8..1.2).contains(&ratio), "the cache measured is {ratio} of the cache computed");
    }
    // The same precision gives the same answers on both providers.
    let hash = |backend: &str| {
        rows.iter().find(|row| row["backend"] == backend && row["precision"] == "fp32").expect("a row")["output_tokens_hash"].clone()
    };
    assert_eq!(hash("cpu"), hash("openvino"));
    let compared = ortbench(&["compare", run.to_str().expect("UTF-8")]);
    let table = String::from_utf8_lossy(&compared.stdout).into_owned();
    assert!(table.contains("decode, tokens/s") && table.contains("openvino"), "{table}");
}

#[test]
fn prompts_with_images_are_measured_in_every_category() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = matrix(
        folder.path(),
        "matrix: {model: qwen3-tiny, backend: cpu, precision: fp32, flavour: [fused, plain], threads: 2, batch: [1, 2], \
         image: [none, 128x96, 448x448], prompt_tokens: 64, generate_tokens: 4}\nmeasurement: {profile: quick}\n\
         exclude: [{batch: 2, image: [none, 448x448]}, {flavour: plain, image: [none, 448x448]}]\n",
    );
    let with_images = fs::read_to_string(&text).expect("a matrix").replace("qwen3-tiny", "qwen3-vl-tiny");
    fs::write(&text, with_images).expect("a matrix");
    let results = folder.path().join("results");
    let output = ortbench(&["run", &text, "--results", results.to_str().expect("UTF-8"), "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for row in rows(&only_run(&results).join("summary.csv")) {
        assert_eq!(row["status"], "measured", "{}: {}", row["cell_id"], row["reason"]);
        let number = |name: &str| row[name].parse::<f64>().ok();
        for name in ["image_preparation_median_seconds", "vision_median_seconds", "vision_peak_anonymous_median_bytes"]
        {
            assert_eq!(number(name).is_some(), !row["image"].is_empty(), "{}: `{name}`", row["cell_id"]);
        }
        if let (Some(vision), Some(ttft)) = (number("vision_median_seconds"), number("ttft_median_seconds")) {
            assert!(vision < ttft, "{}: the tower is part of the time to the first token", row["cell_id"]);
        }
    }
    // A model of text, and an image with more tokens than the prompt.
    let short = fs::read_to_string(&text).expect("a matrix").replace("prompt_tokens: 64", "prompt_tokens: 16");
    let refused = short
        .replace("models: [", &format!("models: [{{name: text, package: '{}'}}, ", package("fp32-fused").display()));
    fs::write(&text, refused.replace("model: qwen3-vl-tiny", "model: [qwen3-vl-tiny, text]")).expect("a matrix");
    let plan = ortbench(&["plan", &text]);
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains("an image of 448x448 takes") && plan.contains("takes no images"), "{plan}");
}

#[test]
fn what_cannot_run_is_a_row_with_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = matrix(
        folder.path(),
        "  - {name: cuda, runtime: cpu, provider: cuda}\n\
         matrix: {model: qwen3-tiny, backend: [cpu, cuda], precision: fp32, batch: 1, prompt_tokens: [16, 5000], generate_tokens: 4}\n\
         categories: speed\nmeasurement: {profile: quick}\n",
    );
    let results = folder.path().join("results");
    let output = ortbench(&["run", &file, "--results", results.to_str().expect("UTF-8"), "--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&only_run(&results).join("summary.csv"));
    let of = |backend: &str, prompt: &str| {
        rows.iter().find(|row| row["backend"] == backend && row["prompt_tokens"] == prompt).expect("a row")
    };
    let allowed = ["run", &file, "--results", results.to_str().expect("UTF-8"), "--quiet", "--allow-unsupported"];
    assert!(ortbench(&allowed).status.success(), "unsupported cells are allowed");
    assert_eq!(of("cpu", "16")["status"], "measured");
    assert_eq!(of("cpu", "5000")["status"], "unsupported");
    assert!(of("cpu", "5000")["reason"].contains("context"));
    assert_eq!(of("cuda", "16")["status"], "unsupported");
    assert!(of("cuda", "16")["reason"].contains("built without CUDAExecutionProvider"));
    assert!(of("cuda", "16")["hint"].contains("cuDNN 9"));
    assert!(of("cuda", "16")["ttft_median_seconds"].is_empty());
}

#[test]
fn strict_placement_refuses_a_fallback() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = matrix(
        folder.path(),
        "matrix: {model: qwen3-tiny, backend: openvino, precision: fp32, flavour: [fused, plain], batch: 1, prompt_tokens: 16, generate_tokens: 4}\n\
         categories: speed\nmeasurement: {profile: quick}\nstrict_placement: true\n",
    );
    let results = folder.path().join("results");
    let output = ortbench(&["run", &file, "--results", results.to_str().expect("UTF-8"), "--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&only_run(&results).join("summary.csv"));
    assert_eq!(rows[0]["status"], "unsupported");
    assert!(rows[0]["reason"].contains("GroupQueryAttention"), "{}", rows[0]["reason"]);
    assert_eq!(rows[1]["status"], "measured");
}

#[test]
fn plan_shows_cells_memory_and_reasons() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = matrix(
        folder.path(),
        "matrix: {model: qwen3-tiny, backend: cpu, precision: [fp32, int4], batch: [1, 4], threads: 2, prompt_tokens: 16, generate_tokens: 4}\n\
         exclude: [{precision: int4, batch: 4, reason: not today}]\n",
    );
    let output = ortbench(&["plan", &file]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success());
    assert!(text.contains("qwen3-tiny-fp32-fused-cpu-t2-b1-p16-g4-"), "{text}");
    assert!(text.contains("not today"), "{text}");
    assert!(text.contains("3 cells to run in 15 processes"), "{text}");
    let (code, error) = fails(&["plan", folder.path().join("none.yaml").to_str().expect("UTF-8")]);
    assert_eq!(code, 2);
    assert!(error.contains("none.yaml") && error.contains("hint:"), "{error}");
}

#[test]
fn doctor_and_runtimes_answer() {
    let output = ortbench(&["doctor", "--json"]);
    assert!(output.status.success());
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let cpu = findings.as_array().expect("a list").iter().find(|f| f["topic"] == "runtime").expect("a runtime");
    assert_eq!(cpu["ok"], true, "{cpu}");
    let list = ortbench(&["runtime", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
    assert!(list[0]["library"].as_str().expect("a path").contains("libonnxruntime"));
    let (code, error) = fails(&["runtime", "install", "rocm"]);
    assert_eq!(code, 2);
    assert!(error.contains("known are cpu, openvino, cuda"), "{error}");
}
