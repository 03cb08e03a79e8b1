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
