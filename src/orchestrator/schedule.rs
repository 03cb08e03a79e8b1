//! The order of jobs.
//!
//! Arms that will be compared (the backends of one configuration) run next to each other, and the order within a
//! round turns around from round to round (A B, B A, A B, …), so that a slow drift of the machine's speed falls on
//! all of them alike. The exception is the accuracy of a reference, which comes before that of the cells that are
//! compared with it.

use std::collections::{HashMap, HashSet};

use crate::cell::Cell;
use crate::orchestrator::references;
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
    references_first(order, cells)
}

/// Moves the accuracy job of a reference before the first job that reads its answers. Nothing else moves.
fn references_first(order: Vec<JobKey>, cells: &[Cell]) -> Vec<JobKey> {
    let cells: HashMap<_, _> = cells.iter().map(|cell| (&cell.id, cell)).collect();
    let reference = |job: &JobKey| references::of(cells.get(&job.cell)?, job.category).map(references::job);
    let known: HashSet<_> = order.iter().cloned().collect();
    let mut ordered = Vec::new();
    let mut placed = HashSet::new();
    for job in order {
        let before = reference(&job).filter(|before| *before != job && known.contains(before));
        for job in before.into_iter().chain([job]) {
            if placed.insert(job.clone()) {
                ordered.push(job);
            }
        }
    }
    ordered
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
    use proptest::prelude::*;

    use super::*;
    use crate::cell::{Category, CellId};
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

    #[test]
    fn a_reference_is_asked_before_those_that_are_compared_with_it() {
        let reference = CellId("z-cpu".to_owned());
        let mut cells = Vec::new();
        for model in ["a", "z"] {
            for backend in ["cpu", "openvino"] {
                let mut cell = fake::cell_with_accuracy(model, backend, Some(&reference));
                cell.categories = vec![Category::Speed, Category::Accuracy];
                cells.push(cell);
            }
        }
        assert_eq!(
            text(&cells),
            [
                "a-cpu speed 0",
                "a-openvino speed 0",
                "z-cpu accuracy 0",
                "a-openvino accuracy 0",
                "a-cpu accuracy 0",
                "z-openvino speed 0",
                "z-cpu speed 0",
                "z-openvino accuracy 0",
            ]
        );
        cells.retain(|cell| cell.id != reference);
        assert_eq!(order(&cells).len(), 6, "a reference that is not there is not run");
    }

    proptest! {
        /// Every job runs once, and none reads what is written after it.
        #[test]
        fn every_job_is_there_and_every_reference_early(references in prop::collection::vec(0..6_usize, 6), with in any::<u8>()) {
            let names: Vec<_> = (0..6).map(|index| ["a", "b", "c"][index / 2]).collect();
            let backends = ["cpu", "openvino"];
            let ids: Vec<_> = (0..6).map(|index| fake::cell(names[index], backends[index % 2]).id).collect();
            let cells: Vec<_> = (0..6)
                .map(|index| match with >> index & 1 {
                    0 => fake::cell(names[index], backends[index % 2]),
                    // References are their own, as the matrix file's are.
                    _ => {
                        let of = references[index] % 2;
                        fake::cell_with_accuracy(names[index], backends[index % 2], Some(&ids[of]))
                    }
                })
                .map(|mut cell| {
                    if let (Some(plan), true) = (&mut cell.accuracy, ids[..2].contains(&cell.id)) {
                        plan.reference = Some(cell.id.clone());
                    }
                    cell
                })
                .collect();
            let order = order(&cells);
            let mut all: Vec<_> = cells.iter().flat_map(record::jobs).collect();
            let mut sorted = order.clone();
            sorted.sort();
            all.sort();
            prop_assert_eq!(sorted, all);
            let place = |job: &JobKey| order.iter().position(|other| other == job);
            for cell in &cells {
                let Some(reference) = references::of(cell, Category::Accuracy) else { continue };
                let own = place(&references::job(&cell.id)).expect("its own job");
                if let Some(before) = place(&references::job(reference)) {
                    prop_assert!(before <= own);
                }
            }
        }
    }
}
