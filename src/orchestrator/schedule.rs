//! The order of jobs.
//!
//! Arms that will be compared (the backends of one configuration) run next to each other, and the order within a
//! round turns around from round to round (A B, B A, A B, …), so that a slow drift of the machine's speed falls on
//! all of them alike.

use crate::cell::Cell;
use crate::results::compare::same_configuration;
use crate::results::{JobKey, record};

/// All jobs of the cells, in the order in which they run.
pub fn order(cells: &[Cell]) -> Vec<JobKey> {
    let mut order = Vec::new();
    for (index, group) in groups(cells).into_iter().enumerate() {
        let mut rounds: Vec<Vec<JobKey>> = Vec::new();
        for cell in group {
            for (round, job) in record::jobs(cell).enumerate() {
                if rounds.len() <= round {
                    rounds.push(Vec::new());
                }
                rounds[round].push(job);
            }
        }
        for (round, mut jobs) in rounds.into_iter().enumerate() {
            if (round + index) % 2 == 1 {
                jobs.reverse();
            }
            order.extend(jobs);
        }
    }
    order
}

/// Cells that differ only in backend and flavour, in the order of each group's first cell.
fn groups(cells: &[Cell]) -> Vec<Vec<&Cell>> {
    let mut groups: Vec<Vec<&Cell>> = Vec::new();
    for cell in cells {
        match groups.iter_mut().find(|group| same_configuration(group[0], cell)) {
            Some(group) => group.push(cell),
            None => groups.push(vec![cell]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Category;
    use crate::engine::fake;

    fn text(cells: &[Cell]) -> Vec<String> {
        let word = |job: &JobKey| format!("{} {} {}", job.cell, job.category, job.process);
        order(cells).iter().map(word).collect()
    }

    #[test]
    fn arms_alternate() {
        let cells = ["cpu", "openvino"].map(|backend| fake::cell("m", backend));
        assert_eq!(
            text(&cells),
            [
                "m-cpu speed 0",
                "m-openvino speed 0",
                "m-openvino throughput 0",
                "m-cpu throughput 0",
                "m-cpu memory 0",
                "m-openvino memory 0",
                "m-openvino memory 1",
                "m-cpu memory 1",
            ]
        );
    }

    #[test]
    fn configurations_follow_each_other_and_start_with_another_arm() {
        let mut cells = Vec::new();
        for backend in ["cpu", "openvino"] {
            for model in ["a", "b"] {
                let mut cell = fake::cell(model, backend);
                cell.categories = vec![Category::Speed];
                cells.push(cell);
            }
        }
        assert_eq!(text(&cells), ["a-cpu speed 0", "a-openvino speed 0", "b-openvino speed 0", "b-cpu speed 0"]);
    }
}
