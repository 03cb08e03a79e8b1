//! What all YAML files that people write have in common here: mistakes with their places, and the nearest valid words.

mod suggest;

pub use suggest::suggest;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_yaml::{Error as YamlError, Location};

use crate::error::{Context, Error, Result};

/// One mistake.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Line and column from 1; `None` when the mistake has no place of its own.
    pub at: Option<(usize, usize)>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Problem {
    /// A mistake at a place.
    pub fn at(location: Location, message: impl Into<String>) -> Self {
        let place = (location.line() as usize, location.column() as usize);
        Self { at: (place.0 > 0).then_some(place), message: message.into() }
    }

    /// A mistake of the file as a whole.
    pub fn whole(message: impl Into<String>) -> Self {
        Self { at: None, message: message.into() }
    }
}

/// The text of a file that someone wrote by hand. `failed` says what could not be done, `hint` what else to name.
///
/// # Errors
/// A file that is missing, no regular file (a pipe would make the program wait for ever, a device read for ever), of more
/// than `max_bytes`, or not UTF-8.
pub fn text_of(path: &Path, max_bytes: u64, failed: impl Fn() -> String, hint: &str) -> Result<String> {
    let metadata = fs::metadata(path).with_context(&failed).map_err(|error| error.hint(hint))?;
    let wrong = match metadata.len() {
        _ if !metadata.is_file() => Some("it is not a regular file".to_owned()),
        size if size > max_bytes => Some(format!("it has {size} bytes")),
        _ => None,
    };
    if let Some(cause) = wrong {
        return Err(Error::new(failed()).because(std::io::Error::other(cause)).hint(hint));
    }
    fs::read_to_string(path).with_context(&failed).map_err(|error| error.hint(hint))
}

/// All mistakes of a file as one error: each with `file:line:column`, the line itself, and a mark under the place.
/// `what` says what the file should be: `matrix file`.
pub fn report(what: &str, file: &str, text: &str, mut problems: Vec<Problem>) -> Error {
    problems.sort_by_key(|problem| problem.at);
    problems.dedup();
    let count = problems.len();
    let mut message = match count {
        1 => format!("`{file}` is not a valid {what}"),
        _ => format!("`{file}` is not a valid {what}: {count} mistakes"),
    };
    for problem in &problems {
        let Some((line, column)) = problem.at else {
            let _ = write!(message, "\n{file}: {}", problem.message);
            continue;
        };
        let _ = write!(message, "\n{file}:{line}:{column}: {}", problem.message);
        if let Some(source) = text.lines().nth(line - 1) {
            let margin = " ".repeat(line.to_string().len());
            let indent: String = source.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let _ = write!(message, "\n{margin} |\n{line} | {}\n{margin} | {indent}^", source.trim_end());
        }
    }
    Error::new(message)
}

/// Reads a text into what was declared for it, in words of this program where it cannot be read.
///
/// # Errors
/// The first mistake.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    serde_yaml::from_str(text).map_err(|error| {
        let mut problem = describe(&error);
        problem.message = of_type(text, &problem).unwrap_or(problem.message);
        problem
    })
}

/// A scalar of the wrong type, with its key and what is wanted: the parser names neither.
fn of_type(text: &str, problem: &Problem) -> Option<String> {
    let wanted = match problem.message.strip_prefix("invalid ")? {
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" => "a whole number from 0".to_owned(),
        "f64" => "a number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        _ => return None,
    };
    let (line, column) = problem.at?;
    let line = text.lines().nth(line - 1)?;
    let start = line.char_indices().nth(column - 1)?.0;
    let (before, value) = line.split_at(start);
    let value = value.split([',', '}', ']', '#']).next().unwrap_or_default().trim();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let key = before.trim_end().strip_suffix(':')?.rsplit(|c| !word(c)).next().filter(|key| !key.is_empty())?;
    Some(format!("`{key}` is `{value}`; {wanted} belongs here"))
}

fn describe(error: &YamlError) -> Problem {
    let inner = innermost(error);
    let message = match inner {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            format!("unknown key `{field}`{}", suggest(field, expected))
        }
        YamlError::SerdeMissingField { field, .. } => {
            let message = format!("the key `{field}` is missing");
            // At the top the parser names the last key's place, which misleads.
            let nested = error.location().filter(|location| location.column() > 1);
            return match nested {
                Some(location) => Problem::at(location, message),
                None => Problem::whole(message),
            };
        }
        YamlError::DuplicateMappingKey { key: Some(key), .. } => format!("the key `{key}` stands twice"),
        other => {
            let text = other.without_snippet().to_string();
            // The place stands before the message already.
            let text = text.split(" at line ").next().unwrap_or(&text);
            match text.lines().next().unwrap_or_default().trim_end_matches(':') {
                "expected mapping start" => "keys with values belong here".to_owned(),
                "expected sequence start" => "a list belongs here".to_owned(),
                "expected string scalar" => "a text belongs here; brackets or braces in it need quotes".to_owned(),
                other => other.to_owned(),
            }
        }
    };
    match error.location() {
        Some(location) => Problem::at(location, message),
        None => Problem::whole(message),
    }
}

fn innermost(error: &YamlError) -> &YamlError {
    match error {
        YamlError::WithSnippet { error, .. } | YamlError::AliasError { error, .. } => innermost(error),
        other => other,
    }
}
