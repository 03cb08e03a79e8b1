//! Paths as a matrix file writes them.

use std::path::{Path, PathBuf};

use super::axes::Point;
use super::check::Model;
use crate::yaml::suggest;

/// What is filled in.
const PLACEHOLDERS: [&str; 4] = ["model", "checkpoint", "precision", "flavour"];

/// The path of one cell, with what stands in braces filled in.
pub fn fill(written: &str, model: &Model, point: &Point) -> String {
    written
        .replace("{model}", &model.name)
        .replace("{checkpoint}", &model.checkpoint)
        .replace("{precision}", point.precision().name())
        .replace("{flavour}", point.flavour().name())
}

/// A sentence for every placeholder that [`fill`] does not know; `what` is whose path it is.
pub fn unknown_placeholders(written: &str, what: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut rest = written;
    while let Some((_, tail)) = rest.split_once('{') {
        let (word, after) = tail.split_once('}').unwrap_or((tail, ""));
        if !PLACEHOLDERS.contains(&word) {
            problems.push(format!("`{{{word}}}` is not filled in in {what}'s path{}", suggest(word, &PLACEHOLDERS)));
        }
        rest = after;
    }
    problems
}

/// A path as written: `~/` is the home folder, relative paths start at the file's folder.
pub fn resolve(folder: &Path, text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => folder.join(text),
    }
}
