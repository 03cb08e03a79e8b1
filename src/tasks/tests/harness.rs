//! What single functions of lm-evaluation-harness return (`tests/data/harness/functions.json`), and ours.

use fancy_regex::Regex;
use serde_json::Value;

use super::*;
use crate::tasks::answer::{INVALID, Judging, Normalize, Step, Take};

/// Rows of a function; fewer than there were is a mistake.
fn rows(function: &str, least: usize) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/harness/functions.json");
    let all: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let rows = all[function].as_array().unwrap().clone();
    assert!(rows.len() >= least, "{function}: {} rows", rows.len());
    rows
}

fn text<'v>(row: &'v Value, key: &str) -> &'v str {
    row[key].as_str().unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// A pattern of Python's. Its `$` also matches before a newline that ends the text, which is `\Z` here; where `$` ends
/// lines (`(?m)`) or is escaped, it is the same in both.
fn pattern(python: &str) -> Regex {
    let ends = python.ends_with('$') && !python.ends_with("\\$") && !python.contains("(?m)");
    Regex::new(&if ends { format!("{}\\Z", python.trim_end_matches('$')) } else { python.to_owned() }).unwrap()
}

/// What a filter that finds nothing returns.
const FALLBACK: &str = "[invalid]";

fn documents(texts: &[String]) -> TaskSet {
    let items: String = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
    load("version: 1\nname: p\nkind: perplexity\ndata: items.jsonl\ntext: \"{{ text }}\"\n", &items).unwrap()
}

#[test]
fn words_and_bytes() {
    let rows = rows("counts", 16);
    let set = documents(&rows.iter().map(|row| text(row, "text").to_owned()).collect::<Vec<_>>());
    for (item, row) in set.items.iter().zip(&rows) {
        let Ask::Perplexity { words, bytes, .. } = item.ask else { panic!("{item:?}") };
        assert_eq!(
            (words as u64, bytes as u64),
            (row["words"].as_u64().unwrap(), row["bytes"].as_u64().unwrap()),
            "{row}"
        );
    }
}

#[test]
fn matches() {
    let mut left_out = Vec::new();
    for row in rows("exact_match", 22) {
        let options = &row["options"];
        if options["ignore_numbers"] == true {
            left_out.push(text(&row, "prediction").to_owned());
            continue;
        }
        let normalize = Normalize {
            remove: texts(&options["regexes_to_ignore"]).iter().map(|python| pattern(python)).collect(),
            ignore_case: options["ignore_case"] == true,
            ignore_punctuation: options["ignore_punctuation"] == true,
            strip: false,
        };
        let judging = Judging { steps: Vec::new(), normalize };
        let (_, right) = judging.judge(text(&row, "prediction"), &[text(&row, "reference").to_owned()]).unwrap();
        assert_eq!(u64::from(right), row["exact_match"].as_u64().unwrap(), "{row}");
    }
    // `ignore_numbers` has no key here: `remove: ["[0-9]"]` does it.
    assert_eq!(left_out, ["room 12", "room 12"]);
}

#[test]
fn filters() {
    let mut left_out = 0;
    for row in rows("regex", 23) {
        let options = &row["options"];
        let take = match options["group_select"].as_i64() {
            None | Some(0) => Take::First,
            Some(-1) => Take::Last,
            // There are no others here.
            Some(_) => {
                left_out += 1;
                continue;
            }
        };
        let python = options["regex_pattern"].as_str().unwrap_or(r"#### (\-?[0-9\.\,]+)");
        let judging = Judging { steps: vec![Step::Find(pattern(python), take)], normalize: Normalize::default() };
        let (answer, _) = judging.judge(text(&row, "text"), &[]).unwrap();
        let fallback = options["fallback"].as_str().unwrap_or(FALLBACK);
        let golden = if text(&row, "answer") == fallback { INVALID } else { text(&row, "answer") };
        assert_eq!(answer, golden, "{row}");
    }
    assert_eq!(left_out, 3, "rows that take a match in the middle");
}

#[test]
fn stops() {
    for row in rows("stops", 11) {
        assert_eq!(Stops::new(&texts(&row["stops"])).apply(text(&row, "text")), text(&row, "kept"), "{row}");
    }
}

#[test]
fn perplexities() {
    for row in rows("perplexity", 3) {
        let found: Vec<(f64, usize)> = serde_json::from_value(row["documents"].clone()).unwrap();
        // A weight counts words in the one figure and bytes in the other.
        for (figure, golden, piece) in [("word_perplexity", "perplexity", "a "), ("bits_per_byte", "bits", "a")] {
            let set =
                documents(&found.iter().map(|(_, weight)| piece.repeat(*weight).trim().to_owned()).collect::<Vec<_>>());
            let mut scores = Scores::new(&set);
            for (index, (log_likelihood, _)) in found.iter().enumerate() {
                scores.perplexity(index, *log_likelihood).unwrap();
            }
            let (ours, golden) = (scores.finish().unwrap().figures[figure], row[golden].as_f64().unwrap());
            assert!((ours - golden).abs() < 1e-12 * golden.abs(), "{figure} is {ours}: {row}");
        }
    }
}

#[test]
fn standard_errors() {
    let mut left_out = 0;
    for row in rows("standard_error", 5) {
        let found: Vec<f64> = serde_json::from_value(row["scores"].clone()).unwrap();
        if found.iter().any(|score| *score != 0.0 && *score != 1.0) {
            left_out += 1;
            continue;
        }
        let item = "{\"q\": \"?\", \"options\": [\"a\", \"b\"], \"label\": 0}\n";
        let set = load(CHOICE, &item.repeat(found.len())).unwrap();
        let mut scores = Scores::new(&set);
        for (index, score) in found.iter().enumerate() {
            scores.choice(index, &[*score, 0.5]).unwrap();
        }
        let (ours, golden) = (scores.finish().unwrap().figures["acc_stderr"], row["standard_error"].as_f64().unwrap());
        assert!((ours - golden).abs() < 1e-12, "{ours}: {row}");
    }
    assert_eq!(left_out, 1, "items here are right or wrong, never in part");
}
