//! The tables as programs and spreadsheets read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use assert_cmd::Command;
use ortbench::cell::Category;
use ortbench::cell::Cell;
use ortbench::engine::fake;
use ortbench::metrics;
use ortbench::results::columns::{self, Kind};
use ortbench::results::{impact, operators, tasks};

use crate::support::{matrix, options, resume, run, summary, two_cells};

fn ortbench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ortbench"))
}

/// Cells whose names try what a spreadsheet would fall for.
fn hostile_cells() -> Vec<Cell> {
    let mut cells = two_cells();
    cells[0].model.name = "=cmd|' /C calc'!A0".to_owned();
    cells[0].backend.options = BTreeMap::from([("key".to_owned(), "a,\"b\"\nc;d".to_owned())]);
    cells[1].model.name = "1e5".to_owned();
    cells[1].backend.name = "-naïve".to_owned();
    cells
}

#[test]
fn the_header_of_the_summary_is_as_agreed() {
    let names: Vec<_> = columns::all().iter().map(|column| column.name.as_str()).collect();
    insta::assert_snapshot!("summary_header", names.join("\n"));
    assert_eq!(names[3..6], ["status", "reason", "accuracy_gate"]);
}

#[test]
fn the_documented_columns_are_the_programs_own() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/columns.md");
    let documented = fs::read_to_string(&path).unwrap_or_default();
    assert!(documented == columns::markdown(), "update it: cargo run -- columns --markdown > docs/columns.md");
}

#[test]
fn the_dictionary_is_printed_in_three_forms() {
    let count = columns::all().len() + tasks::columns().len() + operators::COLUMNS.len() + impact::COLUMNS.len();
    let json: serde_json::Value =
        serde_json::from_slice(&ortbench().args(["columns", "--json"]).unwrap().stdout).unwrap();
    let length = |table: &str| json[table].as_array().unwrap().len();
    assert_eq!((length("columns"), length("task_columns")), (columns::all().len(), tasks::columns().len()));
    let unit = |table: &str, name: &str| {
        let of_name = |column: &&serde_json::Value| column["name"] == name;
        json[table].as_array().unwrap().iter().find(of_name).map(|column| column["unit"].clone())
    };
    assert_eq!(unit("columns", "kl_divergence_mean"), Some("nats".into()));
    assert_eq!(unit("item_metrics", "item_log_likelihood"), Some("nats".into()));
    assert!(tasks::columns().iter().all(|column| !column.name.starts_with("flips") || column.kind == Kind::Integer));
    let csv = ortbench().args(["columns", "--csv"]).unwrap().stdout;
    assert_eq!(csv::Reader::from_reader(csv.as_slice()).records().map(Result::unwrap).count(), count);
    let markdown = ortbench().args(["columns", "--markdown"]).unwrap().stdout;
    assert_eq!(String::from_utf8(markdown).unwrap(), columns::markdown());
    ortbench().args(["columns", "--csv", "--json"]).assert().code(2);
}

#[test]
fn a_strict_reader_finds_numbers_in_every_column_of_numbers() {
    let results = tempfile::tempdir().unwrap();
    let report = run(hostile_cells(), "openvino/memory=abort", results.path()).unwrap();
    let bytes = fs::read(report.folder.join("summary.csv")).unwrap();
    assert!(!bytes.starts_with(b"\xEF\xBB\xBF"));
    let text = String::from_utf8(bytes).expect("UTF-8");
    assert!(text.split_inclusive('\n').all(|line| line.ends_with("\r\n")), "every line ends as RFC 4180 says");
    assert_eq!(text.lines().count(), 3, "a row is a line");

    for row in summary(&report.folder) {
        assert_eq!(row.len(), columns::all().len());
        for column in columns::all() {
            let field = &row[&column.name];
            let name = &column.name;
            if field.is_empty() {
                continue;
            }
            match column.kind {
                Kind::Integer => assert!(field.bytes().all(|byte| byte.is_ascii_digit()), "{name}: {field}"),
                Kind::Float => {
                    assert!(
                        field.bytes().all(|byte| byte.is_ascii_digit() || b".-".contains(&byte)),
                        "{name}: {field}"
                    );
                    assert!(field.parse::<f64>().unwrap().is_finite());
                }
                Kind::Bool => assert!(["true", "false"].contains(&field.as_str()), "{name}: {field}"),
                Kind::Time => assert!(field.len() == 20 && field.ends_with('Z'), "{name}: {field}"),
                Kind::Text => {
                    assert!(!field.starts_with(['=', '+', '-', '@', '\t', '\r']), "{name}: {field}");
                    assert!(field.parse::<f64>().is_err(), "{name}: {field} would be read as a number");
                }
            }
        }
    }
    let rows = summary(&report.folder);
    assert_eq!(rows[0]["model"], "'=cmd|' /C calc'!A0");
    assert_eq!(rows[1]["model"], "'1e5");
    assert_eq!(rows[1]["backend"], "'-naïve");
    assert_eq!(rows[0]["provider_options"], "key=a,\"b\" c;d");
    assert_eq!(rows[0]["cpu_model"], "'=Fake, \"CPU\"");
}

#[test]
fn a_measured_row_has_no_zero_and_no_gap_where_something_was_measured() {
    let results = tempfile::tempdir().unwrap();
    let mut cells = two_cells();
    cells.iter_mut().for_each(|cell| cell.workload.image = "64x64".parse().ok());
    cells.push(fake::graph_cell("net", "cpu"));
    cells.iter_mut().for_each(|cell| cell.categories.push(Category::Power));
    let report = run(cells, "", results.path()).unwrap();
    let rows = summary(&report.folder);
    for (row, outcome) in rows.iter().zip(&report.outcomes) {
        let medians = columns::all().iter().filter(|column| column.group == columns::Group::Medians);
        for (series, column) in metrics::SERIES.iter().zip(medians) {
            let (name, field) = (&column.name, &row[&column.name]);
            // The fake's machine has a meter.
            if metrics::is_empty_for(series.name, &outcome.cell) || metrics::is_estimate(series.name) {
                assert_eq!(field, "", "{name}");
            } else {
                let value: f64 = field.parse().unwrap_or_else(|_| panic!("{name} is empty"));
                assert!(value > 0.0, "{name} is {value}");
            }
        }
    }
    let every = |series: &metrics::Series| report.outcomes.iter().any(|outcome| outcome.summary(series).is_some());
    let measured = |series: &&metrics::Series| !metrics::is_estimate(series.name);
    assert!(metrics::SERIES.iter().filter(measured).all(every), "every series is of one kind of model or of both");
    let graph = rows.last().unwrap();
    let of_packages = ["flavour", "prompt_tokens", "generate_tokens", "prompt_source"];
    assert!(of_packages.iter().all(|name| graph[*name].is_empty()));
    let (kind, dimensions, batch) = (&graph["kind"], &graph["dimensions"], &graph["batch"]);
    assert_eq!([kind, dimensions, batch, &graph["precision"]], ["graph", "batch=8", "8", "fp32"]);
    assert_eq!((rows[0]["kind"].as_str(), rows[0]["dimensions"].as_str()), ("package", ""));
}

#[test]
fn every_raw_sample_is_kept() {
    let results = tempfile::tempdir().unwrap();
    let report = run(two_cells(), "", results.path()).unwrap();
    let mut reader = csv::Reader::from_path(report.folder.join("samples.csv")).unwrap();
    let rows: Vec<BTreeMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    for outcome in &report.outcomes {
        for (metric, values) in &outcome.samples {
            let kept = rows.iter().filter(|row| row["cell_id"] == outcome.cell.id.0 && row["metric"] == *metric);
            let kept: Vec<f64> = kept.map(|row| row["value"].parse().unwrap()).collect();
            assert_eq!(kept.len(), values.len(), "{metric}");
            assert!(values.iter().all(|value| kept.contains(value)));
        }
    }
}

#[test]
fn a_byte_order_mark_is_written_when_asked_for() {
    let results = tempfile::tempdir().unwrap();
    let mut quiet = ortbench::orchestrator::progress::Quiet;
    let mut options = options("", &mut quiet);
    options.byte_order_mark = true;
    let report = ortbench::orchestrator::start(&matrix(two_cells()), results.path(), options).unwrap();
    resume(&report.folder, "", false).unwrap();
    for name in ["summary.csv", "samples.csv"] {
        assert!(fs::read(report.folder.join(name)).unwrap().starts_with(b"\xEF\xBB\xBF"), "{name}");
    }
    assert_eq!(summary(&report.folder).len(), 2);
}

#[test]
fn a_finished_run_is_compared() {
    let results = tempfile::tempdir().unwrap();
    let report = run(two_cells(), "openvino/memory=segfault", results.path()).unwrap();
    let assert = ortbench().arg("compare").arg("--results").arg(results.path()).assert().success();
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(text.starts_with(&report.folder.display().to_string()));
    assert!(text.contains("×0.750"), "{text}");
    assert!(text.contains("openvino: failed: memory: the process ended by SIGSEGV"), "{text}");
    ortbench().arg("compare").arg("--results").arg(results.path().join("none")).assert().code(2);
    let assert = ortbench().args(["compare", "nosuch"]).current_dir(results.path()).assert().code(2);
    let text = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(text.contains("`nosuch` is no run's folder: it has no journal.jsonl"), "{text}");
}

#[test]
fn two_runs_of_one_second_have_two_folders() {
    let results = tempfile::tempdir().unwrap();
    let folders = [(); 2].map(|()| run(two_cells(), "", results.path()).unwrap().folder);
    assert_ne!(folders[0], folders[1]);
}
