//! The axes of a matrix: one variant of [`Axis`] each, in the order in which they nest. Everything that treats axes
//! alike (rules, product, matching) walks [`Axis::ALL`].

use crate::cell::{Flavour, ImageSize, Precision};
use crate::probe;

/// Largest values that make sense; anything above is a slip of the hand.
const MAX_THREADS: u32 = 1024;
const MAX_BATCH: u32 = 1 << 16;
const MAX_TOKENS: u32 = 1 << 24;

/// An axis, from the outermost to the innermost of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    Model,
    Precision,
    Flavour,
    Threads,
    Batch,
    Image,
    PromptTokens,
    GenerateTokens,
    /// Last, so that backends of one configuration stand side by side and run one after the other.
    Backend,
}

/// What the values of an axis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Names from `models`.
    Models,
    /// Names from `backends`.
    Backends,
    /// One of these words.
    Words(&'static [&'static str]),
    /// Whole numbers from 1 up to this one.
    Counts(u32),
    /// `none` or `WIDTHxHEIGHT`.
    Images,
}

impl Axis {
    /// Every axis.
    pub const ALL: [Self; COUNT] = [
        Self::Model,
        Self::Precision,
        Self::Flavour,
        Self::Threads,
        Self::Batch,
        Self::Image,
        Self::PromptTokens,
        Self::GenerateTokens,
        Self::Backend,
    ];

    /// The key in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Precision => "precision",
            Self::Flavour => "flavour",
            Self::Threads => "threads",
            Self::Batch => "batch",
            Self::Image => "image",
            Self::PromptTokens => "prompt_tokens",
            Self::GenerateTokens => "generate_tokens",
            Self::Backend => "backend",
        }
    }

    /// What it says, for the file's writers.
    pub fn description(self) -> &'static str {
        match self {
            Self::Model => "Names from `models`.",
            Self::Precision => "What the weights of the matrix products are stored in.",
            Self::Flavour => {
                "`fused`: ONNX Runtime's contrib operators; `plain`: standard ONNX operators alone. Default: fused."
            }
            Self::Threads => "Threads of one operator. Default: the cores that this process may use.",
            Self::Batch => "Sequences that run together.",
            Self::Image => {
                "Width and height of a generated image at the start of each prompt, as `448x448`, for models that \
                 take images; `none` for a prompt of text. Default: none."
            }
            Self::PromptTokens => "Tokens of each prompt, exactly, those of an image among them.",
            Self::GenerateTokens => "Tokens generated after each prompt, exactly.",
            Self::Backend => "Names from `backends`.",
        }
    }

    /// What may stand on it.
    pub fn values(self) -> Values {
        match self {
            Self::Model => Values::Models,
            Self::Precision => Values::Words(Precision::NAMES),
            Self::Flavour => Values::Words(Flavour::NAMES),
            Self::Threads => Values::Counts(MAX_THREADS),
            Self::Batch => Values::Counts(MAX_BATCH),
            Self::Image => Values::Images,
            Self::PromptTokens | Self::GenerateTokens => Values::Counts(MAX_TOKENS),
            Self::Backend => Values::Backends,
        }
    }

    /// The values of a matrix that does not name the axis; `None` where it must.
    pub fn default_values(self) -> Option<Vec<u32>> {
        match self {
            Self::Precision => Some((0..Precision::ALL.len() as u32).collect()),
            Self::Flavour => Some(vec![0]),
            Self::Threads => Some(vec![probe::cpu::default_threads()]),
            Self::Image => Some(vec![ImageSize::pack(None)]),
            _ => None,
        }
    }
}

/// Number of axes.
const COUNT: usize = 9;

/// A point of the matrix: on each axis the index of a word, a count, or a packed image size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point([u32; COUNT]);

impl Point {
    /// The value on an axis.
    pub fn on(&self, axis: Axis) -> u32 {
        self.0[axis as usize]
    }

    /// The same point with another value on an axis.
    #[must_use]
    pub fn with(mut self, axis: Axis, value: u32) -> Self {
        self.0[axis as usize] = value;
        self
    }

    /// The model's index.
    pub fn model(&self) -> usize {
        self.on(Axis::Model) as usize
    }

    /// The backend's index.
    pub fn backend(&self) -> usize {
        self.on(Axis::Backend) as usize
    }

    /// The precision.
    pub fn precision(&self) -> Precision {
        Precision::ALL[self.on(Axis::Precision) as usize]
    }

    /// The flavour.
    pub fn flavour(&self) -> Flavour {
        Flavour::ALL[self.on(Axis::Flavour) as usize]
    }

    /// The image's size.
    pub fn image(&self) -> Option<ImageSize> {
        ImageSize::unpack(self.on(Axis::Image))
    }
}

/// Values of every axis; in a rule, `None` is any value.
#[derive(Debug, Clone, Default)]
pub struct Axes([Option<Vec<u32>>; COUNT]);

impl Axes {
    /// Sets an axis.
    pub fn set(&mut self, axis: Axis, values: Vec<u32>) {
        self.0[axis as usize] = Some(values);
    }

    /// The values of an axis; `None` is any.
    pub fn on(&self, axis: Axis) -> Option<&[u32]> {
        self.0[axis as usize].as_deref()
    }

    /// True when no axis is named.
    pub fn names_nothing(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// These axes, and the matrix's where they name none.
    pub fn or(&self, matrix: &Self) -> Self {
        Self(std::array::from_fn(|axis| self.0[axis].as_ref().or(matrix.0[axis].as_ref()).cloned()))
    }

    /// Points of the product.
    pub fn count(&self) -> usize {
        self.0.iter().map(|axis| axis.as_ref().map_or(0, Vec::len)).fold(1, usize::saturating_mul)
    }

    /// The product, the last axis changing fastest.
    pub fn points(&self) -> Vec<Point> {
        let mut points = vec![Point([0; COUNT])];
        for (axis, values) in self.0.iter().enumerate() {
            let values = values.as_deref().unwrap_or_default();
            points = points
                .iter()
                .flat_map(|point| {
                    values.iter().map(|value| {
                        let mut next = *point;
                        next.0[axis] = *value;
                        next
                    })
                })
                .collect();
        }
        points
    }

    /// True when every axis named has the point's value.
    pub fn matches(&self, point: &Point) -> bool {
        self.0.iter().zip(point.0).all(|(values, value)| values.as_ref().is_none_or(|values| values.contains(&value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_stands_at_its_own_place() {
        for (place, axis) in Axis::ALL.into_iter().enumerate() {
            assert_eq!(axis as usize, place, "{}", axis.name());
        }
    }

    #[test]
    fn the_last_axis_changes_fastest() {
        let mut axes = Axes::default();
        for axis in Axis::ALL {
            axes.set(axis, if axis == Axis::Batch || axis == Axis::Backend { vec![1, 2] } else { vec![7] });
        }
        let points: Vec<_> =
            axes.points().iter().map(|point| (point.on(Axis::Batch), point.on(Axis::Backend))).collect();
        assert_eq!(points, [(1, 1), (1, 2), (2, 1), (2, 2)]);
        assert_eq!(axes.count(), 4);
    }
}
