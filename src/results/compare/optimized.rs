//! The impact of optimizations as tables: one for each configuration and backend, a row for each optimization.

use std::fmt::Write;

use super::{WIDTH, heading};
use crate::cell::{Category, Cell, ImpactMetric, Status};
use crate::results::Outcome;
use crate::results::impact::{self, Comparison, Effect};
use crate::results::table::{Table, wrap};
use crate::units;

/// Whether nothing but the impact of optimizations is asked of a cell, so that it has no place among other arms.
pub fn only_impact(cell: &Cell) -> bool {
    cell.categories.iter().all(|category| *category == Category::OptimizationImpact) && !cell.categories.is_empty()
}

/// The tables; nothing where no cell measures the category.
pub fn render(outcomes: &[Outcome]) -> String {
    let compared = outcomes.iter().filter(|outcome| outcome.cell.categories.contains(&Category::OptimizationImpact));
    let mut groups: Vec<Vec<&Outcome>> = Vec::new();
    for outcome in compared {
        match groups.iter_mut().find(|group| same_but_optimizations(&group[0].cell, &outcome.cell)) {
            Some(group) => group.push(outcome),
            None => groups.push(vec![outcome]),
        }
    }
    let mut text = String::new();
    for group in &groups {
        write_group(&mut text, group);
    }
    if !groups.is_empty() {
        text.push_str(
            "Each optimization ran in pairs of fresh processes, without and with it in turn. × is the geometric mean of the pairs'\n\
             ratios, with its 95 % interval; it helps or hurts where the interval leaves out 1 and two runs without it differ by\n\
             less. Of the figures behind `also`, one row in four has one by chance. impact.csv has every figure.\n",
        );
    }
    text
}

fn same_but_optimizations(a: &Cell, b: &Cell) -> bool {
    let plain =
        |cell: &Cell| Cell { id: a.id.clone(), optimizations: None, offload_dir: None, accuracy: None, ..cell.clone() };
    plain(a) == plain(b)
}

fn write_group(text: &mut String, group: &[&Outcome]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} · {}: optimizations\n", heading(&group[..1]), group[0].cell.backend.name);
    let measured: Vec<_> = group.iter().filter(|outcome| outcome.impact.is_some()).collect();
    if !measured.is_empty() {
        let mut table = Table::new(["", "judged by", "without", "with", "", "answers"].map(str::to_owned).to_vec());
        for outcome in &measured {
            let Some(judged) = impact::judged(outcome) else { continue };
            table.row(vec![
                name(outcome),
                words(judged.metric).to_owned(),
                figure(judged.metric, judged.baseline),
                figure(judged.metric, judged.optimized),
                verdict(judged),
                answers(outcome),
            ]);
        }
        let _ = writeln!(text, "{table}");
    }
    let mut remarks = String::new();
    for outcome in &measured {
        let others = outcome.impact.iter().flat_map(|impact| &impact.comparisons);
        let objective = impact::objective(outcome);
        let changed = others.filter(|other| Some(other.metric) != objective && is_change(other.effect));
        let changed: Vec<_> = changed.map(|other| format!("{} {}", words(other.metric), verdict(other))).collect();
        if !changed.is_empty() {
            let line = format!("{} also: {}", name(outcome), changed.join("; "));
            let _ = writeln!(remarks, "{}", wrap(&line, WIDTH));
        }
    }
    for outcome in group.iter().filter(|outcome| outcome.status != Status::Measured) {
        let reason = outcome.reason.as_deref().unwrap_or("no reason was given");
        let _ = writeln!(remarks, "{}", wrap(&format!("{}: {}: {reason}", name(outcome), outcome.status), WIDTH));
        if let Some(hint) = &outcome.hint {
            let _ = writeln!(remarks, "{}", wrap(&format!("  hint: {hint}"), WIDTH));
        }
    }
    if !remarks.is_empty() {
        let _ = writeln!(text, "{remarks}");
    }
}

fn name(outcome: &Outcome) -> String {
    outcome.cell.optimizations.as_ref().map_or_else(|| "none".to_owned(), |plan| plan.to_string())
}

fn is_change(effect: Effect) -> bool {
    matches!(effect, Effect::Helps | Effect::Hurts)
}

fn words(metric: ImpactMetric) -> &'static str {
    match metric {
        ImpactMetric::Ttft => "time to first token",
        ImpactMetric::Decode => "decode, tokens/s",
        ImpactMetric::Throughput => "throughput, tokens/s",
        ImpactMetric::Load => "load",
        ImpactMetric::PeakAnonymous => "peak anonymous memory",
        ImpactMetric::PeakResident => "peak resident memory",
        ImpactMetric::BytesRead => "read from disk",
    }
}

fn figure(metric: ImpactMetric, value: f64) -> String {
    match metric {
        ImpactMetric::Ttft | ImpactMetric::Load => units::seconds(value),
        ImpactMetric::PeakAnonymous | ImpactMetric::PeakResident | ImpactMetric::BytesRead => {
            units::bytes(value as u64)
        }
        ImpactMetric::Decode | ImpactMetric::Throughput => units::significant(value, 3),
    }
}

fn verdict(comparison: &Comparison) -> String {
    let Some(ratio) = &comparison.ratio else {
        let (before, after) = (comparison.baseline, comparison.optimized);
        let shown = |value| figure(comparison.metric, value);
        return format!("{} → {} {}", shown(before), shown(after), comparison.effect.name());
    };
    let times = format!("×{}", units::significant(ratio.value, 3));
    match ratio.ci95 {
        Some(interval) => {
            let (low, high) = (units::significant(interval.low, 3), units::significant(interval.high, 3));
            format!("{times} [{low}, {high}] {}", comparison.effect.name())
        }
        None => format!("{times} {}", comparison.effect.name()),
    }
}

fn answers(outcome: &Outcome) -> String {
    use crate::protocol::FactValue;
    match outcome.facts.get("impact_identical") {
        Some(FactValue::Bool(true)) => "the same bits".to_owned(),
        Some(FactValue::Bool(false)) => {
            let kl = outcome.number("impact_kl_divergence_mean").unwrap_or(f64::NAN);
            let top1 = outcome.number("impact_top1_agreement_share").unwrap_or(f64::NAN);
            format!("KL {}, top-1 {:.1} %", units::significant(kl, 2), 100.0 * top1)
        }
        _ => "not compared".to_owned(),
    }
}
