//! The gate: whether a cell's answers are good enough for its speed to count (MLPerf's accuracy targets).

use crate::metrics::{self, Better};
use crate::units;

/// A task's score beside its reference's.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The task.
    pub task: String,
    /// The figure that stands for it.
    pub metric: String,
    /// The cell's.
    pub score: f64,
    /// The reference's.
    pub reference: f64,
    /// The difference of the shares of right items, and its standard error over the pairs; `None` for perplexities.
    pub difference: Option<(f64, f64)>,
}

impl Compared {
    /// Score ÷ reference, or reference ÷ score where smaller is better: below 1 is worse than the reference. `None`
    /// where it would be divided by zero, which any score reaches.
    pub fn ratio(&self) -> Option<f64> {
        let lower = metrics::find_task_figure(&self.metric).is_some_and(|figure| figure.better == Better::Lower);
        let (share, of) = if lower { (self.reference, self.score) } else { (self.score, self.reference) };
        (of != 0.0).then(|| share / of)
    }
}

/// How a cell stands to its floor.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Whether every task keeps it.
    pub passes: bool,
    /// The smallest ratio; `None` where no task has one.
    pub ratio: Option<f64>,
    /// The task of the smallest ratio, both scores, the floor, and how sure their difference is.
    pub detail: String,
}

impl Gate {
    /// The verdict over all tasks; `None` without tasks.
    pub fn of(tasks: &[Compared], floor: f64) -> Option<Self> {
        let ratio = |task: &Compared| task.ratio().unwrap_or(f64::INFINITY);
        let worst = tasks.iter().min_by(|a, b| ratio(a).total_cmp(&ratio(b)))?;
        let Compared { task, metric, score, reference, .. } = worst;
        let (score, reference) = (units::significant(*score, 4), units::significant(*reference, 4));
        let ratio = worst.ratio();
        let share = ratio.map_or("no ratio to 0".to_owned(), |ratio| format!("ratio {}", units::significant(ratio, 4)));
        let passes = ratio.is_none_or(|ratio| ratio >= floor - SLACK);
        let sure = worst.difference.filter(|_| !passes).map_or(String::new(), |(difference, stderr)| {
            let within = if difference.abs() <= 2.0 * stderr { "within" } else { "beyond" };
            let stderr = units::significant(stderr, 2);
            format!("; the difference is {within} two standard errors of {stderr}")
        });
        let detail = format!("{task} {metric} {score} of {reference} ({share}, floor {floor}{sure})");
        Some(Self { passes, ratio, detail })
    }
}

/// Perplexities come from single-precision logits, and those of equal models agree to some 10⁻⁸; shares of equal models are
/// equal, and far from any floor by more than this otherwise.
const SLACK: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(metric: &str, score: f64, reference: f64) -> Compared {
        Compared { task: "t".into(), metric: metric.into(), score, reference, difference: None }
    }

    #[test]
    fn the_worst_task_decides() {
        let gate = Gate::of(&[compared("acc", 0.9, 0.9), compared("acc", 0.5, 0.6)], 0.99).unwrap();
        assert!(!gate.passes);
        assert_eq!(gate.detail, "t acc 0.5000 of 0.6000 (ratio 0.8333, floor 0.99)");
        assert!(Gate::of(&[compared("acc", 0.594, 0.6)], 0.99).unwrap().passes);
        assert!(!Gate::of(&[compared("acc", 0.5939, 0.6)], 0.99).unwrap().passes);
        assert!(Gate::of(&[], 0.99).is_none());
    }

    #[test]
    fn perplexities_are_better_when_smaller() {
        assert!(Gate::of(&[compared("word_perplexity", 60.0, 61.0)], 1.0).unwrap().passes);
        let gate = Gate::of(&[compared("word_perplexity", 64.0, 61.0)], 0.99).unwrap();
        assert!(!gate.passes && (gate.ratio.unwrap() - 61.0 / 64.0).abs() < 1e-12);
    }

    #[test]
    fn a_failure_says_how_sure_it_is() {
        let gate = |difference| Gate::of(&[Compared { difference, ..compared("acc", 0.40, 0.42) }], 0.99).unwrap();
        let detail = gate(Some((-0.02, 0.028))).detail;
        assert_eq!(
            detail,
            "t acc 0.4000 of 0.4200 (ratio 0.9524, floor 0.99; the difference is within two standard errors of 0.028)"
        );
        assert!(gate(Some((-0.02, 0.005))).detail.contains("beyond two standard errors"));
    }

    #[test]
    fn a_reference_of_zero_is_reached() {
        let gate = Gate::of(&[compared("acc", 0.0, 0.0), compared("acc", 0.3, 0.0)], 0.99).unwrap();
        assert!(gate.passes && gate.ratio.is_none());
        assert_eq!(gate.detail, "t acc 0 of 0 (no ratio to 0, floor 0.99)");
    }
}
