//! What is wrong with a matrix file, and where.

use std::fmt::Write;

use serde_yaml::Location;

use crate::error::Error;

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
}

/// All mistakes as one error: each with `file:line:column`, the line itself, and a mark under the place.
pub fn report(file: &str, text: &str, mut problems: Vec<Problem>) -> Error {
    problems.sort_by_key(|problem| problem.at);
    problems.dedup();
    let count = problems.len();
    let mut message = match count {
        1 => format!("`{file}` is not a valid matrix file"),
        _ => format!("`{file}` is not a valid matrix file: {count} mistakes"),
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
    Error::new(message).hint("`ortbench schema` prints what the file may hold; `docs/matrix.md` explains it")
}
