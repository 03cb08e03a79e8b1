//! A cell that runs any ONNX graph: what is fed to it, and what its outputs are held against.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

named_enum! {
    /// What a model entry of a matrix is.
    ModelKind {
        /// A package of a language model.
        Package => "package",
        /// Any ONNX file.
        Graph => "graph",
    }
}

named_enum! {
    /// Element types of tensors that can be fed and read, by ONNX's names.
    #[expect(missing_docs, reason = "ONNX's own names")]
    ElementType {
        Float32 => "float32",
        Float64 => "float64",
        Float16 => "float16",
        BFloat16 => "bfloat16",
        Int8 => "int8",
        Int16 => "int16",
        Int32 => "int32",
        Int64 => "int64",
        UInt8 => "uint8",
        UInt16 => "uint16",
        UInt32 => "uint32",
        UInt64 => "uint64",
        Bool => "bool",
        String => "string",
    }
}

impl ElementType {
    /// The type behind a number of `TensorProto.DataType`.
    pub fn of_onnx(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|element| element.onnx() == number)
    }

    /// Its number in `TensorProto.DataType`, which is that of ONNX Runtime's interface too.
    pub fn onnx(self) -> i32 {
        match self {
            Self::Float32 => 1,
            Self::UInt8 => 2,
            Self::Int8 => 3,
            Self::UInt16 => 4,
            Self::Int16 => 5,
            Self::Int32 => 6,
            Self::Int64 => 7,
            Self::String => 8,
            Self::Bool => 9,
            Self::Float16 => 10,
            Self::Float64 => 11,
            Self::UInt32 => 12,
            Self::UInt64 => 13,
            Self::BFloat16 => 16,
        }
    }

    /// Bytes of one element; a string's are not known beforehand, and count as nothing.
    pub fn size(self) -> usize {
        match self {
            Self::String => 0,
            Self::Int8 | Self::UInt8 | Self::Bool => 1,
            Self::Float16 | Self::BFloat16 | Self::Int16 | Self::UInt16 => 2,
            Self::Float32 | Self::Int32 | Self::UInt32 => 4,
            Self::Float64 | Self::Int64 | Self::UInt64 => 8,
        }
    }

    /// Whether elements have a fraction.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float32 | Self::Float64 | Self::Float16 | Self::BFloat16)
    }

    /// The whole numbers that an element can be; `None` for floats, truth values and strings.
    pub fn whole_numbers(self) -> Option<(i128, i128)> {
        let bits = 8 * self.size() as u32;
        match self {
            Self::Int8 | Self::Int16 | Self::Int32 | Self::Int64 => Some((-(1 << (bits - 1)), (1 << (bits - 1)) - 1)),
            Self::UInt8 | Self::UInt16 | Self::UInt32 | Self::UInt64 => Some((0, (1 << bits) - 1)),
            _ => None,
        }
    }
}

/// Free dimensions of a graph and the sizes that they have in a cell.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Dimensions(pub BTreeMap<String, u64>);

impl fmt::Display for Dimensions {
    /// `batch=8 sequence=128`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|(name, size)| format!("{name}={size}")).collect();
        f.pad(&words.join(" "))
    }
}

/// How a graph is run in one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphPlan {
    /// What the file's writer calls its precision; nothing depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Sizes of the graph's free dimensions.
    pub dimensions: Dimensions,
    /// Every input that is fed, in the graph's order.
    pub inputs: Vec<InputPlan>,
    /// Every output, in the graph's order.
    pub outputs: Vec<OutputPlan>,
    /// Items that one run works on, where the file says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<u64>,
}

/// An input and what it is filled with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputPlan {
    /// The graph's name.
    pub name: String,
    /// Its element type.
    pub element: ElementType,
    /// Its shape in this cell.
    pub shape: Vec<u64>,
    /// Its contents.
    pub fill: Fill,
}

impl InputPlan {
    /// Elements; no more than [`u64::MAX`], which nothing holds.
    pub fn elements(&self) -> u64 {
        self.shape.iter().copied().fold(1, u64::saturating_mul)
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.element.size() as u64)
    }
}

/// What an input is filled with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Drawn uniformly from `low` to `high` by a seeded generator: of floats `high` is left out, of whole numbers it is
    /// one of them. Truth values are true or false alike.
    Random {
        /// Seed of the generator.
        seed: u64,
        /// Smallest value.
        low: f64,
        /// Largest value.
        high: f64,
    },
    /// The same number everywhere; of truth values, 0 is false.
    Constant(f64),
    /// The same text everywhere.
    Text(String),
    /// 0, 1, 2, … in the order of the elements in memory.
    Range,
    /// The array of a `.npy` file, or one of a `.npz` file.
    File {
        /// The file, absolute.
        path: PathBuf,
        /// Its name in a `.npz` file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        array: Option<String>,
    },
}

/// An output, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputPlan {
    /// The graph's name.
    pub name: String,
    /// Its element type.
    pub element: ElementType,
    /// Its shape, where it is known before the first run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<u64>>,
    /// Relative tolerance: an element may differ by `atol + rtol × |expected|`.
    pub rtol: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// What it should be, where a file says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Fill>,
}
