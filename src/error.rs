//! One error type for everything that a user can meet.
//!
//! An error names the operation that failed and the thing it failed on; its source says why; its hint says what to do.
//! `Display` prints only the operation, never the source: the chain is printed once, at the edge (`main.rs`).

use std::error::Error as StdError;
use std::fmt;

/// What kind of end an error is, which decides the program's exit code (see `docs/exit-codes.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// The user's input (a file, an option, a model) is at fault: exit code 2.
    #[default]
    Input,
    /// The machine lacks something (a runtime, room on the disk, a permission): exit code 3.
    Environment,
    /// The user interrupted the run: exit code 130.
    Interrupted,
    /// The model or the provider cannot do what was asked, which is no fault of either: exit code 2, and in a
    /// matrix the cell is `unsupported`.
    Unsupported,
    /// A measurement that cannot be true: in a matrix the cell is `invalid`.
    Invalid,
}

/// An expected failure, with its remedy.
#[derive(Debug)]
pub struct Error {
    message: String,
    hint: Option<String>,
    kind: Kind,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

/// The result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the user's input.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, kind: Kind::Input, source: None }
    }

    /// An error of the machine rather than of the input.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(message).kind(Kind::Environment)
    }

    /// Something that the model, the provider or the platform cannot do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(message).kind(Kind::Unsupported)
    }

    /// A measurement that cannot be true.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(message).kind(Kind::Invalid)
    }

    /// Adds what the reader can do about it; the hint nearest to the edge wins.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Sets the kind.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The kind of the innermost error of this type that is not plain input: wrapping an environment error in a
    /// sentence of context does not make it the user's fault.
    pub fn root_kind(&self) -> Kind {
        if self.kind != Kind::Input {
            return self.kind;
        }
        self.inner().map_or(self.kind, Error::root_kind)
    }

    /// The hint nearest to the edge, if any error of the chain has one.
    pub fn find_hint(&self) -> Option<&str> {
        self.hint.as_deref().or_else(|| self.inner().and_then(Error::find_hint))
    }

    /// The whole chain in one line, `operation: cause: cause`.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = self.source();
        while let Some(error) = next {
            let part = error.to_string();
            // Some libraries repeat their source in their own text; saying it twice helps nobody.
            if !text.contains(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            next = error.source();
        }
        text
    }

    /// The exit code of a program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self.root_kind() {
            Kind::Input | Kind::Unsupported | Kind::Invalid => 2,
            Kind::Environment => 3,
            Kind::Interrupted => 130,
        }
    }

    fn inner(&self) -> Option<&Error> {
        self.source.as_deref().and_then(|source| source.downcast_ref::<Error>())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Adds the failed operation to any error.
pub trait Context<T> {
    /// Wraps the error as the cause of `message`.
    fn context(self, message: impl Into<String>) -> Result<T>;
    /// As [`Context::context`], with the message made only when it is needed.
    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync + 'static>>> Context<T> for std::result::Result<T, E> {
    fn context(self, message: impl Into<String>) -> Result<T> {
        self.map_err(|error| Error::new(message).because(error))
    }

    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Error::new(message()).because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_cause_once_and_keeps_kind_and_hint() {
        let io = std::io::Error::other("no space left");
        let inner = Error::environment("cannot write `a.csv`").hint("free some room").because(io);
        let outer: Result<()> = Err(inner).context("cannot save the results");
        let outer = outer.unwrap_err();
        assert_eq!(outer.chain(), "cannot save the results: cannot write `a.csv`: no space left");
        assert_eq!(outer.find_hint(), Some("free some room"));
        assert_eq!(outer.root_kind(), Kind::Environment);
        assert_eq!(outer.exit_code(), 3);
    }
}
