use std::collections::HashSet;

use super::*;
use crate::metrics;

#[test]
fn names_are_unique_snake_case_and_end_with_their_unit() {
    let mut seen = HashSet::new();
    for column in all() {
        let name = &column.name;
        assert!(seen.insert(name), "{name} twice");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
        assert!(!column.description.is_empty(), "{name}");
        let ending = match column.unit {
            "s" => "_seconds",
            "bytes" => "_bytes",
            "tokens/s" => "_tokens_per_second",
            "requests/s" => "_per_second",
            "J/token" => "_joules_per_token",
            "tokens/J" => "_tokens_per_joule",
            "J/run" => "_joules_per_run",
            "runs/J" => "_runs_per_joule",
            "ratio" => "_ratio",
            _ => continue,
        };
        assert!(name.ends_with(ending), "{name} has the unit {}", column.unit);
    }
}

#[test]
fn every_metric_has_its_columns() {
    let names: HashSet<_> = all().iter().map(|column| column.name.as_str()).collect();
    for expected in [
        "ttft_median_seconds",
        "ttft_p90_seconds",
        "decode_median_tokens_per_second",
        "decode_ci95_low_tokens_per_second",
        "requests_median_per_second",
        "peak_rss_median_bytes",
        "peak_rss_bytes_samples",
        "major_faults_median",
        "ttft_seconds_outliers",
        "ceiling_int4_flops_per_second",
    ] {
        assert!(names.contains(expected), "{expected}");
    }
    let medians = all().iter().filter(|column| column.group == Group::Medians).count();
    assert_eq!(medians, metrics::SERIES.len());
}

#[test]
fn a_group_is_one_run_of_columns_in_the_documented_order() {
    let mut groups: Vec<_> = all().iter().map(|column| column.group).collect();
    groups.dedup();
    assert_eq!(groups, Group::ALL);
}

#[test]
fn the_disks_bound_is_of_a_token_of_any_sequence() {
    let mut cell = crate::engine::fake::cell("a", "cpu");
    cell.workload.batch = 4;
    let refusal = crate::results::Refusal { status: crate::cell::Status::Failed, reason: String::new(), hint: None };
    let mut outcome = Outcome::refused(&cell, &refusal, Default::default());
    let value = |outcome: &Outcome, name: &str| {
        let column = all().iter().find(|column| column.name == name).expect("a column");
        column.value(&Row { run_id: "r", outcome })
    };
    assert_eq!(value(&outcome, "disk_bound_seconds_per_token"), None);
    outcome.facts.insert("bytes_read_per_token".to_owned(), 3e8.into());
    assert_eq!(value(&outcome, "disk_bound_seconds_per_token"), None, "the disk's bandwidth is not known");
    outcome.facts.insert("disk_bandwidth_bytes_per_second".to_owned(), 1e9.into());
    outcome.summaries.insert("tpot_seconds", crate::stats::Summary::of(&[1.5]).expect("a sample"));
    assert_eq!(value(&outcome, "disk_bound_seconds_per_token"), Some(Value::Float(0.3)));
    // Four tokens a step of 1.5 s: 0.375 s each.
    assert_eq!(value(&outcome, "disk_bound_share"), Some(Value::Float(0.3 * 4.0 / 1.5)));
    assert!(remarks(&outcome).is_empty());
    outcome.summaries.insert("tpot_seconds", crate::stats::Summary::of(&[1.0]).expect("a sample"));
    assert!(remarks(&outcome).iter().any(|remark| remark.contains("page cache")));
}
