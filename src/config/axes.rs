//! The axes of a matrix: one variant of [`Axis`] each, in the order in which they nest. Everything that treats axes
//! alike (rules, product, matching) walks [`Axis::ALL`].

use serde_yaml::Location;

use crate::cell::{Flavour, ImageSize, MemoryAmount, ModelKind, Precision, Residency};
use crate::probe;

/// Largest values that make sense; anything above is a slip of the hand.
const MAX_THREADS: u32 = 1024;
const MAX_BATCH: u32 = 1 << 16;
const MAX_TOKENS: u32 = 1 << 24;
const MAX_GUESS: u32 = 1024;

/// An axis, from the outermost to the innermost of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    Model,
    Precision,
    Flavour,
    Threads,
    Residency,
    MemoryBudget,
    MemoryLimit,
    MicroBatch,
    Offload,
    Guess,
    Optimizations,
    Dimensions,
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
    /// The same, or this word, which stands for 0.
    CountsOr(&'static str, u32),
    /// `none` or `WIDTHxHEIGHT`.
    Images,
    /// `none`, a size or a share.
    Budgets,
    /// `none`, a size or `budget`.
    Limits,
    /// Techniques with options; on the axis stand places in the list of all that the file has, `none` first.
    Optimizations,
    /// Sizes by name; on the axis stand places in the list of all that the file has, the empty one first.
    Dimensions,
}

impl Axis {
    /// Every axis.
    pub const ALL: [Self; COUNT] = [
        Self::Model,
        Self::Precision,
        Self::Flavour,
        Self::Threads,
        Self::Residency,
        Self::MemoryBudget,
        Self::MemoryLimit,
        Self::MicroBatch,
        Self::Offload,
        Self::Guess,
        Self::Optimizations,
        Self::Dimensions,
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
            Self::Residency => "residency",
            Self::MemoryBudget => "memory_budget",
            Self::MemoryLimit => "memory_limit",
            Self::MicroBatch => "micro_batch",
            Self::Offload => "offload",
            Self::Guess => "guess",
            Self::Optimizations => "optimizations",
            Self::Dimensions => "dimensions",
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
            Self::Residency => {
                "Where the weights of a pack (made by `ortbench pack`) live: `resident` in memory, `mapped` from its \
                 files, `stream` read ahead of use, `experts` on demand with a cache; `none` for an ordinary package. \
                 Default: none, which is `resident` for a pack."
            }
            Self::MemoryBudget => {
                "What the process of a pack may hold in all, as `4GiB`, `512MiB`, or `50%` of the package's weights; \
                 `none` for no bound. Default: none."
            }
            Self::MemoryLimit => {
                "What the kernel lets the process hold, by a control group without swap: a size as `4GiB`, `budget` for \
                 as much as `memory_budget`, or `none`. Default: none."
            }
            Self::MicroBatch => {
                "A pack runs layer by layer, and that many sequences of the batch go through a layer together, all of \
                 them before the next layer's weights are read; `none` runs the graph in one piece. Default: none."
            }
            Self::Offload => {
                "`disk`: a pack runs layer by layer, and the key/value caches of the others wait in a file without a \
                 name (in `offload_dir`); `none` keeps them in memory. Default: none."
            }
            Self::Guess => {
                "Experts of the next layer that are read on a guess while the disk is idle, with the residency \
                 `experts`; 0 for none. Default: 0."
            }
            Self::Optimizations => {
                "Optimizations that are switched on (docs/optimizations.md): a name, several joined by `+`, names with \
                 options as `{tensor_compression: {cache: int8}}`, `none`, or `all` for each by itself. Default: none."
            }
            Self::Dimensions => {
                "Of graphs: sizes of free dimensions by name, as `{batch: 8}`, or a list of such; of a mapping, a graph \
                 takes the names that it has. Default: none."
            }
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

    /// Whether it says something to models of this kind; on the others, a point has [`NOTHING`].
    pub fn applies_to(self, kind: ModelKind) -> bool {
        match self {
            Self::Model | Self::Backend | Self::Threads | Self::MemoryLimit => true,
            Self::Dimensions => kind == ModelKind::Graph,
            _ => kind == ModelKind::Package,
        }
    }

    /// What may stand on it.
    pub fn values(self) -> Values {
        match self {
            Self::Model => Values::Models,
            Self::Precision => Values::Words(Precision::NAMES),
            Self::Flavour => Values::Words(Flavour::NAMES),
            Self::Threads => Values::Counts(MAX_THREADS),
            Self::Residency => Values::Words(RESIDENCIES),
            Self::MemoryBudget => Values::Budgets,
            Self::MemoryLimit => Values::Limits,
            Self::MicroBatch => Values::CountsOr("none", MAX_BATCH),
            Self::Offload => Values::Words(OFFLOADS),
            Self::Guess => Values::CountsOr("0", MAX_GUESS),
            Self::Optimizations => Values::Optimizations,
            Self::Dimensions => Values::Dimensions,
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
            Self::Residency
            | Self::MicroBatch
            | Self::Offload
            | Self::Guess
            | Self::Optimizations
            | Self::Dimensions => Some(vec![0]),
            Self::MemoryBudget | Self::MemoryLimit => Some(vec![MemoryAmount::None.pack()]),
            _ => None,
        }
    }
}

/// Number of axes.
const COUNT: usize = 17;

/// The value of a point on an axis that says nothing to its model: no value of any axis, so that no rule names it.
pub const NOTHING: u32 = u32::MAX - 1;

/// Words of the axis `residency`: none, and those of [`Residency`] in its order.
const RESIDENCIES: &[&str] = &["none", "resident", "mapped", "stream", "experts"];

/// Words of the axis `offload`.
const OFFLOADS: &[&str] = &["none", "disk"];

/// A point of the matrix: on each axis the index of a word, a count, or a packed size.
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

    /// The same point, with nothing on the axes that say nothing to a model of this kind.
    #[must_use]
    pub fn of_kind(self, kind: ModelKind) -> Self {
        let silent = Axis::ALL.into_iter().filter(|axis| !axis.applies_to(kind));
        silent.fold(self, |point, axis| point.with(axis, NOTHING))
    }

    /// The precision of a package.
    pub fn precision(&self) -> Precision {
        Precision::ALL.get(self.on(Axis::Precision) as usize).copied().unwrap_or(Precision::Fp32)
    }

    /// The flavour of a package.
    pub fn flavour(&self) -> Flavour {
        Flavour::ALL.get(self.on(Axis::Flavour) as usize).copied().unwrap_or(Flavour::Plain)
    }

    /// The image's size.
    pub fn image(&self) -> Option<ImageSize> {
        ImageSize::unpack(self.on(Axis::Image))
    }

    /// Where the weights live, where the file says so.
    pub fn residency(&self) -> Option<Residency> {
        let index = self.on(Axis::Residency).checked_sub(1)?;
        Residency::ALL.get(index as usize).copied()
    }

    /// The memory on one of the two axes of amounts.
    pub fn memory(&self, axis: Axis) -> MemoryAmount {
        MemoryAmount::unpack(self.on(axis))
    }
}

/// Values of every axis; in a rule, `None` is any value.
#[derive(Debug, Clone, Default)]
pub struct Axes {
    values: [Option<Vec<u32>>; COUNT],
    /// Where they stand in the file.
    places: [Option<Location>; COUNT],
}

impl Axes {
    /// Sets an axis.
    pub fn set(&mut self, axis: Axis, values: Vec<u32>) {
        self.values[axis as usize] = Some(values);
    }

    /// Notes where an axis is written.
    pub fn stands_at(&mut self, axis: Axis, place: Location) {
        self.places[axis as usize] = Some(place);
    }

    /// Where an axis is written, if it is.
    pub fn place(&self, axis: Axis) -> Option<Location> {
        self.places[axis as usize]
    }

    /// The values of an axis; `None` is any.
    pub fn on(&self, axis: Axis) -> Option<&[u32]> {
        self.values[axis as usize].as_deref()
    }

    /// True when no axis is named.
    pub fn names_nothing(&self) -> bool {
        self.values.iter().all(Option::is_none)
    }

    /// These axes, and the matrix's where they name none.
    pub fn or(&self, matrix: &Self) -> Self {
        Self {
            values: std::array::from_fn(|axis| self.values[axis].as_ref().or(matrix.values[axis].as_ref()).cloned()),
            places: std::array::from_fn(|axis| self.places[axis].or(matrix.places[axis])),
        }
    }

    /// Points of the product.
    pub fn count(&self) -> usize {
        self.values.iter().map(|axis| axis.as_ref().map_or(0, Vec::len)).fold(1, usize::saturating_mul)
    }

    /// The product, the last axis changing fastest.
    pub fn points(&self) -> Vec<Point> {
        let mut points = vec![Point([0; COUNT])];
        for (axis, values) in self.values.iter().enumerate() {
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

    /// The same values, on the axes that are chosen.
    pub fn only(&self, chosen: impl Fn(Axis) -> bool) -> Self {
        let mut axes = self.clone();
        for axis in Axis::ALL.into_iter().filter(|axis| !chosen(*axis)) {
            (axes.values[axis as usize], axes.places[axis as usize]) = (None, None);
        }
        axes
    }

    /// True when every axis named has the point's value.
    pub fn matches(&self, point: &Point) -> bool {
        let named = self.values.iter().zip(point.0);
        named.into_iter().all(|(values, value)| values.as_ref().is_none_or(|values| values.contains(&value)))
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
    fn every_residency_has_its_word() {
        assert_eq!(RESIDENCIES[1..], *Residency::NAMES);
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
