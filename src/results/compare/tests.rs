use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::cell::Precision;
use crate::engine::fake;
use crate::protocol;
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
            if category == Category::Accuracy {
                end.tasks = fake::tasks(cell).0;
            }
            if cell.backend.name == "openvino" {
                end.facts.insert("fallback_nodes".into(), 2_u64.into());
            }
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

#[test]
fn flavours_are_compared_apart_where_every_backend_has_them_and_together_where_not() {
    let arm = |backend, flavour| {
        let mut cell = fake::cell("tiny", backend);
        cell.flavour = flavour;
        cell.categories = vec![Category::Throughput];
        outcome(&cell, None)
    };
    use Flavour::{Fused, Plain};
    let crossed = [arm("cpu", Fused), arm("openvino", Fused), arm("cpu", Plain), arm("openvino", Plain)];
    assert_eq!(groups(&crossed).iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(groups(&crossed[1..]).iter().map(Vec::len).collect::<Vec<_>>(), [3]);
    insta::assert_snapshot!("three_arms", render(&crossed[1..]));
}

#[test]
fn an_arm_below_the_floor_wins_nothing() {
    let reference = fake::cell_with_accuracy("tiny", "cpu", None).id;
    let mut arms = ["cpu", "openvino"].map(|backend| {
        let cell = fake::cell_with_accuracy("tiny", backend, Some(&reference));
        outcome(&cell, None)
    });
    let fact = |name: &str, value: &str| (name.to_owned(), value.into());
    arms[1]
        .facts
        .extend([fact("accuracy_gate", "fail"), fact("accuracy_gate_detail", "recall 0.31 of 0.42 (floor 0.99)")]);
    let text = render(&arms);
    assert!(!text.lines().any(|line| line.ends_with("better")), "{text}");
    insta::assert_snapshot!("below_the_floor", text);

    arms[1].tasks[0].hash = "another".to_owned();
    let many = (0..8).map(|index| protocol::TaskResult { task: format!("t{index}"), ..arms[1].tasks[1].clone() });
    arms[1].tasks.extend(many.collect::<Vec<_>>());
    let text = render(&arms);
    assert!(text.contains("the task `recall` did not ask the same"), "{text}");
    assert!(
        text.contains("t3, word_perplexity (1)") && !text.contains("t4,") && text.contains("4 in tasks.csv"),
        "{text}"
    );
}

#[test]
fn an_arm_whose_answers_nobody_knows_is_marked() {
    let reference = fake::cell("tiny", "cpu").id;
    let arms = ["cpu", "openvino"].map(|backend| {
        let cell = fake::cell_with_accuracy("tiny", backend, Some(&reference));
        outcome(&cell, (backend == "openvino").then_some(Category::Accuracy))
    });
    let text = render(&arms);
    assert!(text.contains("cpu              openvino (accuracy unknown)   against cpu"), "{text}");
    assert!(text.contains("openvino: failed: accuracy: it fell over"), "{text}");
}

#[test]
fn the_reference_is_named_where_it_stands() {
    let mut reference = fake::cell_with_accuracy("tiny", "cpu", None);
    reference.id.0.push_str("-1a2b");
    reference.precision = Precision::Fp32;
    let id = reference.id.clone();
    let of_id = |mut cell: Cell| {
        cell.accuracy.as_mut().expect("a plan").reference = Some(id.clone());
        outcome(&cell, None)
    };
    let arms = ["cpu", "openvino"].map(|backend| of_id(fake::cell_with_accuracy("tiny", backend, None)));
    let reference = of_id(reference);
    let named = "reference: tiny fp32 fused on cpu\n";
    let text = render(&[&arms[..], std::slice::from_ref(&reference)].concat());
    assert_eq!(text.matches(named).count(), 1, "{text}");
    let own = &text[text.find("tiny · fp32").expect("a table of its own")..];
    assert!(own.contains("(this one)") && !own.contains("KL to") && !own.contains("reference:"), "{own}");

    let unfinished = render(&arms);
    assert!(unfinished.contains("reference: `tiny-cpu-1a2b`, which is not finished"), "{unfinished}");
    let mut elsewhere = reference;
    elsewhere.cell.threads = 8;
    let text = render(&[&arms[..], &[elsewhere]].concat());
    assert!(text.contains("reference: tiny fp32 fused on cpu, threads 8"), "{text}");
}

#[test]
fn flips_are_told_from_other_wrong_answers() {
    let reference = fake::cell("tiny", "cpu").id;
    let mut arms =
        ["cpu", "openvino"].map(|backend| outcome(&fake::cell_with_accuracy("tiny", backend, Some(&reference)), None));
    let set = |arm: &mut Outcome, facts: &[(&str, u64)]| {
        ["answer_flips", "answers_changed", "flip_items"].iter().for_each(|fact| drop(arm.facts.remove(*fact)));
        arm.facts.extend(facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
    };
    let row = |text: &str, heading: &str| -> String {
        text.lines().find_map(|line| Some(line.trim().strip_prefix(heading)?.trim().to_owned())).unwrap_or_default()
    };
    let split = [("answer_flips_to_right", 13), ("answer_flips_to_wrong", 6)];
    let newer = [("answer_flips", 19), ("answers_changed", 26), ("flip_items", 292)];
    for (facts, items) in [(&newer[..], "292"), (&[("answer_flips", 26)][..], "4")] {
        set(&mut arms[1], &[&split[..], facts].concat());
        let text = render(&arms);
        assert_eq!(row(&text, "answers flipped"), format!("19 of {items} (13 to right, 6 to wrong)"), "{text}");
        assert_eq!(row(&text, "changed and still wrong"), "7", "{text}");
    }
    set(&mut arms[1], &[("answer_flips", 19)]);
    assert!(!render(&arms).contains("still wrong"), "none is");
}

#[test]
fn a_text_without_reference_has_its_perplexity() {
    let comparison = ["perplexity_ratio", "kl_divergence_mean", "top1_agreement_share", "answer_flips"];
    let arms = ["cpu", "openvino"].map(|backend| {
        let mut arm = outcome(&fake::cell_with_accuracy("tiny", backend, None), None);
        arm.facts.retain(|fact, _| !comparison.contains(&fact.as_str()));
        arm
    });
    let text = render(&arms);
    let row = text.lines().find(|line| line.starts_with("perplexity of the text")).expect("a row");
    assert!(row.split_whitespace().filter(|field| *field == "20.5").count() == 2, "{text}");
    assert!(text.contains("accuracy, ± is the standard error"), "{text}");

    let reference = arms[0].cell.id.clone();
    let mut compared =
        ["cpu", "openvino"].map(|backend| outcome(&fake::cell_with_accuracy("tiny", backend, Some(&reference)), None));
    assert!(!render(&compared).contains("perplexity of the text"), "the ratio says it");
    compared[1].facts.retain(|fact, _| !comparison.contains(&fact.as_str()));
    assert!(render(&compared).contains("perplexity of the text"), "one was not compared");

    let bare = arms.map(|mut arm| {
        arm.facts.clear();
        arm.tasks.clear();
        arm
    });
    assert!(!render(&bare).contains("standard error"), "{}", render(&bare));
}

#[test]
fn an_arm_without_accuracy_is_compared_all_the_same() {
    let with = fake::cell_with_accuracy("tiny", "cpu", None);
    let without = fake::cell("tiny", "openvino");
    assert!(same_configuration(&with, &without));
    let mut slower = without;
    slower.categories = vec![Category::Memory];
    assert!(!same_configuration(&with, &slower));
}
