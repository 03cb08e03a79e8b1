//! The axes `residency`, `memory_budget` and `memory_limit`.

use std::fs;
use std::path::Path;

use super::{error, load_text};
use crate::cell::{MemoryPlan, Residency};
use crate::config::{Matrix, load};
use crate::loader;
use crate::package::{Package, shards};

/// A file with one model at this package and these lines among the axes.
fn text(package: &Path, axes: &str) -> String {
    format!(
        "version: 1\nname: x\nmodels: [{{name: m, package: '{}'}}]\n\
         backends: [{{name: c, runtime: cpu, provider: cpu}}]\n\
         matrix:\n  model: m\n  backend: c\n  precision: int4\n  threads: 2\n  batch: 1\n  prompt_tokens: 8\n  \
         generate_tokens: 4\n{axes}",
        package.display()
    )
}

fn pack() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(shards::FILE), "{}").unwrap();
    folder
}

fn plans(matrix: &Matrix) -> Vec<(Option<Residency>, Option<u64>, Option<u64>)> {
    let plan = |plan: MemoryPlan| (plan.residency, plan.budget_bytes, plan.limit_bytes);
    matrix.cells.iter().map(|cell| plan(cell.memory)).collect()
}

#[test]
fn amounts_and_residencies_become_a_plan() {
    let pack = pack();
    let axes = "  residency: [stream, experts]\n  memory_budget: [none, 1.5GiB]\n  memory_limit: [budget, 4GiB]\n";
    let matrix = load_text(&text(pack.path(), axes)).unwrap();
    let (some, four) = (Some(3 << 29), Some(4 << 30));
    let of = |residency| [(None, None), (None, four), (some, some), (some, four)].map(|(b, l)| (Some(residency), b, l));
    assert_eq!(plans(&matrix), [of(Residency::Stream), of(Residency::Experts)].concat());
    let ids: Vec<_> = matrix.cells.iter().map(|cell| cell.id.0.as_str()).collect();
    assert!(ids[0].starts_with("m-int4-fused-c-t2-stream-lbudget-b1-p8-g4-"), "{}", ids[0]);
    assert!(ids[7].starts_with("m-int4-fused-c-t2-experts-m1536MiB-l4GiB-b1-p8-g4-"), "{}", ids[7]);
}

#[test]
fn a_pack_is_resident_and_a_package_is_not_asked() {
    let (folder, pack) = (tempfile::tempdir().unwrap(), pack());
    assert_eq!(plans(&load_text(&text(pack.path(), "")).unwrap()), [(Some(Residency::Resident), None, None)]);
    assert_eq!(plans(&load_text(&text(folder.path(), "")).unwrap()), [(None, None, None)]);
    let limited = load_text(&text(folder.path(), "  memory_limit: 1GiB\n")).unwrap();
    assert_eq!(plans(&limited), [(None, None, Some(1 << 30))]);
}

#[test]
fn mistakes_stand_at_their_axis() {
    let (folder, pack) = (tempfile::tempdir().unwrap(), pack());
    let wrong = |folder: &Path, axes: &str| error(&text(folder, axes));
    let message = wrong(folder.path(), "  residency: [none, experts]\n");
    assert!(message.contains("b.yaml:13:14: the residency `experts` is for a pack"), "{message}");
    assert!(message.contains("`ortbench pack "), "{message}");
    let message = wrong(folder.path(), "  memory_budget: 1GiB\n");
    assert!(message.contains("b.yaml:13:18: a `memory_budget` is for a pack"), "{message}");
    let message = wrong(pack.path(), "  residency: expert\n");
    assert!(message.contains("unknown residency `expert`; did you mean `experts`"), "{message}");
    let message = wrong(pack.path(), "  memory_budget: [4GB, budget]\n");
    assert!(message.contains("`4GB` is no amount of memory: its unit is KiB"), "{message}");
    assert!(message.contains("`budget` is a value of `memory_limit`"), "{message}");
    let message = wrong(pack.path(), "  memory_limit: 50%\n");
    assert!(message.contains("`memory_limit` is `50%`; it is a size"), "{message}");
    let message = wrong(pack.path(), "  memory_budget: [1.5GiB, 1536MiB]\n");
    assert!(message.contains("`1536MiB` stands twice"), "{message}");
    let message = wrong(pack.path(), "  residency: stream\n  memory_budget: 50%\n");
    assert!(message.contains("`50%` is a share of the weights of"), "{message}");
}

#[test]
fn a_share_is_of_the_packs_weights() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/packages/qwen3-tiny/int4-fused");
    if !package.is_dir() {
        eprintln!("skipped: `{}` is not there", package.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = loader::pack::Options { threshold: 4096, ..loader::pack::Options::default() };
    let pack = folder.path().join("pack");
    let package = Package::open(&package).unwrap();
    let summary = loader::pack::pack(&package, &pack, &options, &loader::pack::Quiet).unwrap();
    let records: u64 = summary.index.records.iter().map(|record| record.stored).sum();
    let beside = fs::metadata(pack.join("model.onnx.data")).unwrap().len();
    let weights = Package::open(&pack).unwrap().weights_bytes().unwrap();
    assert!(records > 100_000 && weights == records + beside, "{weights} of {records} and {beside}");
    let axes = "  residency: stream\n  memory_budget: 50%\n  memory_limit: budget\n";
    let matrix = load_text(&text(&pack, axes)).unwrap();
    assert_eq!(plans(&matrix), [(Some(Residency::Stream), Some(weights / 2), Some(weights / 2))]);
    assert!(matrix.cells[0].id.0.contains("-m50pc-lbudget-"), "{}", matrix.cells[0].id);
}

#[test]
fn ids_and_cells_of_files_without_these_axes_are_what_they_were() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["benchmarks.yaml", "benchmarks-full-shape.yaml"] {
        let matrix = load(&root.join(name)).unwrap();
        assert!(matrix.cells.iter().all(|cell| !serde_json::to_string(cell).unwrap().contains("\"memory\":{")));
        // Cells that compare optimizations are younger.
        let older =
            matrix.cells.iter().filter(|cell| !cell.categories.contains(&crate::cell::Category::OptimizationImpact));
        let ids: Vec<_> = older.map(|cell| cell.id.0.as_str()).collect();
        // The digest of the ids as they were before the axes of memory.
        let expected = match name {
            "benchmarks.yaml" => "be8853a6ff59f9bf",
            _ => "58f85cdce6e38a0f",
        };
        assert_eq!(crate::digest::sha256(ids.join("\n"))[..16], *expected, "{name}");
    }
}

#[test]
fn pipeline_axes_become_a_plan_and_a_name() {
    let pack = pack();
    let axes = "  residency: experts\n  micro_batch: [none, 1]\n  offload: [none, disk]\n  guess: [0, 2]\n";
    let matrix = load_text(&text(pack.path(), axes)).unwrap();
    let plan = |cell: &crate::cell::Cell| (cell.memory.micro_batch, cell.memory.offload, cell.memory.guess);
    let plans: Vec<_> = matrix.cells.iter().map(plan).collect();
    let of = |size| [(size, false, 0), (size, false, 2), (size, true, 0), (size, true, 2)];
    assert_eq!(plans, [of(None), of(Some(1))].concat());
    let ids: Vec<_> = matrix.cells.iter().map(|cell| cell.id.0.as_str()).collect();
    assert!(ids[0].starts_with("m-int4-fused-c-t2-experts-b1-"), "{}", ids[0]);
    assert!(ids[7].starts_with("m-int4-fused-c-t2-experts-mb1-guess2-disk-b1-"), "{}", ids[7]);
    // What is the default is not written, so that cells of older files are what they were.
    assert_eq!(serde_json::to_string(&matrix.cells[0].memory).unwrap(), r#"{"residency":"experts"}"#);
    assert_eq!(matrix.cells[0].id, load_text(&text(pack.path(), "  residency: experts\n")).unwrap().cells[0].id);
}

#[test]
fn conflicts_of_pipeline_axes_are_named() {
    let (folder, pack) = (tempfile::tempdir().unwrap(), pack());
    let wrong = |folder: &Path, axes: &str| error(&text(folder, axes));
    let message = wrong(folder.path(), "  micro_batch: 1\n");
    assert!(message.contains("b.yaml:13:16: the `micro_batch` 1 is for a pack"), "{message}");
    let message = wrong(folder.path(), "  offload: disk\n");
    assert!(message.contains("b.yaml:13:12: `offload: disk` is for a pack"), "{message}");
    let message = wrong(pack.path(), "  micro_batch: [none, 4]\n");
    assert!(message.contains("the `micro_batch` 4 is larger than the `batch` 1"), "{message}");
    let message = wrong(pack.path(), "  residency: [stream, experts]\n  guess: 2\n");
    assert!(message.contains("the `guess` 2 is for the residency `experts`, and a cell has `stream`"), "{message}");
    let message = wrong(pack.path(), "  guess: 1\n");
    assert!(message.contains("and a cell has `none`"), "{message}");
    let message = wrong(pack.path(), "  micro_batch: 0\n  guess: many\n  offload: memory\n");
    assert!(message.contains("`micro_batch` is `0`; it is `none` or a whole number from 1"), "{message}");
    assert!(message.contains("`guess` is `many`; it is `0` or a whole number from 1"), "{message}");
    assert!(message.contains("unknown offload `memory`"), "{message}");
}

#[test]
fn caches_wait_where_the_file_says() {
    let pack = pack();
    let axes = format!("  offload: [none, disk]\noffload_dir: '{}'\n", pack.path().display());
    let cells = load_text(&text(pack.path(), &axes)).unwrap().cells;
    let folders: Vec<_> = cells.iter().map(|cell| cell.offload_dir.as_deref()).collect();
    assert_eq!(folders, [None, Some(pack.path())]);
    let message = error(&text(pack.path(), "  offload: disk\noffload_dir: nowhere\n"));
    assert!(message.contains("nowhere` is no folder"), "{message}");
}
