//! The comparison of a run as a table for people: backends side by side, medians with their spread, and ratios with
//! their interval.

use std::fmt::Write;

use crate::cell::{Cell, Status};
use crate::metrics::{self, Better, Series};
use crate::results::Outcome;
use crate::results::table::{Table, wrap};
use crate::stats::{Ratio, Summary, Verdict};
use crate::units;

/// The series that the table shows, and what people call them. The rest is in `summary.csv`.
const SHOWN: [(&str, &str); 8] = [
    ("ttft_seconds", "time to first token"),
    ("prefill_tokens_per_second", "prefill, tokens/s"),
    ("tpot_seconds", "time per output token"),
    ("decode_tokens_per_second", "decode, tokens/s"),
    ("output_tokens_per_second", "throughput, output tokens/s"),
    ("load_seconds", "load"),
    ("peak_rss_bytes", "peak resident memory"),
    ("peak_anonymous_bytes", "peak anonymous memory"),
];

const WIDTH: usize = 110;

/// True when two cells are arms of one comparison: everything but backend and flavour is equal. The flavour belongs to
/// the arm, because a provider without contrib kernels needs its own.
pub fn same_configuration(a: &Cell, b: &Cell) -> bool {
    a.model.name == b.model.name
        && a.precision == b.precision
        && a.threads == b.threads
        && a.workload == b.workload
        && a.categories == b.categories
        && a.measurement == b.measurement
}

/// The whole table, ending in a newline.
pub fn render(outcomes: &[Outcome]) -> String {
    let mut groups: Vec<Vec<&Outcome>> = Vec::new();
    for outcome in outcomes {
        match groups.iter_mut().find(|group| same_configuration(&group[0].cell, &outcome.cell)) {
            Some(group) => group.push(outcome),
            None => groups.push(vec![outcome]),
        }
    }
    let mut text = String::new();
    for group in &groups {
        write_group(&mut text, group);
    }
    if groups.iter().any(|group| group.iter().filter(|outcome| !outcome.measured.is_empty()).count() > 1) {
        text.push_str(
            "± is the median absolute deviation. × is the ratio of medians to the first backend, with its 95 % bootstrap\n\
             interval over the samples of this run; another run of the same cells may differ by more.\n",
        );
    }
    text
}

fn write_group(text: &mut String, group: &[&Outcome]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}\n", heading(&group[0].cell));
    let arms: Vec<&&Outcome> = group.iter().filter(|outcome| !outcome.measured.is_empty()).collect();
    if let Some((first, others)) = arms.split_first() {
        let mut header = vec![String::new(), label(first, group)];
        for other in others {
            header.push(label(other, group));
            header.push(format!("against {}", label(first, group)));
        }
        let mut table = Table::new(header);
        for (name, words) in SHOWN {
            let Some(series) = metrics::find_series(name) else { continue };
            if arms.iter().all(|arm| arm.summary(series).is_none()) {
                continue;
            }
            let mut row = vec![words.to_owned(), value(series, first.summary(series))];
            for other in others {
                row.push(value(series, other.summary(series)));
                row.push(ratio(series, other, first));
            }
            table.row(row);
        }
        let _ = writeln!(text, "{table}");
    }
    for outcome in group.iter().filter(|outcome| outcome.status != Status::Measured) {
        let reason = outcome.reason.as_deref().unwrap_or("no reason was given");
        let _ = writeln!(text, "{}", wrap(&format!("{}: {}: {reason}", label(outcome, group), outcome.status), WIDTH));
        if let Some(hint) = &outcome.hint {
            let _ = writeln!(text, "{}", wrap(&format!("  hint: {hint}"), WIDTH));
        }
        text.push('\n');
    }
}

fn heading(cell: &Cell) -> String {
    let work = &cell.workload;
    let threads = if cell.threads == 1 { "thread" } else { "threads" };
    let mut heading = format!(
        "{} · {} · {} {threads} · batch {} · {} prompt tokens · {} generated",
        cell.model.name, cell.precision, cell.threads, work.batch, work.prompt_tokens, work.generate_tokens
    );
    if cell.measurement.quick {
        heading.push_str(" · quick profile");
    }
    heading
}

/// The backend's name, with the flavour where the group has several.
fn label(outcome: &Outcome, group: &[&Outcome]) -> String {
    let cell = &outcome.cell;
    if group.iter().all(|other| other.cell.flavour == cell.flavour) {
        cell.backend.name.clone()
    } else {
        format!("{} {}", cell.backend.name, cell.flavour)
    }
}

fn value(series: &Series, summary: Option<&Summary>) -> String {
    let Some(summary) = summary else { return String::new() };
    let median = match series.unit {
        "s" => units::seconds(summary.median),
        "bytes" => units::bytes(summary.median as u64),
        _ => units::significant(summary.median, 3),
    };
    if summary.n == 1 {
        return median;
    }
    format!("{median} ±{:.1} %", 100.0 * summary.mad / summary.median)
}

fn ratio(series: &Series, variant: &Outcome, baseline: &Outcome) -> String {
    let (Some(variant), Some(baseline)) = (variant.samples.get(series.name), baseline.samples.get(series.name)) else {
        return String::new();
    };
    let Some(ratio) = Ratio::unpaired(variant, baseline) else { return String::new() };
    let times = format!("×{}", units::significant(ratio.value, 3));
    let Some(interval) = ratio.ci95 else { return format!("{times} (few samples)") };
    let interval = format!("[{}, {}]", units::significant(interval.low, 3), units::significant(interval.high, 3));
    match (ratio.verdict(), series.better) {
        (Verdict::NoDifference, _) => format!("no difference {interval}"),
        (Verdict::Larger, Better::Higher) | (Verdict::Smaller, Better::Lower) => format!("{times} {interval} better"),
        (Verdict::Larger, Better::Lower) | (Verdict::Smaller, Better::Higher) => format!("{times} {interval} worse"),
        _ => format!("{times} {interval}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::cell::Category;
    use crate::engine::fake;
    use crate::results::{JobEnd, JobKey, JobResult, SampleRun};

    fn outcome(cell: &Cell, failed: Option<Category>) -> Outcome {
        let jobs: Vec<(JobKey, JobResult)> = cell
            .categories
            .iter()
            .map(|&category| {
                let key = JobKey { cell: cell.id.clone(), category, process: 0 };
                if failed == Some(category) {
                    let end = JobEnd::without_result(Status::Failed, "it fell over", Some("catch it".into()));
                    return (key, JobResult { end, samples: Vec::new() });
                }
                let samples = fake::samples(cell, category, 0)
                    .into_iter()
                    .map(|(metric, repetition, values)| SampleRun { metric, repetition, values })
                    .collect();
                let mut end = JobEnd::without_result(Status::Measured, "", None);
                end.facts = fake::facts(cell);
                (key, JobResult { end, samples })
            })
            .collect();
        let jobs: Vec<_> = jobs.iter().map(|(key, job)| (key, job)).collect();
        Outcome::of(cell, &jobs, BTreeMap::new(), Arc::default())
    }

    #[test]
    fn backends_stand_side_by_side_and_failures_below() {
        let cells = ["cpu", "openvino"].map(|backend| fake::cell("tiny", backend));
        let outcomes = [outcome(&cells[0], None), outcome(&cells[1], Some(Category::Memory))];
        insta::assert_snapshot!(render(&outcomes));
    }
}
