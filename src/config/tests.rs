use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::cell::ProviderKind;

mod accuracy;
mod graphs;
mod optimizations;

const GOOD: &str = "\
version: 1
name: demo
models:
  - name: tiny
    package: packages/{model}/{precision}-{flavour}
  - name: foreign
    package: /data/foreign
    precision: int4
    flavour: fused
backends:
  - {name: cpu, runtime: cpu, provider: cpu}
  - name: ov
    runtime: openvino
    provider: openvino
    options: {device_type: CPU, num_of_threads: 2}
matrix:
  model: [tiny, foreign]
  backend: [cpu, ov]
  precision: [fp32, int4]
  flavour: fused
  threads: 2
  batch: [1, 4]
  prompt_tokens: 16
  generate_tokens: 8
exclude:
  - {backend: ov, batch: 4, reason: too slow}
include:
  - {model: tiny, backend: cpu, precision: fp32, batch: 16}
overrides:
  - when: {backend: ov}
    set: {repetitions: 3, categories: speed}
";

fn load_text(text: &str) -> Result<Matrix> {
    parse("b.yaml", Path::new("/work/b.yaml"), text.to_owned())
}

fn error(text: &str) -> String {
    load_text(text).expect_err("the file is wrong").to_string()
}

#[test]
fn a_good_file_expands() {
    let matrix = load_text(GOOD).unwrap();
    let ids: Vec<_> = matrix.cells.iter().map(|cell| cell.id.0.as_str()).collect();
    insta::assert_snapshot!(ids.join("\n"));
    let excluded: Vec<_> = matrix.excluded.iter().map(|e| format!("{}: {}", e.id, e.reason)).collect();
    insta::assert_snapshot!(excluded.join("\n"));
    let first = &matrix.cells[0];
    assert_eq!(first.model.package, Path::new("/work/packages/tiny/fp32-fused"));
    assert_eq!(first.measurement.repetitions, 5);
    let ov = matrix.cells.iter().find(|cell| cell.backend.name == "ov").unwrap();
    assert_eq!((ov.measurement.repetitions, ov.categories.len()), (3, 1));
    assert_eq!(ov.backend.options["num_of_threads"], "2");
}

#[test]
fn a_provider_may_be_a_library_of_its_own() {
    let text = GOOD.replace("provider: openvino", "provider: {plugin: lib/vendor.so, name: VendorExecutionProvider}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.yaml");
    std::fs::write(&file, text).unwrap();
    let matrix = load(&file).unwrap();
    let cell = matrix.cells.iter().find(|cell| cell.backend.name == "ov").unwrap();
    assert_eq!(cell.backend.provider, ProviderKind::Plugin);
    let plugin = cell.backend.plugin.clone().unwrap();
    assert_eq!(plugin.library, folder.path().join("lib/vendor.so"));
    assert_eq!(plugin.to_string(), "VendorExecutionProvider of vendor.so");
    assert_eq!(cell.backend.options["num_of_threads"], "2");
}

#[test]
fn images_are_an_axis_and_leave_the_ids_of_text_alone() {
    let ids = |text: &str| load_text(text).unwrap().cells.into_iter().map(|cell| cell.id).collect::<Vec<_>>();
    let text = GOOD.replace("batch: [1, 4]", "batch: [1, 4]\n  image: [none, 64x48]");
    let (without, with) = (ids(GOOD), ids(&text));
    assert!(without.iter().all(|id| with.contains(id)));
    assert_eq!(with.iter().filter(|id| id.0.contains("-b4-i64x48-p16-")).count(), 3);
    let cells = load_text(&text).unwrap().cells;
    let size = cells.iter().find_map(|cell| cell.workload.image).unwrap();
    assert_eq!((size.width, size.height), (64, 48));
}

#[test]
fn ids_do_not_depend_on_order_or_repetitions() {
    let ids = |text: &str| {
        let mut ids: Vec<_> = load_text(text).unwrap().cells.into_iter().map(|cell| cell.id).collect();
        ids.sort();
        ids
    };
    let other = GOOD
        .replace("[fp32, int4]", "[int4, fp32]")
        .replace("[cpu, ov]", "[ov, cpu]")
        .replace("repetitions: 3", "repetitions: 7")
        .replace("packages/", "elsewhere/");
    assert_eq!(ids(GOOD), ids(&other));
}

#[test]
fn mistakes_have_places_and_remedies() {
    let cases = [
        ("unknown key", GOOD.replace("batch: [1, 4]", "bacth: [1, 4]")),
        ("unknown key at the top", format!("{GOOD}nmae: x\n")),
        ("duplicate key", format!("{GOOD}name: x\n")),
        ("missing key", GOOD.replace("name: demo\n", "")),
        ("empty axis", GOOD.replace("precision: [fp32, int4]", "precision: []")),
        ("unknown precision", GOOD.replace("[fp32, int4]", "[fp32, int5]")),
        ("unknown backend in a rule", GOOD.replace("{backend: ov, batch", "{backend: ovino, batch")),
        ("number out of range", GOOD.replace("batch: [1, 4]", "batch: [0, 4]")),
        ("not a number", GOOD.replace("threads: 2", "threads: many")),
        ("no size of an image", GOOD.replace("batch: [1, 4]", "batch: [1, 4]\n  image: [none, 64*64]")),
        ("value twice", GOOD.replace("batch: [1, 4]", "batch: [4, 4]")),
        ("rule that matches nothing", GOOD.replace("batch: 4, reason", "batch: 4, prompt_tokens: 99, reason")),
        ("unsafe name", GOOD.replace("name: demo", "name: ../demo")),
        ("model twice", GOOD.replace("name: foreign", "name: tiny").replace("[tiny, foreign]", "[tiny]")),
        ("unknown placeholder", GOOD.replace("{precision}-", "{precison}-")),
        ("unknown runtime", GOOD.replace("runtime: openvino", "runtime: openvno")),
        ("unknown provider", GOOD.replace("provider: openvino", "provider: openvno")),
        ("plugin without its library", GOOD.replace("provider: openvino", "provider: plugin")),
        ("plugin without its name", GOOD.replace("provider: openvino", "provider: {plugin: x.so}")),
        ("plugin without a name", GOOD.replace("provider: openvino", "provider: {plugin: x.so, name: ''}")),
        ("version of the future", GOOD.replace("version: 1", "version: 9")),
        ("several at once", GOOD.replace("[fp32, int4]", "[fp33]").replace("batch: [1, 4]", "batch: -1")),
        ("broken YAML", GOOD.replace("matrix:", "matrix: [")),
        ("wrong type", GOOD.replace("exclude:\n  - {backend: ov, batch: 4, reason: too slow}", "exclude: all")),
        ("timeout of zero", GOOD.replace("repetitions: 3", "timeout_seconds: 0")),
        ("missing prompt file", format!("{GOOD}prompt: {{text_file: nothere.txt}}\n")),
        ("everything excluded", GOOD.replace("{backend: ov, batch: 4, reason: too slow}", "{precision: [fp32, int4]}")),
        ("empty", String::new()),
        ("a list", "- 1\n".to_owned()),
    ];
    let texts: Vec<_> = cases.iter().map(|(name, text)| format!("## {name}\n{}\n", error(text))).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn files_that_are_no_matrix() {
    let folder = tempfile::tempdir().unwrap();
    assert!(load(&folder.path().join("none.yaml")).unwrap_err().chain().contains("No such file"));
    assert!(load(folder.path()).is_err());
    let binary = folder.path().join("binary.yaml");
    fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    assert!(load(&binary).unwrap_err().chain().contains("UTF-8"));
}

#[test]
fn the_schema_names_what_the_reader_knows() {
    let schema = schema();
    let keys: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
    for key in &keys {
        // A key of the schema that the reader does not know would be an unknown key.
        let text = format!("{key}: 1\nzzz: 1\n");
        assert!(!error(&text).contains(&format!("unknown key `{key}`")), "{key}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = load_text(&text);
    }

    #[test]
    fn no_mutation_panics(at in 0..GOOD.len(), with in "[-:\\[\\]{}\"'#&*!|>%@` \n\ta-z0-9]{0,4}", cut in 0..12_usize) {
        let end = (at + cut).min(GOOD.len());
        let text = format!("{}{with}{}", &GOOD[..at], &GOOD[end..]);
        let _ = load_text(&text);
    }

    #[test]
    fn cells_are_the_product(batches in prop::collection::btree_set(1..100_u32, 1..5), prompts in prop::collection::btree_set(1..100_u32, 1..5)) {
        let list = |set: &std::collections::BTreeSet<u32>| format!("{:?}", set.iter().collect::<Vec<_>>());
        let text = format!(
            "version: 1\nname: x\nmodels: [{{name: m, package: p}}]\nbackends: [{{name: c, runtime: cpu, provider: cpu}}]\n\
             matrix: {{model: m, backend: c, precision: [fp32, int4], batch: {}, prompt_tokens: {}, generate_tokens: 4}}\n",
            list(&batches), list(&prompts)
        );
        let matrix = load_text(&text).unwrap();
        prop_assert_eq!(matrix.cells.len(), 2 * batches.len() * prompts.len());
        let ids: std::collections::BTreeSet<_> = matrix.cells.iter().map(|cell| &cell.id).collect();
        prop_assert_eq!(ids.len(), matrix.cells.len());
    }
}

#[test]
fn committed_files_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = fs::read_to_string(root.join("docs/benchmarks.schema.json")).unwrap();
    let current = serde_json::to_string_pretty(&schema()).unwrap();
    assert_eq!(committed.trim_end(), current, "run `ortbench schema > docs/benchmarks.schema.json`");
    assert_eq!(load(&root.join("benchmarks.yaml")).unwrap().cells.len(), 104);
    assert_eq!(load(&root.join("benchmarks-full-shape.yaml")).unwrap().cells.len(), 16);
    // Thirty cells on the processor, as many on CUDA, and ten on TensorRT.
    assert_eq!(load(&root.join("benchmarks-gpu.yaml")).unwrap().cells.len(), 70);
}

#[test]
fn patterns() {
    assert!(matches("tiny-int4-cpu-1a2b", "int4"));
    assert!(matches("tiny-int4-cpu-1a2b", "tiny*cpu"));
    assert!(!matches("tiny-int4-cpu-1a2b", "cpu*tiny"));
    assert!(matches("anything", ""));
    assert!(load_text(GOOD).unwrap().only("zzz").is_err());
}

#[test]
fn words_keep_their_spelling() {
    let text = GOOD
        .replace("{name: cpu, runtime", "{name: 1.20, runtime")
        .replace("backend: [cpu, ov]", "backend: [1.20, ov]")
        .replace("backend: cpu, precision", "backend: [1.20], precision")
        .replace("{device_type: CPU, num_of_threads: 2}", "{a: on, b: 1.50, c: 0x10, d: 7}");
    let matrix = load_text(&text).unwrap();
    assert!(matrix.cells.iter().any(|cell| cell.backend.name == "1.20"));
    let ov = matrix.cells.iter().find(|cell| cell.backend.name == "ov").unwrap();
    let options: Vec<_> = ov.backend.options.values().map(String::as_str).collect();
    assert_eq!(options, ["on", "1.50", "0x10", "7"]);
}

mod memory;
mod power;
