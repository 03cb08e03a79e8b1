//! The impact of a cell's optimizations: what its pairs of processes come to, and `impact.csv`, a row for each figure of
//! each cell.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::cell::{Arm, Category, ImpactMetric};
use crate::optimizations;
use crate::results::columns::Kind;
use crate::results::folder::IMPACT;
use crate::results::side::{self, Row, SideColumn, SideTable};
use crate::results::{JobKey, JobResult, Outcome, Value};
use crate::stats::{self, Ratio};

/// What may be said of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The optimized arm is better, and by more than two runs of the baseline differ.
    Helps,
    /// It is worse, in the same sense.
    Hurts,
    /// Neither.
    NoDifference,
    /// Too few pairs for an interval.
    Undecided,
}

impl Effect {
    /// The words in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Helps => "helps",
            Self::Hurts => "hurts",
            Self::NoDifference => "no difference",
            Self::Undecided => "undecided",
        }
    }
}

/// One figure over all pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Which.
    pub metric: ImpactMetric,
    /// Pairs of processes.
    pub pairs: usize,
    /// Geometric mean over the baseline's processes of their medians (arithmetic where one is zero) …
    pub baseline: f64,
    /// … and over the optimized ones.
    pub optimized: f64,
    /// Optimized ÷ baseline; `None` where a value is zero.
    pub ratio: Option<Ratio>,
    /// By what factor two runs of the baseline that follow each other differ, as a median; `None` of one pair.
    pub noise: Option<f64>,
    /// What may be said.
    pub effect: Effect,
}

/// The impact of a cell's optimizations.
#[derive(Debug, Clone, PartialEq)]
pub struct Impact {
    /// Every figure that both arms measured, in the order of [`ImpactMetric`].
    pub comparisons: Vec<Comparison>,
}

impl Impact {
    /// Of a cell's jobs that were measured; `None` without a whole pair.
    pub fn of(jobs: &[(&JobKey, &JobResult)]) -> Option<Self> {
        let of_category = jobs.iter().filter(|(key, _)| key.category == Category::OptimizationImpact);
        let by_process: BTreeMap<u32, &JobResult> = of_category.map(|(key, job)| (key.process, *job)).collect();
        let comparison = |metric: &ImpactMetric| {
            let median = |process: u32| {
                let runs = by_process.get(&process)?.samples.iter().filter(|run| run.metric == metric.name());
                let values: Vec<f64> = runs.flat_map(|run| run.values.iter().copied()).collect();
                Some(stats::Summary::of(&values)?.median)
            };
            let (mut baseline, mut optimized) = (Vec::new(), Vec::new());
            for first in by_process.keys().copied().filter(|process| process % 2 == 0) {
                let (Some(one), Some(other)) = (median(first), median(first + 1)) else { continue };
                let (a, b) = if Arm::of_process(first) == Arm::Baseline { (one, other) } else { (other, one) };
                baseline.push(a);
                optimized.push(b);
            }
            Comparison::of(*metric, &baseline, &optimized)
        };
        let comparisons: Vec<_> = ImpactMetric::ALL.iter().filter_map(comparison).collect();
        (!comparisons.is_empty()).then_some(Self { comparisons })
    }

    /// The comparison of a figure.
    pub fn get(&self, metric: ImpactMetric) -> Option<&Comparison> {
        self.comparisons.iter().find(|comparison| comparison.metric == metric)
    }
}

impl Comparison {
    fn of(metric: ImpactMetric, baseline: &[f64], optimized: &[f64]) -> Option<Self> {
        if baseline.is_empty() {
            return None;
        }
        let ratio = Ratio::of_pairs(optimized, baseline);
        let noise = noise(baseline);
        let effect = match &ratio {
            Some(ratio) => judge(metric, ratio, noise),
            None => judge_zeros(metric, baseline, optimized),
        };
        Some(Self {
            metric,
            pairs: baseline.len(),
            baseline: centre(baseline),
            optimized: centre(optimized),
            ratio,
            noise,
            effect,
        })
    }

    /// In a few words: `1.12× helps`.
    fn words(&self) -> Option<String> {
        let ratio = self.ratio.as_ref()?;
        Some(format!("{} {:.3}× {}", short(self.metric), ratio.value, self.effect.name()))
    }
}

/// Smaller effects are of no use to anybody, however sure they are: sizes in bytes differ by next to nothing from process to
/// process.
const LEAST_EFFECT: f64 = 1.01;

/// The interval leaves out 1, and the ratio lies farther from it than the baseline from itself, and than a percent.
fn judge(metric: ImpactMetric, ratio: &Ratio, noise: Option<f64>) -> Effect {
    let Some(interval) = ratio.ci95 else { return Effect::Undecided };
    let size = ratio.value.ln().abs();
    if interval.contains(1.0) || size <= noise.unwrap_or(LEAST_EFFECT).max(LEAST_EFFECT).ln() {
        return Effect::NoDifference;
    }
    if (ratio.value > 1.0) == metric.higher_is_better() { Effect::Helps } else { Effect::Hurts }
}

/// Where an arm has a zero there is no ratio: only what is so in every pair is said.
fn judge_zeros(metric: ImpactMetric, baseline: &[f64], optimized: &[f64]) -> Effect {
    if baseline.len() < stats::PAIRS_FOR_INTERVAL {
        return Effect::Undecided;
    }
    let pairs = || baseline.iter().zip(optimized);
    if pairs().all(|(before, after)| after > before) == pairs().all(|(before, after)| after < before) {
        return Effect::NoDifference;
    }
    let more = pairs().all(|(before, after)| after > before);
    if more == metric.higher_is_better() { Effect::Helps } else { Effect::Hurts }
}

/// The median factor between baseline runs that follow each other.
fn noise(baseline: &[f64]) -> Option<f64> {
    let steps: Vec<f64> = baseline.windows(2).map(|pair| (pair[1] / pair[0]).ln().abs()).collect();
    let known = steps.iter().all(|step| step.is_finite());
    Some(stats::Summary::of(known.then_some(steps.as_slice())?)?.median.exp())
}

fn centre(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if values.iter().all(|value| *value > 0.0) {
        (values.iter().map(|value| value.ln()).sum::<f64>() / n).exp()
    } else {
        values.iter().sum::<f64>() / n
    }
}

/// The figure's name without what all of them have.
fn short(metric: ImpactMetric) -> &'static str {
    metric.name().trim_start_matches("impact_")
}

/// The figure by which the cell's optimizations are judged: that of the first of them.
pub fn objective(outcome: &Outcome) -> Option<ImpactMetric> {
    let plan = outcome.cell.optimizations.as_ref()?;
    match plan.switched.first() {
        Some(switched) => optimizations::objective(switched),
        None => Some(ImpactMetric::Decode),
    }
}

/// The comparison of that figure.
pub fn judged(outcome: &Outcome) -> Option<&Comparison> {
    outcome.impact.as_ref()?.get(objective(outcome)?)
}

/// What else changed, in words.
pub fn side_effects(outcome: &Outcome) -> Option<String> {
    let impact = outcome.impact.as_ref()?;
    let objective = objective(outcome);
    let others = impact.comparisons.iter().filter(|comparison| Some(comparison.metric) != objective);
    let changed = others.filter(|comparison| matches!(comparison.effect, Effect::Helps | Effect::Hurts));
    let words: Vec<_> = changed.filter_map(Comparison::words).collect();
    Some(if words.is_empty() { "none".to_owned() } else { words.join("; ") })
}

/// The table.
pub const TABLE: SideTable<Comparison> = SideTable {
    file: IMPACT,
    category: Category::OptimizationImpact,
    key: "impact_columns",
    rows: "A row for each figure of each cell whose optimizations are compared.",
    columns: || &COLUMNS,
    parts: |outcome| outcome.impact.as_ref().map_or(&[], |impact| &impact.comparisons),
};

const fn column(
    name: &'static str,
    kind: Kind,
    description: &'static str,
    get: fn(&Row<Comparison>) -> Option<Value>,
) -> SideColumn<Comparison> {
    SideColumn::new(name, "", kind, description, get)
}

/// Every column, in the order of the table.
pub static COLUMNS: LazyLock<Vec<SideColumn<Comparison>>> =
    LazyLock::new(|| side::identity().into_iter().chain(own_columns()).collect());

fn own_columns() -> [SideColumn<Comparison>; 17] {
    [
        column(
            "memory_budget_bytes",
            Kind::Integer,
            "What the loader was allowed to hold; empty without a budget.",
            |row| row.outcome.cell.memory.budget_bytes.map(Value::from),
        ),
        column(
            "memory_limit_bytes",
            Kind::Integer,
            "What the kernel allowed both arms; empty without a limit.",
            |row| row.outcome.cell.memory.limit_bytes.map(Value::from),
        ),
        column("batch", Kind::Integer, "Sequences of a run.", |row| Some(row.outcome.cell.workload.batch.into())),
        column("prompt_tokens", Kind::Integer, "Tokens of each prompt.", |row| {
            Some(row.outcome.cell.workload.prompt_tokens.into())
        }),
        column("generate_tokens", Kind::Integer, "Tokens generated after each prompt.", |row| {
            Some(row.outcome.cell.workload.generate_tokens.into())
        }),
        column(
            "optimizations",
            Kind::Text,
            "What the optimized arm switches on; `none` compares the cell with itself.",
            |row| row.outcome.cell.optimizations.as_ref().map(|plan| Value::Text(plan.to_string())),
        ),
        column("metric", Kind::Text, "The figure, named as in samples.csv.", |row| Some(row.part.metric.name().into())),
        column("objective", Kind::Bool, "Whether the technique is judged by this figure.", |row| {
            Some((objective(row.outcome) == Some(row.part.metric)).into())
        }),
        column("higher_is_better", Kind::Bool, "Whether more of it is better.", |row| {
            Some(row.part.metric.higher_is_better().into())
        }),
        column("pairs", Kind::Integer, "Pairs of processes, taken A B, B A, ….", |row| {
            Some((row.part.pairs as u64).into())
        }),
        column(
            "baseline",
            Kind::Float,
            "Geometric mean over the baseline's processes, each the median of its runs.",
            |row| Some(Value::Float(row.part.baseline)),
        ),
        column("optimized", Kind::Float, "The same of the optimized processes.", |row| {
            Some(Value::Float(row.part.optimized))
        }),
        column(
            "ratio",
            Kind::Float,
            "Geometric mean of the pairs' ratios, optimized ÷ baseline; empty where a value is zero.",
            |row| Some(Value::Float(row.part.ratio.as_ref()?.value)),
        ),
        column(
            "ratio_ci95_low",
            Kind::Float,
            "Lower end of its 95 % interval (Student's t of the pairs' logarithms); empty below 3 pairs.",
            |row| Some(Value::Float(row.part.ratio.as_ref()?.ci95?.low)),
        ),
        column("ratio_ci95_high", Kind::Float, "Upper end.", |row| {
            Some(Value::Float(row.part.ratio.as_ref()?.ci95?.high))
        }),
        column(
            "noise_ratio",
            Kind::Float,
            "By what factor two baseline processes that follow each other differ, as a median.",
            |row| row.part.noise.map(Value::Float),
        ),
        column(
            "verdict",
            Kind::Text,
            "`helps` or `hurts` where the interval leaves out 1 and the ratio is farther from it than `noise_ratio`, and than 1 %, `no difference` otherwise, `undecided` below 3 pairs.",
            |row| Some(row.part.effect.name().into()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(metric: ImpactMetric, baseline: &[f64], optimized: &[f64]) -> Effect {
        Comparison::of(metric, baseline, optimized).unwrap().effect
    }

    #[test]
    fn the_interval_and_the_noise_decide() {
        let steady = [100.0, 100.5, 99.8, 100.2, 100.1];
        let faster: Vec<f64> = steady.iter().map(|value| value * 1.1).collect();
        assert_eq!(effect(ImpactMetric::Decode, &steady, &faster), Effect::Helps);
        assert_eq!(effect(ImpactMetric::Ttft, &steady, &faster), Effect::Hurts);
        assert_eq!(effect(ImpactMetric::Decode, &steady, &steady), Effect::NoDifference);
        // As sure as can be, and too small to matter.
        assert_eq!(effect(ImpactMetric::PeakResident, &[1e9; 5], &[1.002e9; 5]), Effect::NoDifference);
        // A steady tenth more in pairs says little where two baselines differ by a third.
        let noisy = [100.0, 135.0, 99.0, 140.0, 101.0];
        let more: Vec<f64> = noisy.iter().map(|value| value * 1.1).collect();
        assert_eq!(effect(ImpactMetric::Decode, &noisy, &more), Effect::NoDifference);
        assert_eq!(effect(ImpactMetric::Decode, &steady[..2], &faster[..2]), Effect::Undecided);
    }

    #[test]
    fn zeros_have_no_ratio() {
        let none = [0.0; 3];
        assert_eq!(effect(ImpactMetric::BytesRead, &none, &[5.0, 6.0, 7.0]), Effect::Hurts);
        assert_eq!(effect(ImpactMetric::BytesRead, &none, &none), Effect::NoDifference);
        assert_eq!(effect(ImpactMetric::BytesRead, &none, &[0.0, 6.0, 7.0]), Effect::NoDifference);
        assert_eq!(effect(ImpactMetric::BytesRead, &[5.0, 6.0, 7.0], &none), Effect::Helps);
        assert!(Comparison::of(ImpactMetric::BytesRead, &none, &none).unwrap().ratio.is_none());
    }
}
