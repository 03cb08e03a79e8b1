//! Which kind a model is, and which axes say something to none.

use super::super::axes::{Axes, Axis};
use super::super::check::Checker;
use super::super::file::ModelEntry;
use crate::cell::ModelKind;

impl Checker<'_> {
    /// What an entry is, by its word or else by what is written in it.
    pub(in super::super) fn kind(&mut self, entry: &ModelEntry) -> ModelKind {
        match (&entry.kind, &entry.path) {
            (None, Some(path)) if entry.package.is_none() => {
                self.problem(path.referenced, "`path` is for a model of `kind: graph`: say so, or name a `package`");
                ModelKind::Graph
            }
            (None, _) => ModelKind::Package,
            // Of an unknown word, what else is written tells what was meant, so that one mistake is one.
            (Some(word), path) => self.word(word, ModelKind::NAMES).unwrap_or(match path {
                Some(_) => ModelKind::Graph,
                None => ModelKind::Package,
            }),
        }
    }

    /// Whether an axis says nothing to any model of the file.
    pub(in super::super) fn is_silent(&self, axis: Axis) -> bool {
        !self.kinds.is_empty() && self.kinds.iter().all(|kind| !axis.applies_to(*kind))
    }

    /// Axes that are written and say nothing to any model.
    pub(in super::super) fn tell_silent_axes(&mut self, matrix: &Axes) {
        for axis in Axis::ALL {
            let Some(at) = matrix.place(axis).filter(|_| self.is_silent(axis)) else { continue };
            let (others, kind) = match self.kinds.first() {
                Some(ModelKind::Graph) => ("graphs", "packages of language models"),
                _ => ("packages", "models of `kind: graph`"),
            };
            let message =
                format!("`{}` is for {kind}, and all models of the file are {others}: leave it out", axis.name());
            self.problem(at, message);
        }
    }
}
