//! From a model's answers to outcomes of items and figures of the task (`docs/method.md`).

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::description::{Form, Inputs};
use super::{Ask, Item, TaskSet};
use crate::error::{Error, Result};
use crate::protocol::ItemResults;

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The item's id.
    pub id: String,
    /// Whether it was right; perplexity is neither right nor wrong.
    pub right: Option<bool>,
    /// What was answered: the index of a choice, a text after extraction and normalisation.
    pub chosen: Option<String>,
    /// Log-likelihood in nats of the right choice, of the continuation or of the document.
    pub log_likelihood: Option<f64>,
}

/// A task's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The figure that stands for the task, one of `figures`.
    pub metric: &'static str,
    /// Figures by name, each in `metrics::TASK_FIGURES`; a standard error only where there are two items or more.
    pub figures: BTreeMap<String, f64>,
    /// Figures of the items.
    pub items: Vec<ItemResults>,
    /// What became of each item, in order.
    pub outcomes: Vec<Outcome>,
}

/// How outcomes differ from a reference's ("Accuracy is not all you need", arXiv 2407.09141: flips are changes between
/// right and wrong).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flips {
    /// Items with another outcome or another answer.
    pub changed: usize,
    /// Those that the reference has wrong and the cell right.
    pub to_right: usize,
    /// Those that the reference has right and the cell wrong.
    pub to_wrong: usize,
    /// Items that are right or wrong at all.
    pub items: usize,
}

impl Flips {
    /// Items that are right in one and wrong in the other.
    pub fn flips(&self) -> usize {
        self.to_right + self.to_wrong
    }

    /// The difference of the two shares of right items, and its standard error over the pairs: that of a mean of
    /// differences of 1, 0 and −1. `None` below two items.
    pub fn difference(&self) -> Option<(f64, f64)> {
        let n = self.items as f64;
        let mean = (self.to_right as f64 - self.to_wrong as f64) / n;
        let variance = self.flips() as f64 / n - mean * mean;
        (self.items > 1).then(|| (mean, (variance / (n - 1.0)).sqrt()))
    }
}

/// Collects a task's answers, in any order.
#[derive(Debug)]
pub struct Scores<'s> {
    set: &'s TaskSet,
    answers: Vec<Option<Answer>>,
}

#[derive(Debug, Clone)]
struct Answer {
    outcome: Outcome,
    /// Of a choice, right by log-likelihoods as they are, divided by the choices' characters, and by their bytes.
    choices: [bool; 3],
    /// Index of the largest log-likelihood.
    likeliest: usize,
}

/// The figures of a choice, in the order of [`Answer::choices`].
const CHOICE_FIGURES: [&str; 3] = ["acc", "acc_norm", "acc_bytes"];

impl<'s> Scores<'s> {
    /// None yet.
    pub fn new(set: &'s TaskSet) -> Self {
        Self { set, answers: vec![None; set.items.len()] }
    }

    /// A choice's item: the log-likelihood of each pair, in nats.
    ///
    /// # Errors
    /// Another number of them than of pairs, one that is no number, an item of another kind.
    pub fn choice(&mut self, index: usize, log_likelihoods: &[f64]) -> Result<&Outcome> {
        let item = self.item(index)?;
        let Ask::Choice { choices, answer, .. } = &item.ask else { return Err(other_kind(item)) };
        if log_likelihoods.len() != choices.len() {
            let (found, count) = (log_likelihoods.len(), choices.len());
            return Err(Error::new(format!("the item `{}` has {count} choices, and {found} were scored", item.id)));
        }
        for (choice, value) in log_likelihoods.iter().enumerate() {
            finite(*value, &format!("of choice {choice} of the item `{}`", item.id))?;
        }
        let by = |length: fn(&str) -> usize| {
            let normed: Vec<f64> =
                choices.iter().zip(log_likelihoods).map(|(choice, value)| value / length(choice) as f64).collect();
            largest(&normed)
        };
        let chosen = [largest(log_likelihoods), by(|choice| choice.chars().count()), by(str::len)];
        // What counts as the answer is what the task's main figure counts.
        let main = CHOICE_FIGURES.iter().position(|figure| *figure == self.set.metric).unwrap_or(0);
        let outcome = Outcome {
            id: item.id.clone(),
            right: Some(chosen[main] == *answer),
            chosen: Some(chosen[main].to_string()),
            log_likelihood: Some(log_likelihoods[*answer]),
        };
        let answer = Answer { outcome, choices: chosen.map(|chosen| chosen == *answer), likeliest: chosen[0] };
        Ok(&self.answers[index].insert(answer).outcome)
    }

    /// A given continuation: its log-likelihood in nats, and whether each of its tokens is the most likely one.
    ///
    /// # Errors
    /// A value that is no number, an item of another kind.
    pub fn continuation(&mut self, index: usize, log_likelihood: f64, greedy: bool) -> Result<&Outcome> {
        let item = self.item(index)?;
        let Ask::Continuation { .. } = item.ask else { return Err(other_kind(item)) };
        finite(log_likelihood, &format!("of the continuation of the item `{}`", item.id))?;
        let log_likelihood = Some(log_likelihood);
        let outcome = Outcome { id: item.id.clone(), right: Some(greedy), chosen: None, log_likelihood };
        Ok(self.keep(index, outcome))
    }

    /// A document: its log-likelihood in nats, all windows together.
    ///
    /// # Errors
    /// A value that is no number, an item of another kind.
    pub fn perplexity(&mut self, index: usize, log_likelihood: f64) -> Result<&Outcome> {
        let item = self.item(index)?;
        let Ask::Perplexity { .. } = item.ask else { return Err(other_kind(item)) };
        finite(log_likelihood, &format!("of the document `{}`", item.id))?;
        let outcome = Outcome { id: item.id.clone(), right: None, chosen: None, log_likelihood: Some(log_likelihood) };
        Ok(self.keep(index, outcome))
    }

    /// What the model wrote; it is cut at its stop here.
    ///
    /// # Errors
    /// A regular expression of the description that needs too many steps, an item of another kind.
    pub fn generation(&mut self, index: usize, text: &str) -> Result<&Outcome> {
        let item = self.item(index)?;
        let Ask::Generation { answers, .. } = &item.ask else { return Err(other_kind(item)) };
        let (chosen, right) = self.set.description.judging.judge(self.set.stops.apply(text), answers)?;
        let outcome = Outcome { id: item.id.clone(), right: Some(right), chosen: Some(chosen), log_likelihood: None };
        Ok(self.keep(index, outcome))
    }

    /// Whether an item's program ended with success.
    ///
    /// # Errors
    /// An item of another kind.
    pub fn code(&mut self, index: usize, passed: bool) -> Result<&Outcome> {
        let item = self.item(index)?;
        let Ask::Code { .. } = item.ask else { return Err(other_kind(item)) };
        let outcome = Outcome { id: item.id.clone(), right: Some(passed), chosen: None, log_likelihood: None };
        Ok(self.keep(index, outcome))
    }

    /// The figures, once every item has its answer.
    ///
    /// # Errors
    /// Items without answer; a perplexity beyond what a number can hold.
    pub fn finish(self) -> Result<Scored> {
        let missing = self.answers.iter().filter(|answer| answer.is_none()).count();
        if missing > 0 {
            return Err(Error::invalid(format!(
                "{missing} of the task's {} items were not scored",
                self.answers.len()
            )));
        }
        let set = self.set;
        let answers: Vec<Answer> = self.answers.into_iter().flatten().collect();
        let right: Vec<bool> = answers.iter().map(|answer| answer.outcome.right == Some(true)).collect();
        let mut figures = BTreeMap::new();
        match &set.description.form {
            Form::Choice { inputs, .. } => {
                // Of contexts, lengths say nothing.
                let count = if matches!(inputs, Inputs::Continuations { .. }) { CHOICE_FIGURES.len() } else { 1 };
                for (which, name) in CHOICE_FIGURES.into_iter().enumerate().take(count) {
                    let right: Vec<bool> = answers.iter().map(|answer| answer.choices[which]).collect();
                    add_share(&mut figures, name, &right);
                }
            }
            Form::Continuation { .. } => {
                add_share(&mut figures, "acc", &right);
                add_perplexity(&mut figures, &answers);
            }
            Form::Perplexity { .. } => add_perplexities(&mut figures, &set.items, &answers),
            Form::Generation { .. } => add_share(&mut figures, "exact_match", &right),
            Form::Code { .. } => add_share(&mut figures, "pass_at_1", &right),
        }
        figures.retain(|_, value| value.is_finite());
        if !figures.contains_key(set.metric) {
            return Err(Error::invalid(format!("the {} of these items is no finite number", set.metric))
                .hint("the texts may be empty, or so unlikely that it is beyond what a number can hold"));
        }
        let items = item_figures(set, &answers);
        let outcomes: Vec<Outcome> = answers.into_iter().map(|answer| answer.outcome).collect();
        Ok(Scored { metric: set.metric, figures, items, outcomes })
    }

    fn item(&self, index: usize) -> Result<&'s Item> {
        let count = self.set.items.len();
        self.set.items.get(index).ok_or_else(|| Error::new(format!("there is no item {index} among {count}")))
    }

    fn keep(&mut self, index: usize, outcome: Outcome) -> &Outcome {
        &self.answers[index].insert(Answer { outcome, choices: [false; 3], likeliest: 0 }).outcome
    }
}

/// Counts how outcomes differ from a reference's for the same items.
///
/// # Errors
/// Other items.
pub fn compare(outcomes: &[Outcome], reference: &[Outcome]) -> Result<Flips> {
    let same = outcomes.len() == reference.len() && outcomes.iter().zip(reference).all(|(a, b)| a.id == b.id);
    if !same {
        return Err(
            Error::new("the reference answered other items").hint("run it again with the same tasks and limits")
        );
    }
    let mut flips = Flips::default();
    for (ours, theirs) in outcomes.iter().zip(reference) {
        flips.items += usize::from(ours.right.is_some());
        flips.changed += usize::from(ours.right != theirs.right || ours.chosen != theirs.chosen);
        flips.to_right += usize::from(ours.right == Some(true) && theirs.right == Some(false));
        flips.to_wrong += usize::from(ours.right == Some(false) && theirs.right == Some(true));
    }
    Ok(flips)
}

fn other_kind(item: &Item) -> Error {
    Error::new(format!("the item `{}` asks for something else", item.id))
}

fn finite(value: f64, what: &str) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(format!("the log-likelihood {what} is {value}"))
        .hint("logits were no numbers: try another precision, flavour or provider"))
}

/// Index of the largest value, the first among equals, as numpy's argmax.
fn largest(values: &[f64]) -> usize {
    values.iter().enumerate().fold(0, |best, (index, value)| if *value > values[best] { index } else { best })
}

/// A share and its standard error √(p(1−p)/(n−1)), which is the sample's standard deviation ÷ √n.
fn add_share(figures: &mut BTreeMap<String, f64>, name: &str, right: &[bool]) {
    let n = right.len() as f64;
    let share = right.iter().filter(|right| **right).count() as f64 / n;
    figures.insert(name.to_owned(), share);
    if right.len() > 1 {
        figures.insert(format!("{name}_stderr"), (share * (1.0 - share) / (n - 1.0)).sqrt());
    }
}

/// Resamples; fewer where there are very many items, whose standard error is small anyway.
const RESAMPLES: usize = 10_000;
const MAX_DRAWS: usize = 10_000_000;
const SEED: u64 = 0x7065_7270_6c65_7869;

/// Figures of sums over items, and their standard errors by the bootstrap (Efron 1979): items are resampled, each with
/// all that belongs to it, and the standard error is the sample's standard deviation of what the resamples give.
fn add_bootstrapped<const SUMS: usize, const FIGURES: usize>(
    figures: &mut BTreeMap<String, f64>,
    names: [&str; FIGURES],
    items: &[[f64; SUMS]],
    of: impl Fn([f64; SUMS]) -> [f64; FIGURES],
) {
    let add = |mut sums: [f64; SUMS], item: &[f64; SUMS]| {
        sums.iter_mut().zip(item).for_each(|(sum, value)| *sum += value);
        sums
    };
    for (name, value) in names.iter().zip(of(items.iter().fold([0.0; SUMS], add))) {
        figures.insert((*name).to_owned(), value);
    }
    let n = items.len();
    if n < 2 {
        return;
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let rounds = (MAX_DRAWS / n).clamp(200, RESAMPLES);
    let drawn: Vec<[f64; FIGURES]> = (0..rounds)
        .map(|_| of((0..n).fold([0.0; SUMS], |sums, _| add(sums, &items[random.random_range(0..n)]))))
        .collect();
    for (which, name) in names.iter().enumerate() {
        let mean = drawn.iter().map(|values| values[which]).sum::<f64>() / rounds as f64;
        let squares = drawn.iter().map(|values| (values[which] - mean).powi(2)).sum::<f64>();
        figures.insert(format!("{name}_stderr"), (squares / (rounds as f64 - 1.0)).sqrt());
    }
}

/// What a corpus of documents says: perplexity by word and by byte, bits a byte.
fn add_perplexities(figures: &mut BTreeMap<String, f64>, items: &[Item], answers: &[Answer]) {
    let documents: Vec<[f64; 3]> = items
        .iter()
        .zip(answers)
        .filter_map(|(item, answer)| match (&item.ask, answer.outcome.log_likelihood) {
            (Ask::Perplexity { words, bytes, .. }, Some(value)) => Some([value, *words as f64, *bytes as f64]),
            _ => None,
        })
        .collect();
    let names = ["word_perplexity", "byte_perplexity", "bits_per_byte"];
    add_bootstrapped(figures, names, &documents, |[log_likelihood, words, bytes]| {
        let per_byte = -log_likelihood / bytes;
        [(-log_likelihood / words).exp(), per_byte.exp(), per_byte / std::f64::consts::LN_2]
    });
}

/// The perplexity of given continuations: each counts once, however many tokens it has.
fn add_perplexity(figures: &mut BTreeMap<String, f64>, answers: &[Answer]) {
    let items: Vec<[f64; 2]> =
        answers.iter().filter_map(|answer| answer.outcome.log_likelihood).map(|value| [value, 1.0]).collect();
    add_bootstrapped(figures, ["perplexity"], &items, |[log_likelihood, n]| [(-log_likelihood / n).exp()]);
}

/// What the figures of the task can be computed from again.
fn item_figures(set: &TaskSet, answers: &[Answer]) -> Vec<ItemResults> {
    let ids: Vec<String> = answers.iter().map(|answer| answer.outcome.id.clone()).collect();
    let results = |metric: &str, value: &dyn Fn(usize, &Answer) -> f64| ItemResults {
        task: set.name.clone(),
        metric: metric.to_owned(),
        ids: ids.clone(),
        values: answers.iter().enumerate().map(|(index, answer)| value(index, answer)).collect(),
    };
    let one = |right: bool| f64::from(u8::from(right));
    let right = |_: usize, answer: &Answer| one(answer.outcome.right == Some(true));
    let log_likelihood = |_: usize, answer: &Answer| answer.outcome.log_likelihood.unwrap_or_default();
    match &set.description.form {
        Form::Choice { inputs, .. } => {
            let mut items = vec![
                results("item_acc", &|_, answer| one(answer.choices[0])),
                results("item_choice", &|_, answer| answer.likeliest as f64),
                results("item_log_likelihood", &log_likelihood),
            ];
            if matches!(inputs, Inputs::Continuations { .. }) {
                items.push(results("item_acc_norm", &|_, answer| one(answer.choices[1])));
                items.push(results("item_acc_bytes", &|_, answer| one(answer.choices[2])));
            }
            items
        }
        Form::Continuation { .. } => {
            vec![results("item_acc", &right), results("item_log_likelihood", &log_likelihood)]
        }
        Form::Perplexity { .. } => {
            let count = |of: fn(&Ask) -> usize| move |index: usize, _: &Answer| of(&set.items[index].ask) as f64;
            let words = |ask: &Ask| if let Ask::Perplexity { words, .. } = ask { *words } else { 0 };
            let bytes = |ask: &Ask| if let Ask::Perplexity { bytes, .. } = ask { *bytes } else { 0 };
            vec![
                results("item_log_likelihood", &log_likelihood),
                results("item_words", &count(words)),
                results("item_bytes", &count(bytes)),
            ]
        }
        Form::Generation { .. } => vec![results("item_exact_match", &right)],
        Form::Code { .. } => vec![results("item_pass", &right)],
    }
}
