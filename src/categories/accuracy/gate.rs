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
}

impl Compared {
    /// Score ÷ reference, or reference ÷ score where smaller is better: below 1 is worse than the reference. A
    /// reference of zero is reached by any score.
    pub fn ratio(&self) -> f64 {
        let lower = metrics::find_task_figure(&self.metric).is_some_and(|figure| figure.better == Better::Lower);
        let (share, of) = if lower { (self.reference, self.score) } else { (self.score, self.reference) };
        if of == 0.0 { 1.0 } else { share / of }
    }
}

/// How a cell stands to its floor.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Whether every task keeps it.
    pub passes: bool,
    /// The smallest ratio.
    pub ratio: f64,
    /// The task of the smallest ratio, both scores, the floor.
    pub detail: String,
}

impl Gate {
    /// The verdict over all tasks; `None` without tasks.
    pub fn of(tasks: &[Compared], floor: f64) -> Option<Self> {
        let worst = tasks.iter().min_by(|a, b| a.ratio().total_cmp(&b.ratio()))?;
        let ratio = worst.ratio();
        let detail = format!(
            "{} {} {} of {} (ratio {}, floor {floor})",
            worst.task,
            worst.metric,
            units::significant(worst.score, 4),
            units::significant(worst.reference, 4),
            units::significant(ratio, 4),
        );
        // A ratio of equal scores is 1 exactly; the slack is for a floor such as 0.99 that no double holds.
        Some(Self { passes: ratio >= floor - 1e-12, ratio, detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(metric: &str, score: f64, reference: f64) -> Compared {
        Compared { task: "t".into(), metric: metric.into(), score, reference }
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
        assert!(!gate.passes && (gate.ratio - 61.0 / 64.0).abs() < 1e-12);
    }

    #[test]
    fn a_reference_of_zero_is_reached() {
        assert!(Gate::of(&[compared("acc", 0.0, 0.0), compared("acc", 0.3, 0.0)], 0.99).unwrap().passes);
    }
}
