//! The figures that workers report: one row each. A new metric is one row here; `results` makes its columns, their
//! statistics and their documentation from it.
//!
//! Definitions follow `docs/method.md`. Units stand in the names.

mod facts;
mod impact;
mod optimizations;
mod power;
mod series;
mod tasks;

pub use facts::{CEILINGS, FACTS, IDENTITY};
pub use impact::IMPACT_SERIES;
pub use power::{depends_on_meter, is_estimate};
pub use series::{MAY_BE_NEGATIVE, MAY_BE_ZERO, SERIES, is_empty_for};
pub use tasks::{ITEM_FIGURES, TASK_FIGURES, TaskFigure, find_item_figure, find_task_figure};

use crate::cell::Category;

/// Which direction is better, for comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A smaller value is better.
    Lower,
    /// A larger value is better.
    Higher,
    /// The figure describes, it does not judge.
    Neither,
}

/// A figure measured many times; results carry its count, centre, spread and interval.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    /// Name, with the unit at its end.
    pub name: &'static str,
    /// Unit in words.
    pub unit: &'static str,
    /// The category that measures it; `None` for figures that every category's process gives.
    pub category: Option<Category>,
    /// Direction of improvement.
    pub better: Better,
    /// Definition in one sentence.
    pub description: &'static str,
    /// True when percentiles of the distribution are of interest (latencies), not only its centre.
    pub percentiles: bool,
}

/// The kinds of a fact's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactKind {
    /// Yes or no.
    Bool,
    /// A count or a number of bytes.
    Integer,
    /// A quantity that cannot be zero when it was measured.
    Float,
    /// A score, a difference, an error: any finite number, zero among them.
    Score,
    /// A word or a sentence.
    Text,
}

/// A figure or word that a process gives once.
#[derive(Debug, Clone, Copy)]
pub struct Fact {
    /// Name, with the unit at its end where it has one.
    pub name: &'static str,
    /// Kind of the value.
    pub kind: FactKind,
    /// The category that gives it; `None` when every category's process does.
    pub category: Option<Category>,
    /// Definition in one sentence.
    pub description: &'static str,
}

/// Two parts of a table.
const fn joined<T: Copy, const N: usize>(first: &[T], second: &[T]) -> [T; N] {
    assert!(first.len() + second.len() == N);
    let mut all = [first[0]; N];
    let mut place = 1;
    while place < N {
        all[place] = if place < first.len() { first[place] } else { second[place - first.len()] };
        place += 1;
    }
    all
}

/// The ceiling of that name.
pub fn find_ceiling(name: &str) -> Option<&'static Fact> {
    CEILINGS.iter().find(|fact| fact.name == name)
}

/// The series of that name.
pub fn find_series(name: &str) -> Option<&'static Series> {
    SERIES.iter().chain(IMPACT_SERIES).find(|series| series.name == name)
}

/// The fact of that name.
pub fn find_fact(name: &str) -> Option<&'static Fact> {
    FACTS.iter().find(|fact| fact.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_snake_case() {
        let mut names: Vec<_> = SERIES
            .iter()
            .chain(IMPACT_SERIES)
            .map(|s| s.name)
            .chain(FACTS.iter().chain(CEILINGS).map(|f| f.name))
            .collect();
        assert!(names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_is_above_idle_may_be_below_it() {
        for series in SERIES.iter().filter(|series| series.name.contains("_above_idle_")) {
            assert!(MAY_BE_NEGATIVE.contains(&series.name), "{}", series.name);
        }
    }

    #[test]
    fn exceptions_name_series_that_exist() {
        for name in series::exceptions().chain(MAY_BE_ZERO).chain(MAY_BE_NEGATIVE) {
            assert!(find_series(name).is_some(), "{name}");
        }
        for name in IDENTITY {
            assert!(find_fact(name).is_some(), "{name}");
        }
    }
}
