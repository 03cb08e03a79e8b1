//! Task sets: a description in YAML and items in JSON Lines become requests of token ids, and what the model makes of
//! them becomes scores. Follows lm-evaluation-harness where it has a definition, so that numbers compare.
//!
//! Knows tokenizers and templates, but neither models nor ONNX Runtime: the category `accuracy` carries requests to the
//! engine and answers back.
//!
//! [`Description`] → [`TaskSet`] (items as texts) → [`Encoder`] (requests as ids) → a model → [`Scores`] → [`Scored`].

mod answer;
mod check;
mod description;
mod encode;
mod fewshot;
mod ready;
mod records;
mod render;
mod score;
mod set;
mod template;
mod values;
mod written;

pub use answer::Stops;
pub use description::{Description, ProgramRun, Settings};
pub use encode::{Encoder, Request};
pub use score::{Flips, Outcome, Scored, Scores, compare};
pub use set::TaskSet;

use std::path::PathBuf;
use std::sync::Arc;

use crate::cell::named_enum;

named_enum! {
    /// What the items of a task set ask.
    Kind {
        Choice => "choice", Continuation => "continuation", Perplexity => "perplexity", Generation => "generation", Code => "code",
    }
}

/// One item of a task set, as texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its id, unique in the set: the record's own `id`, or its place as `line-1`.
    pub id: String,
    /// Images of the prompt, absolute, in order.
    pub images: Vec<PathBuf>,
    /// What is asked.
    pub ask: Ask,
}

/// What an item asks of the model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub enum Ask {
    /// Which continuation is the likeliest.
    Choice {
        /// Context and continuation of each choice, as texts. Choices behind one context share it: with examples it is
        /// far longer than what differs.
        pairs: Vec<(Arc<str>, String)>,
        /// The choices alone, by whose lengths log-likelihoods are normalised.
        choices: Vec<String>,
        /// The right one.
        answer: usize,
    },
    /// How likely one given continuation is, and whether greedy decoding would give it.
    Continuation {
        /// The prompt.
        context: String,
        /// What is scored behind it.
        continuation: String,
    },
    /// How likely a whole text is.
    Perplexity {
        /// The text.
        text: String,
        /// Words of the original text, between white space.
        words: usize,
        /// UTF-8 bytes of the original text.
        bytes: usize,
    },
    /// What text follows.
    Generation {
        /// The prompt.
        context: String,
        /// Answers that are right.
        answers: Vec<String>,
    },
    /// What program follows.
    Code {
        /// The prompt.
        context: String,
        /// The record, from which the program is made together with the completion.
        record: serde_json::Value,
    },
}

#[cfg(test)]
mod tests;
