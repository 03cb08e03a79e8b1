//! Figures.

use proptest::prelude::*;

use super::*;
use crate::metrics::{find_item_figure, find_task_figure};

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
}

fn choices(count: usize) -> TaskSet {
    let items: String =
        (0..count).map(|n| format!("{{\"q\": \"{n}\", \"options\": [\"é\", \"abc\"], \"label\": 0}}\n")).collect();
    load(CHOICE, &items).unwrap()
}

#[test]
fn shares_and_their_standard_errors() {
    let set = choices(4);
    let mut scores = Scores::new(&set);
    // Right; right by characters and bytes alone (−3 ÷ 3 against −1.5 ÷ 1 and ÷ 2); a tie, whose first wins; wrong.
    scores.choice(0, &[-1.0, -4.0]).unwrap();
    scores.choice(1, &[-1.5, -1.4]).unwrap();
    scores.choice(2, &[-2.0, -2.0]).unwrap();
    let last = scores.choice(3, &[-9.0, -1.0]).unwrap();
    assert_eq!((last.right, last.chosen.as_deref(), last.log_likelihood), (Some(false), Some("1"), Some(-9.0)));
    let scored = scores.finish().unwrap();
    near(scored.figures["acc"], 0.5);
    near(scored.figures["acc_stderr"], (0.25_f64 / 3.0).sqrt());
    // Item 0: −1 against −4/3. Item 1: −1.5 against −0.47. Item 2: −2 against −0.67. Item 3: −9 against −0.33.
    near(scored.figures["acc_norm"], 0.25);
    // Bytes of `é`: 2. Item 0: −0.5 against −1.33. Item 1: −0.75 against −0.47.
    near(scored.figures["acc_bytes"], 0.25);
    assert_eq!(scored.items[1].values, [0.0, 1.0, 0.0, 1.0]);
    assert_eq!(scored.items[2].values, [-1.0, -1.5, -2.0, -9.0]);
    for name in scored.figures.keys() {
        assert!(find_task_figure(name).is_some(), "{name}");
    }
    for item in &scored.items {
        assert!(find_item_figure(&item.metric).is_some(), "{}", item.metric);
    }
}

#[test]
fn one_item_has_no_standard_error() {
    let set = choices(1);
    let mut scores = Scores::new(&set);
    scores.choice(0, &[-1.0, -4.0]).unwrap();
    let scored = scores.finish().unwrap();
    assert_eq!(scored.figures.keys().collect::<Vec<_>>(), ["acc", "acc_bytes", "acc_norm"]);
}

#[test]
fn what_is_no_number_is_invalid() {
    let set = choices(2);
    let mut scores = Scores::new(&set);
    let error = scores.choice(1, &[-1.0, f64::NAN]).unwrap_err();
    assert_eq!(error.to_string(), "the log-likelihood of choice 1 of the item `line-2` is NaN");
    assert_eq!(error.root_kind(), crate::error::Kind::Invalid);
    assert!(scores.choice(0, &[-1.0]).is_err());
    assert!(scores.choice(2, &[-1.0, -1.0]).is_err());
    assert!(scores.perplexity(0, -1.0).is_err());
    assert!(scores.generation(0, "x").is_err());
    assert!(scores.code(0, true).is_err());
    assert_eq!(scores.finish().unwrap_err().to_string(), "2 of the task's 2 items were not scored");
}

#[test]
fn continuations_are_greedy_or_not_and_have_a_perplexity() {
    let items: String = (0..200).map(|n| format!("{{\"start\": \"a\", \"last\": \"{n}\"}}\n")).collect();
    let set = load(CONTINUATION, &items).unwrap();
    let mut scores = Scores::new(&set);
    let values: Vec<f64> = (0..200).map(|n| -2.0 - f64::from(n % 5) / 4.0).collect();
    for (index, value) in values.iter().enumerate() {
        let outcome = scores.continuation(index, *value, index % 4 == 0).unwrap();
        assert_eq!((outcome.right, outcome.log_likelihood), (Some(index % 4 == 0), Some(*value)));
    }
    let scored = scores.finish().unwrap();
    near(scored.figures["acc"], 0.25);
    near(scored.figures["acc_stderr"], (0.1875_f64 / 199.0).sqrt());
    near(scored.figures["perplexity"], 2.5_f64.exp());
    // The delta method: perplexity times the standard error of the mean log-likelihood.
    let squares: f64 = values.iter().map(|value| (value + 2.5).powi(2)).sum();
    let delta = 2.5_f64.exp() * (squares / 199.0 / 200.0).sqrt();
    let found = scored.figures["perplexity_stderr"];
    assert!((found / delta - 1.0).abs() < 0.05, "{found} {delta}");
    assert_eq!((scored.items[0].metric.as_str(), scored.items[0].values[4]), ("item_acc", 1.0));
    assert_eq!((scored.items[1].metric.as_str(), scored.items[1].values[4]), ("item_log_likelihood", -3.0));
    for name in scored.figures.keys() {
        assert!(find_task_figure(name).is_some(), "{name}");
    }
}

#[test]
fn a_continuation_that_is_no_number_is_invalid() {
    let set = load(CONTINUATION, "{\"start\": \"a\", \"last\": \"b\"}\n").unwrap();
    let mut scores = Scores::new(&set);
    let error = scores.continuation(0, f64::NAN, true).unwrap_err();
    assert_eq!(error.to_string(), "the log-likelihood of the continuation of the item `line-1` is NaN");
    assert!(scores.choice(0, &[-1.0]).is_err());
    let choices = choices(1);
    assert!(Scores::new(&choices).continuation(0, -1.0, true).is_err());
    // `acc` stands for the task, and a perplexity beyond all numbers is left out.
    scores.continuation(0, -1e6, false).unwrap();
    assert_eq!(scores.finish().unwrap().figures.keys().collect::<Vec<_>>(), ["acc"]);
}

#[test]
fn perplexities_weigh_documents_by_length() {
    let description = "version: 1\nname: p\nkind: perplexity\ndata: items.jsonl\ntext: \"{{ text }}\"\n";
    let set = load(description, "{\"text\": \"one two\"}\n{\"text\": \"three\"}\n").unwrap();
    let mut scores = Scores::new(&set);
    scores.perplexity(1, -4.0).unwrap();
    scores.perplexity(0, -5.0).unwrap();
    let scored = scores.finish().unwrap();
    near(scored.figures["word_perplexity"], 3.0_f64.exp());
    near(scored.figures["byte_perplexity"], 0.75_f64.exp());
    near(scored.figures["bits_per_byte"], 0.75 / std::f64::consts::LN_2);
    assert_eq!(scored.items[0].values, [-5.0, -4.0]);
    assert!(scored.outcomes.iter().all(|outcome| outcome.right.is_none()));
}

#[test]
fn the_bootstrap_agrees_with_the_usual_standard_error() {
    let description = "version: 1\nname: p\nkind: perplexity\ndata: items.jsonl\ntext: \"{{ text }}\"\n\
                       metric: bits_per_byte\n";
    let set = load(description, &"{\"text\": \"12345678\"}\n".repeat(100)).unwrap();
    let mut scores = Scores::new(&set);
    let bits: Vec<f64> = (0..100).map(|n| 1.0 + f64::from(n % 10) / 10.0).collect();
    for (index, bits) in bits.iter().enumerate() {
        scores.perplexity(index, -bits * 8.0 * std::f64::consts::LN_2).unwrap();
    }
    let figures = scores.finish().unwrap().figures;
    let mean = bits.iter().sum::<f64>() / 100.0;
    let usual = (bits.iter().map(|bit| (bit - mean).powi(2)).sum::<f64>() / 99.0 / 100.0).sqrt();
    near(figures["bits_per_byte"], mean);
    assert!(
        (figures["bits_per_byte_stderr"] / usual - 1.0).abs() < 0.05,
        "{} {usual}",
        figures["bits_per_byte_stderr"]
    );
}

#[test]
fn a_perplexity_beyond_all_numbers_is_invalid() {
    let description = "version: 1\nname: p\nkind: perplexity\ndata: items.jsonl\ntext: \"{{ text }}\"\n";
    let set = load(description, "{\"text\": \"one\"}\n").unwrap();
    let mut scores = Scores::new(&set);
    scores.perplexity(0, -1e6).unwrap();
    assert!(scores.finish().unwrap_err().to_string().contains("word_perplexity"));
}

#[test]
fn generated_answers_are_cut_and_compared() {
    let description = "version: 1\nname: g\nkind: generation\ndata: items.jsonl\ncontext: \"{{ q }}\"\nanswer: a\n\
                       until: [\"\\n\"]\n";
    let set = load(description, "{\"q\": \"16 + 9 =\", \"a\": 25}\n{\"q\": \"?\", \"a\": [\"x\", \"y\"]}\n").unwrap();
    let mut scores = Scores::new(&set);
    assert_eq!(scores.generation(0, " 25\n30 - 1").unwrap().chosen.as_deref(), Some("25"));
    scores.generation(1, "z").unwrap();
    let scored = scores.finish().unwrap();
    near(scored.figures["exact_match"], 0.5);
    assert_eq!((scored.metric, &scored.items[0].values[..]), ("exact_match", &[1.0, 0.0][..]));
}

#[test]
fn flips_count_answers_that_changed() {
    let outcome = |id: &str, right: bool, chosen: &str| Outcome {
        id: id.to_owned(),
        right: Some(right),
        chosen: Some(chosen.to_owned()),
        log_likelihood: None,
    };
    let reference =
        [outcome("a", true, "0"), outcome("b", false, "1"), outcome("c", false, "2"), outcome("d", true, "1")];
    let ours = [outcome("a", false, "3"), outcome("b", false, "2"), outcome("c", true, "0"), outcome("d", true, "1")];
    let flips = compare(&ours, &reference).unwrap();
    assert_eq!(flips, Flips { changed: 3, to_right: 1, to_wrong: 1, items: 4 });
    // Differences −1, 0, 1, 0: their mean is 0 and their deviation √(2/3).
    let (difference, stderr) = flips.difference().unwrap();
    assert_eq!((flips.flips(), difference), (2, 0.0));
    near(stderr, (2.0_f64 / 3.0 / 4.0).sqrt());
    assert!(compare(&ours[..2], &reference).is_err());
    let text = serde_json::to_string(&ours).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Outcome>>(&text).unwrap(), ours);
}

proptest! {
    #[test]
    fn any_finite_values_give_figures(values in prop::collection::vec(prop::array::uniform2(-1e3_f64..0.0), 1..8)) {
        let set = choices(values.len());
        let mut scores = Scores::new(&set);
        for (index, values) in values.iter().enumerate() {
            scores.choice(index, values).unwrap();
        }
        let scored = scores.finish().unwrap();
        prop_assert!((0.0..=1.0).contains(&scored.figures["acc"]));
        let same = Flips { items: values.len(), ..Flips::default() };
        prop_assert_eq!(compare(&scored.outcomes, &scored.outcomes).unwrap(), same);
    }
}
