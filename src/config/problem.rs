//! What is wrong with a matrix file, and where.

pub use crate::yaml::Problem;

use crate::error::Error;

/// All mistakes as one error, each with its place.
pub fn report(file: &str, text: &str, problems: Vec<Problem>) -> Error {
    crate::yaml::report("matrix file", file, text, problems)
        .hint("`ortbench schema` prints what the file may hold; `docs/matrix.md` explains it")
}
