//! Which of a model's parts a stage gets: contiguous ones, so that the slowest stage is as fast as it can be.

use std::ops::Range;

/// Parts of each stage, in order; together they are all parts.
pub type Cut = Vec<Range<usize>>;

/// Cuts parts of these costs into so many stages, none of them empty, so that the largest sum is the least possible; of
/// several such cuts the one whose last stages are the smallest. `None` where there are fewer parts than stages, or
/// none at all.
///
/// `best[k][n]` is the least largest sum of the first `n` parts in `k` stages: dynamic programming over the last
/// stage's first part.
pub fn balance(costs: &[f64], stages: usize) -> Option<Cut> {
    if stages == 0 || costs.len() < stages {
        return None;
    }
    let count = costs.len();
    let mut sums = vec![0.0; count + 1];
    for (place, cost) in costs.iter().enumerate() {
        sums[place + 1] = sums[place] + cost;
    }
    let mut best = vec![vec![f64::INFINITY; count + 1]; stages + 1];
    let mut first = vec![vec![0; count + 1]; stages + 1];
    best[0][0] = 0.0;
    for stage in 1..=stages {
        for end in stage..=count {
            for start in stage - 1..end {
                let largest = best[stage - 1][start].max(sums[end] - sums[start]);
                // Later starts win where they are as good: what comes after the last layer is often large.
                if largest <= best[stage][end] {
                    best[stage][end] = largest;
                    first[stage][end] = start;
                }
            }
        }
    }
    let (mut cut, mut end) = (Vec::with_capacity(stages), count);
    for stage in (1..=stages).rev() {
        let start = first[stage][end];
        cut.push(start..end);
        end = start;
    }
    cut.reverse();
    Some(cut)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn largest(costs: &[f64], cut: &Cut) -> f64 {
        cut.iter().map(|range| costs[range.clone()].iter().sum::<f64>()).fold(0.0, f64::max)
    }

    /// Every way to cut into so many stages.
    fn all(count: usize, stages: usize) -> Vec<Cut> {
        if stages == 1 {
            return vec![std::iter::once(0..count).collect()];
        }
        let mut cuts = Vec::new();
        for start in stages - 1..count {
            for mut cut in all(start, stages - 1) {
                cut.push(start..count);
                cuts.push(cut);
            }
        }
        cuts
    }

    #[test]
    fn the_slowest_stage_is_as_fast_as_it_can_be() {
        assert_eq!(balance(&[1.0, 1.0, 1.0, 1.0], 2), Some(vec![0..2, 2..4]));
        assert_eq!(balance(&[0.1, 1.0, 1.0, 1.0, 1.0, 3.0], 2), Some(vec![0..4, 4..6]));
        assert_eq!(balance(&[5.0], 1), Some(std::iter::once(0..1).collect()));
        assert_eq!(balance(&[5.0], 2), None);
        assert_eq!(balance(&[5.0], 0), None);
        assert_eq!(balance(&[], 0), None);
    }

    proptest! {
        #[test]
        fn no_cut_is_better(costs in prop::collection::vec(0.0..10.0_f64, 1..9), stages in 1..5_usize) {
            let Some(cut) = balance(&costs, stages) else {
                prop_assert!(costs.len() < stages);
                return Ok(());
            };
            prop_assert_eq!(cut.len(), stages);
            prop_assert_eq!((cut[0].start, cut[stages - 1].end), (0, costs.len()));
            prop_assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert!(cut.iter().all(|range| !range.is_empty()));
            let best = all(costs.len(), stages).iter().map(|cut| largest(&costs, cut)).fold(f64::INFINITY, f64::min);
            prop_assert!(largest(&costs, &cut) <= best + 1e-9);
        }
    }
}
