//! Why a record could not be read: kept once, told to everybody who waits for it.

use crate::error::{Error, Kind};

/// A failure that can be told several times.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    message: String,
    cause: Option<String>,
    hint: String,
    kind: Kind,
}

impl Failure {
    pub fn new(kind: Kind, message: String, hint: &str) -> Self {
        Self { message, cause: None, hint: hint.to_owned(), kind }
    }

    pub fn because(mut self, cause: &dyn std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// As an error of its own.
    pub fn error(&self) -> Error {
        let error = Error::new(self.message.clone()).kind(self.kind).hint(self.hint.clone());
        match &self.cause {
            Some(cause) => error.because(std::io::Error::other(cause.clone())),
            None => error,
        }
    }
}
