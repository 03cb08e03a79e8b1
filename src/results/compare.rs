//! The comparison of a run as a table for people: backends side by side, medians with their spread, and ratios with
//! their interval.

mod optimized;

use std::fmt::Write;

use crate::cell::{Category, Cell, Flavour, Status, Switched};
use crate::metrics::{self, Better, Series};
use crate::results::Outcome;
use crate::results::accuracy::{self, gate_failure};
use crate::results::table::{Table, wrap};
use crate::stats::{Ratio, Summary, Verdict};
use crate::units;

/// The series that the table shows, and what people call them. The rest is in `summary.csv`.
const SHOWN: [(&str, &str); 18] = [
    ("latency_seconds", "latency of a run"),
    ("ttft_seconds", "time to first token"),
    ("vision_seconds", "  vision tower"),
    ("prefill_tokens_per_second", "prefill, tokens/s"),
    ("tpot_seconds", "time per output token"),
    ("decode_tokens_per_second", "decode, tokens/s"),
    ("output_tokens_per_second", "throughput, output tokens/s"),
    ("runs_per_second", "throughput, runs/s"),
    ("items_per_second", "throughput, items/s"),
    ("load_seconds", "load"),
    ("peak_rss_bytes", "peak resident memory"),
    ("peak_anonymous_bytes", "peak anonymous memory"),
    ("prefill_energy_joules_per_token", "prefill, J/token"),
    ("decode_energy_joules_per_token", "decode, J/token"),
    ("graph_energy_joules_per_run", "J/run"),
    ("estimated_prefill_energy_joules_per_token", "prefill, J/token, ESTIMATED"),
    ("estimated_decode_energy_joules_per_token", "decode, J/token, ESTIMATED"),
    ("estimated_graph_energy_joules_per_run", "J/run, ESTIMATED"),
];

const WIDTH: usize = 110;

/// True when two cells are arms of one comparison: everything but backend, flavour and how weights and caches are kept
/// is equal. The flavour belongs to the arm, because a provider without contrib kernels needs its own; how weights are
/// kept in the same memory is what is compared. So does what is asked for its accuracy: an arm of which accuracy is not
/// asked, or which has another reference, is as fast as it is.
pub fn same_configuration(a: &Cell, b: &Cell) -> bool {
    a.model.name == b.model.name
        && a.precision == b.precision
        && a.threads == b.threads
        && a.memory.limit_bytes == b.memory.limit_bytes
        && a.workload == b.workload
        && switched(a) == switched(b)
        && a.graph.as_ref().map(|graph| &graph.dimensions) == b.graph.as_ref().map(|graph| &graph.dimensions)
        && but_accuracy(a).eq(but_accuracy(b))
        && a.measurement == b.measurement
}

/// What a cell switches on; a file that says nothing of optimizations is as one that says `none`.
fn switched(cell: &Cell) -> &[Switched] {
    cell.optimizations.as_ref().map_or(&[], |plan| &plan.switched)
}

fn but_accuracy(cell: &Cell) -> impl Iterator<Item = &Category> {
    cell.categories.iter().filter(|category| **category != Category::Accuracy)
}

/// The whole table, ending in a newline.
pub fn render(outcomes: &[Outcome]) -> String {
    let groups = groups(outcomes);
    let mut text = String::new();
    for group in &groups {
        write_group(&mut text, group, outcomes);
    }
    if groups.iter().any(|group| group.iter().filter(|outcome| !outcome.measured.is_empty()).count() > 1) {
        text.push_str(
            "± is the median absolute deviation. × is the ratio of medians to the first backend, with its 95 % bootstrap\n\
             interval over the samples of this run; another run of the same cells may differ by more.\n",
        );
    }
    if groups.iter().any(|group| accuracy::shows_errors(group)) {
        text.push_str("Behind figures of accuracy, ± is the standard error.\n");
    }
    let optimized = optimized::render(outcomes);
    if !optimized.is_empty() && !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&optimized);
    text
}

/// The arms of each comparison. Where every flavour was asked of the same backends, each flavour is a comparison of its
/// own; where a backend has only one flavour (no other runs on it), flavours stand side by side.
fn groups(outcomes: &[Outcome]) -> Vec<Vec<&Outcome>> {
    let mut groups: Vec<Vec<&Outcome>> = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| !optimized::only_impact(&outcome.cell)) {
        match groups.iter_mut().find(|group| same_configuration(&group[0].cell, &outcome.cell)) {
            Some(group) => group.push(outcome),
            None => groups.push(vec![outcome]),
        }
    }
    groups.into_iter().flat_map(by_flavour).collect()
}

fn by_flavour(group: Vec<&Outcome>) -> Vec<Vec<&Outcome>> {
    let of = |flavour: Flavour| group.iter().copied().filter(move |outcome| outcome.cell.flavour == flavour);
    let backends = |flavour| of(flavour).map(|outcome| &outcome.cell.backend).collect::<Vec<_>>();
    let mut flavours = Flavour::ALL.iter().copied().filter(|flavour| of(*flavour).next().is_some());
    let first = flavours.next().map(backends).unwrap_or_default();
    if first.len() > 1 && flavours.all(|flavour| backends(flavour) == first) {
        return Flavour::ALL
            .iter()
            .map(|flavour| of(*flavour).collect())
            .filter(|arms: &Vec<_>| !arms.is_empty())
            .collect();
    }
    vec![group]
}

fn write_group(text: &mut String, group: &[&Outcome], all: &[Outcome]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}\n", heading(group));
    let arms: Vec<&Outcome> = group.iter().copied().filter(|outcome| !outcome.measured.is_empty()).collect();
    if let Some((first, others)) = arms.split_first() {
        let table = if others.len() > 1 { stacked(first, others, group) } else { side_by_side(first, others, group) };
        let _ = writeln!(text, "{table}");
    }
    let mut remarks = String::new();
    for remark in accuracy::references(&arms, all).into_iter().chain(accuracy::remarks(&arms)) {
        let _ = writeln!(remarks, "{}", wrap(&remark, WIDTH));
    }
    for outcome in group {
        let name = label(outcome, group);
        let failure = gate_failure(outcome);
        if let Some(failure) = &failure {
            let _ = writeln!(remarks, "{}", wrap(&format!("{name}: {failure}"), WIDTH));
        }
        if outcome.status != Status::Measured {
            let reason = outcome.reason.as_deref().unwrap_or("no reason was given");
            let _ = writeln!(remarks, "{}", wrap(&format!("{name}: {}: {reason}", outcome.status), WIDTH));
            if let Some(hint) = &outcome.hint {
                let _ = writeln!(remarks, "{}", wrap(&format!("  hint: {hint}"), WIDTH));
            }
        }
        for warning in outcome.all_warnings().iter().filter(|warning| failure.as_ref() != Some(warning)) {
            let _ = writeln!(remarks, "{}", wrap(&format!("{name}: note: {warning}"), WIDTH));
        }
    }
    if !remarks.is_empty() {
        let _ = writeln!(text, "{remarks}");
    }
}

/// The ratio in a column of its own.
fn side_by_side(first: &Outcome, others: &[&Outcome], group: &[&Outcome]) -> Table {
    let mut header = vec![String::new(), marked_label(first, group)];
    for other in others {
        header.push(marked_label(other, group));
        header.push(format!("against {}", label(first, group)));
    }
    let mut table = Table::new(header);
    for (series, words) in shown(first, others) {
        let mut row = vec![words.to_owned(), value(series, first.summary(series))];
        for other in others {
            row.push(value(series, other.summary(series)));
            row.push(ratio(series, other, first));
        }
        table.row(row);
    }
    for (heading, fields) in accuracy_rows(first, others) {
        let mut fields = fields.into_iter();
        let mut row = vec![heading, fields.next().unwrap_or_default()];
        row.extend(fields.flat_map(|field| [field, String::new()]));
        table.row(row);
    }
    table
}

/// The ratio below the value, where many arms would make the table too wide.
fn stacked(first: &Outcome, others: &[&Outcome], group: &[&Outcome]) -> Table {
    let mut header = vec![String::new(), marked_label(first, group)];
    header.extend(others.iter().map(|other| marked_label(other, group)));
    let mut table = Table::new(header);
    for (series, words) in shown(first, others) {
        let mut values = vec![words.to_owned(), value(series, first.summary(series))];
        values.extend(others.iter().map(|other| value(series, other.summary(series))));
        table.row(values);
        let mut ratios = vec![format!("  against {}", label(first, group)), String::new()];
        ratios.extend(others.iter().map(|other| ratio(series, other, first)));
        table.row(ratios);
    }
    for (heading, fields) in accuracy_rows(first, others) {
        table.row(std::iter::once(heading).chain(fields).collect());
    }
    table
}

fn accuracy_rows(first: &Outcome, others: &[&Outcome]) -> Vec<(String, Vec<String>)> {
    let arms: Vec<_> = std::iter::once(first).chain(others.iter().copied()).collect();
    accuracy::rows(&arms)
}

/// The series of the table that at least one arm has.
fn shown(first: &Outcome, others: &[&Outcome]) -> Vec<(&'static Series, &'static str)> {
    let known = SHOWN.iter().filter_map(|(name, words)| Some((metrics::find_series(name)?, *words)));
    known.filter(|(series, _)| std::iter::once(&first).chain(others).any(|arm| arm.summary(series).is_some())).collect()
}

fn heading(group: &[&Outcome]) -> String {
    let cell = &group[0].cell;
    let work = &cell.workload;
    let threads = if cell.threads == 1 { "thread" } else { "threads" };
    if let Some(graph) = &cell.graph {
        let precision = graph.precision.iter().map(|precision| format!(" · {precision}"));
        let dimensions = Some(graph.dimensions.to_string()).filter(|words| !words.is_empty());
        let parts: String = precision.chain(dimensions.map(|words| format!(" · {words}"))).collect();
        return with_conditions(format!("{}{parts} · {} {threads}", cell.model.name, cell.threads), cell);
    }
    let mut heading = format!("{} · {}", cell.model.name, cell.precision);
    if group.iter().all(|outcome| outcome.cell.flavour == cell.flavour) {
        heading.push_str(&format!(" {}", cell.flavour));
    }
    heading.push_str(&format!(" · {} {threads} · batch {}", cell.threads, work.batch));
    if let Some(size) = work.image {
        heading.push_str(&format!(" · image {size}"));
    }
    heading.push_str(&format!(" · {} prompt tokens · {} generated", work.prompt_tokens, work.generate_tokens));
    with_conditions(heading, cell)
}

fn with_conditions(mut heading: String, cell: &Cell) -> String {
    if let Some(limit) = cell.memory.limit_bytes {
        heading.push_str(&format!(" · limited to {}", units::bytes(limit)));
    }
    if cell.measurement.quick {
        heading.push_str(" · quick profile");
    }
    heading
}

/// The backend's name, with the flavour and what is said of memory where the group has several.
fn label(outcome: &Outcome, group: &[&Outcome]) -> String {
    let cell = &outcome.cell;
    let mut label = cell.backend.name.clone();
    if group.iter().any(|other| other.cell.flavour != cell.flavour) {
        label.push_str(&format!(" {}", cell.flavour));
    }
    if let Some(residency) = cell.memory.residency
        && group.iter().any(|other| other.cell.memory.residency != cell.memory.residency)
    {
        label.push_str(&format!(" {residency}"));
    }
    if group.iter().any(|other| other.cell.memory.budget_bytes != cell.memory.budget_bytes) {
        label.push_str(&cell.memory.budget_bytes.map_or(" no budget".to_owned(), |b| format!(" {}", units::bytes(b))));
    }
    let of_memory: [fn(&Cell) -> Option<String>; 3] = [
        |cell| cell.memory.micro_batch.map(|count| format!(" in groups of {count}")),
        |cell| cell.memory.offload.then(|| " caches on disk".to_owned()),
        |cell| (cell.memory.guess > 0).then(|| format!(" {} guessed", cell.memory.guess)),
    ];
    for word in of_memory {
        if group.iter().any(|other| word(&other.cell) != word(cell)) {
            label.push_str(&word(cell).unwrap_or_default());
        }
    }
    label
}

/// The label above the arm's figures. No one is to take the speed of an arm with wrong answers for a win.
fn marked_label(outcome: &Outcome, group: &[&Outcome]) -> String {
    let label = label(outcome, group);
    if gate_failure(outcome).is_some() {
        format!("{label} (FAILS accuracy)")
    } else if accuracy::is_unjudged(outcome) {
        format!("{label} (accuracy unknown)")
    } else {
        label
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
    let better = if gate_failure(variant).is_some() { "(fails accuracy)" } else { "better" };
    let (Some(variant), Some(baseline)) = (variant.samples.get(series.name), baseline.samples.get(series.name)) else {
        return String::new();
    };
    let Some(ratio) = Ratio::unpaired(variant, baseline) else { return String::new() };
    let times = format!("×{}", units::significant(ratio.value, 3));
    let Some(interval) = ratio.ci95 else { return format!("{times} (few samples)") };
    let interval = format!("[{}, {}]", units::significant(interval.low, 3), units::significant(interval.high, 3));
    match (ratio.verdict(), series.better) {
        (Verdict::NoDifference, _) => format!("no difference {interval}"),
        (Verdict::Larger, Better::Higher) | (Verdict::Smaller, Better::Lower) => format!("{times} {interval} {better}"),
        (Verdict::Larger, Better::Lower) | (Verdict::Smaller, Better::Higher) => format!("{times} {interval} worse"),
        _ => format!("{times} {interval}"),
    }
}

#[cfg(test)]
mod tests;
