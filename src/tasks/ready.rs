//! Descriptions of public task sets that the program carries: facts about their layouts and prompts, without data.

use crate::error::{Error, Result};
use crate::yaml::suggest;

macro_rules! ready {
    ($($name:literal),+ $(,)?) => { &[$(($name, include_str!(concat!("ready/", $name, ".yaml")))),+] };
}

/// Names and texts.
pub const READY: &[(&str, &str)] = ready![
    "arc_challenge",
    "arc_easy",
    "boolq",
    "gsm8k",
    "hellaswag",
    "humaneval",
    "image_choice",
    "lambada_openai",
    "mbpp",
    "mmlu",
    "mmmu",
    "openbookqa",
    "piqa",
    "truthfulqa_mc1",
    "wikitext",
    "winogrande"
];

/// The text of that name.
pub fn find(name: &str) -> Result<&'static str> {
    READY.iter().find(|(ready, _)| *ready == name).map(|(_, text)| *text).ok_or_else(|| {
        let names: Vec<_> = READY.iter().map(|(ready, _)| *ready).collect();
        Error::new(format!("there is no ready task `{name}`{}", suggest(name, &names)))
            .hint("`ortbench tasks` lists them; a description of your own is named by its file")
    })
}
