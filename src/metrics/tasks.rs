//! Figures of a task set and of its items: one row each. `tasks.csv` has a column for each figure of a task set.
//!
//! Definitions follow lm-evaluation-harness where it has one, so that numbers compare (`docs/method.md`).

use super::Better::{self, Higher, Lower, Neither};

/// A figure of a task set; standard errors are figures of their own.
#[derive(Debug, Clone, Copy)]
pub struct TaskFigure {
    /// Name, as the harness has it.
    pub name: &'static str,
    /// Direction of improvement.
    pub better: Better,
    /// Definition in one sentence.
    pub description: &'static str,
}

/// Every figure of a task set, in the order of their columns.
pub const TASK_FIGURES: &[TaskFigure] = &[
    figure(
        "acc",
        Higher,
        "Share of items whose right choice has the largest log-likelihood; of given continuations, share of those whose \
         every token is the most likely one.",
    ),
    figure("acc_stderr", Neither, "Standard error of `acc`: √(p(1−p)/(n−1))."),
    figure(
        "acc_norm",
        Higher,
        "The same with each log-likelihood divided by its choice's length in characters, as the harness's acc_norm.",
    ),
    figure("acc_norm_stderr", Neither, "Standard error of `acc_norm`."),
    figure("acc_bytes", Higher, "The same with each log-likelihood divided by its choice's length in UTF-8 bytes."),
    figure("acc_bytes_stderr", Neither, "Standard error of `acc_bytes`."),
    figure(
        "exact_match",
        Higher,
        "Share of items whose answer, after the task's extraction and normalisation, is right.",
    ),
    figure("exact_match_stderr", Neither, "Standard error of `exact_match`."),
    figure("pass_at_1", Higher, "Share of items whose program ends with success within its limits."),
    figure("pass_at_1_stderr", Neither, "Standard error of `pass_at_1`."),
    figure("perplexity", Lower, "exp(−mean log-likelihood of the items' continuations)."),
    figure("perplexity_stderr", Neither, "Standard error by a bootstrap over items."),
    figure(
        "word_perplexity",
        Lower,
        "exp(−Σ log-likelihood ÷ Σ words), words between white space of the original text.",
    ),
    figure("word_perplexity_stderr", Neither, "Standard error by a bootstrap over documents."),
    figure("byte_perplexity", Lower, "exp(−Σ log-likelihood ÷ Σ UTF-8 bytes)."),
    figure("byte_perplexity_stderr", Neither, "Standard error by a bootstrap over documents."),
    figure("bits_per_byte", Lower, "−Σ log-likelihood ÷ Σ UTF-8 bytes ÷ ln 2."),
    figure("bits_per_byte_stderr", Neither, "Standard error by a bootstrap over documents."),
    figure("reference_score", Neither, "The reference cell's value of the figure that stands for the task."),
    figure(
        "of_reference_ratio",
        Higher,
        "Score ÷ the reference's score; where smaller is better, the reference's ÷ the cell's. Empty where that divides by 0.",
    ),
    figure("flips", Lower, "Items that are right in one and wrong in the other of cell and reference."),
    figure("flips_to_right", Neither, "Items that the reference has wrong and the cell right."),
    figure("flips_to_wrong", Lower, "Items that the reference has right and the cell wrong."),
    figure("answers_changed", Lower, "Items with another answer than the reference's, wrong in both among them."),
];

/// A figure of one item, a row of `samples.csv`.
pub const ITEM_FIGURES: &[TaskFigure] = &[
    figure(
        "item_acc",
        Higher,
        "1 where the right choice has the largest log-likelihood, or greedy decoding gives the continuation, else 0.",
    ),
    figure("item_acc_norm", Higher, "The same with log-likelihoods divided by the choices' characters."),
    figure("item_acc_bytes", Higher, "The same with log-likelihoods divided by the choices' UTF-8 bytes."),
    figure("item_choice", Neither, "Index of the choice with the largest log-likelihood, from 0."),
    figure(
        "item_log_likelihood",
        Higher,
        "Log-likelihood of the right choice, the continuation or the document, in nats.",
    ),
    figure("item_words", Neither, "Words of the document, between white space of the original text."),
    figure("item_bytes", Neither, "UTF-8 bytes of the original text."),
    figure("item_exact_match", Higher, "1 where the extracted answer is right, else 0."),
    figure("item_pass", Higher, "1 where the program ended with success, else 0."),
];

/// The figure of a task set of that name.
pub fn find_task_figure(name: &str) -> Option<&'static TaskFigure> {
    TASK_FIGURES.iter().find(|figure| figure.name == name)
}

/// The figure of an item of that name.
pub fn find_item_figure(name: &str) -> Option<&'static TaskFigure> {
    ITEM_FIGURES.iter().find(|figure| figure.name == name)
}

const fn figure(name: &'static str, better: Better, description: &'static str) -> TaskFigure {
    TaskFigure { name, better, description }
}
