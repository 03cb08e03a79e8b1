//! Optimizations as a whole: a real matrix on trained miniatures that switches each of them on, what its tables say, and
//! what is refused before anything runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ortbench::cell::{Category, Cell, OptimizationPlan, Status, Switched, Technique};
use ortbench::engine::fake;

use crate::measuring::{only_run, rows};
use crate::real::{fails, ortbench, package_of, root};
use crate::support;

fn matrix(folder: &Path, model: &str, rest: &str) -> String {
    let text = format!(
        "version: 1\nname: it\nderived_dir: derived\n\
         models: [{{name: {model}, package: '{}/models/packages/{{model}}/{{precision}}-{{flavour}}'}}]\n\
         backends:\n  - {{name: cpu, runtime: cpu, provider: cpu}}\n  - {{name: openvino, runtime: openvino, provider: openvino}}\n\
         categories: [optimization_impact]\n{rest}",
        root().display()
    );
    let path = folder.join("matrix.yaml");
    fs::write(&path, text).expect("the matrix is written");
    path.to_str().expect("UTF-8").to_owned()
}

fn axes(optimizations: &str, more: &str) -> String {
    let (batch, more) = if more == "batch: 1" { (1, "") } else { (4, more) };
    format!(
        "matrix:\n  model: [M]\n  backend: cpu\n  precision: int4\n  threads: 2\n  batch: {batch}\n  prompt_tokens: 24\n  generate_tokens: 6\n  \
         optimizations: {optimizations}\n{more}"
    )
}

/// A row of a table, by column.
type Row = BTreeMap<String, String>;

/// Runs a matrix of one model; rows of its summary by what they switch on, and those of its impact.csv.
fn run(model: &str, optimizations: &str, more: &str) -> (BTreeMap<String, Row>, Vec<Row>) {
    let folder = tempfile::tempdir().expect("a folder");
    package_of(model, "int4-fused");
    let rest = axes(optimizations, more).replace("[M]", &format!("[{model}]"));
    let file = matrix(folder.path(), model, &rest);
    let results = folder.path().join("results");
    let output = ortbench(&["run", &file, "--results", results.to_str().unwrap(), "--allow-unsupported", "--quiet"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let run = only_run(&results);
    let summary = rows(&run.join("summary.csv")).into_iter().map(|row| (row["optimizations"].clone(), row)).collect();
    (summary, rows(&run.join("impact.csv")))
}

const QUICK: &str = "measurement: {profile: quick, processes: 1, warmup: 0, repetitions: 1, min_seconds: 0}\n";

/// What each technique leaves as evidence, and whether its answers are the baseline's to the bit.
const EVIDENCE: &[(Technique, &[&str], bool)] = &[
    (Technique::SmartPaging, &["paging_read_bytes_per_token", "pack_records"], true),
    (Technique::ShardingStreaming, &["paging_read_bytes_per_token", "paging_wait_share"], true),
    (Technique::DiskOffload, &["paging_read_bytes_per_token", "waiting_read_bytes_per_token"], true),
    (Technique::DiskPipeline, &["paging_read_bytes_per_token"], false),
    (Technique::ActivationOffload, &["waiting_written_bytes_per_token", "waiting_read_bytes_per_token"], true),
    (Technique::ModelSurgery, &["surgery_layers_dropped", "surgery_bytes_after"], false),
    (Technique::TensorCompression, &["compression_cache_ratio"], false),
];

#[test]
fn all_of_them_are_measured_or_say_why_not() {
    let model = "qwen3-moe-tiny";
    let (summary, impact) = run(model, "[none, all]", QUICK);
    assert_eq!(summary.len(), 1 + Technique::ALL.len());
    for (name, row) in &summary {
        let status = row["status"].as_str();
        assert!(status == "measured" || status == "unsupported", "{name}: {status}: {}", row["reason"]);
        assert_eq!(row["reason"].is_empty(), status == "measured", "{name}");
        if status == "unsupported" {
            continue;
        }
        assert!(!row["impact_compared_tokens"].is_empty(), "{name}: {}", row["warnings"]);
        assert_eq!(row["impact_pairs"], "1");
        assert_eq!(row["impact_verdict"], "undecided", "one pair is no verdict");
        let figures = impact.iter().filter(|row| row["optimizations"] == *name).count();
        assert!(figures >= 6, "{name}: {figures}");
    }
    let same = &summary["none"];
    assert_eq!((same["impact_identical"].as_str(), same["impact_kl_divergence_mean"].as_str()), ("true", "0"));
    for (technique, columns, identical) in EVIDENCE {
        let row = &summary[technique.name()];
        assert_eq!(row["status"], "measured", "{technique}: {}", row["reason"]);
        for column in *columns {
            // A model this small may be in memory whole at any share.
            let least = if column.starts_with("paging_") { 0.0 } else { f64::MIN_POSITIVE };
            assert!(row[*column].parse::<f64>().is_ok_and(|value| value >= least), "{technique}: {column}");
        }
        if *identical {
            assert_eq!(row["impact_identical"], "true", "{technique}");
        }
    }
}

#[test]
fn what_excludes_each_other_is_refused_by_name() {
    package_of("qwen3-tiny", "int4-fused");
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |optimizations: &str, more: &str| {
        let rest = axes(optimizations, "").replace("[M]", "[qwen3-tiny]") + more;
        fails(&["plan", &matrix(folder.path(), "qwen3-tiny", &rest)]).1
    };
    let text = refused("disk_pipeline+activation_offload", "");
    assert!(text.contains("`disk_pipeline` and `activation_offload` exclude each other"), "{text}");
    assert!(text.contains("matrix.yaml:17:18"), "{text}");
    let text = refused("disk_pipeline", "  micro_batch: 2\n");
    assert!(text.contains("`disk_pipeline` and an axis of the cell both set the micro-batch"), "{text}");
}

#[test]
fn what_a_cell_lacks_is_its_row() {
    let (summary, _) =
        run("qwen3-tiny", "[{model_surgery: {keep_experts: 4, drop_layers: none}}, disk_pipeline]", "batch: 1");
    for row in summary.values() {
        assert_eq!(row["status"], "unsupported", "{}", row["reason"]);
    }
    let reasons: Vec<_> = summary.values().map(|row| row["reason"].as_str()).collect();
    assert!(
        reasons.iter().any(|reason| reason.contains("`model_surgery` cannot be applied") && reason.contains("experts")),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("`disk_pipeline` cannot be applied") && reason.contains("several sequences"))
    );
}

fn optimized(name: &str) -> Cell {
    let switched = vec![Switched { technique: Technique::SmartPaging, options: BTreeMap::new() }];
    let plan = OptimizationPlan { switched, plain: None, derived: "/nowhere".into() };
    Cell {
        categories: vec![Category::OptimizationImpact],
        optimizations: Some(Box::new(plan)),
        ..fake::cell(name, "cpu")
    }
}

#[test]
fn arms_alternate_and_a_failed_one_is_named() {
    let results = tempfile::tempdir().unwrap();
    let report = support::run(vec![optimized("a")], "", results.path()).unwrap();
    assert!(report.all_measured());
    let impact = report.outcomes[0].impact.as_ref().expect("an impact");
    assert_eq!(impact.comparisons.len(), 7);
    assert!(impact.comparisons.iter().all(|comparison| comparison.pairs == 2));
    assert_eq!(rows(&report.folder.join("impact.csv")).len(), 7);

    // Of the four processes 0 and 3 are the baseline's.
    let results = tempfile::tempdir().unwrap();
    let report = support::run(vec![optimized("a")], "/optimization_impact/3=segfault", results.path()).unwrap();
    let reason = report.outcomes[0].reason.clone().unwrap();
    assert!(reason.starts_with("optimization_impact: the baseline: "), "{reason}");
    assert!(report.outcomes[0].impact.is_none());

    let results = tempfile::tempdir().unwrap();
    let report = support::run(vec![optimized("a")], "prepare=fail:unsupported", results.path()).unwrap();
    assert_eq!(report.outcomes[0].status, Status::Unsupported);
    let report = support::resume(&report.folder, "", true).unwrap();
    assert!(report.all_measured(), "it is prepared anew");
}
