//! The vocabulary that the orchestrating parent and the measuring worker share.
//!
//! A [`Cell`] is one configuration of the matrix: a model at a precision and a graph flavour, on a backend, with a
//! workload. Its categories are measured one after the other, each in a fresh process, and together fill one row of
//! `summary.csv`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Declares an enum whose variants have one name everywhere: YAML, CSV, manifest, messages.
macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// The name used in files and messages.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is not one of {}", Self::NAMES.join(", "))),
                }
            }
        }
    };
}

pub(crate) use named_enum;

mod accuracy;
mod graph;
mod memory;
mod optimization;
mod power;

pub use accuracy::{AccuracyPlan, FidelityPlan, Scoring, TaskRef, TaskSource};
pub use graph::{Dimensions, ElementType, Fill, GraphPlan, InputPlan, ModelKind, OutputPlan};
pub use memory::{MemoryAmount, MemoryPlan};
pub use optimization::{Arm, ImpactMetric, OptimizationPlan, Switched, Technique};
pub use power::{PowerPlan, PowerSource};

named_enum! {
    /// What the weights of the matrix products are stored in.
    Precision { Fp32 => "fp32", Fp16 => "fp16", Int8 => "int8", Int4 => "int4" }
}

named_enum! {
    /// Which operators a graph is made of.
    Flavour {
        /// ONNX Runtime's contrib operators (GroupQueryAttention, MatMulNBits, …).
        Fused => "fused",
        /// Standard ONNX operators alone, for providers without contrib kernels.
        Plain => "plain",
    }
}

named_enum! {
    /// An execution provider of ONNX Runtime.
    ProviderKind {
        Cpu => "cpu",
        OpenVino => "openvino",
        Cuda => "cuda",
        TensorRt => "tensorrt",
        /// A library of its own, loaded by path: see [`Plugin`]. Last: the others are words of a matrix file.
        Plugin => "plugin",
    }
}

impl ProviderKind {
    /// The words for providers that need nothing else.
    pub fn words() -> &'static [&'static str] {
        &Self::NAMES[..Self::NAMES.len() - 1]
    }
}

named_enum! {
    /// Where the weights of a pack live while it runs.
    Residency {
        /// All in memory.
        Resident => "resident",
        /// In the files, mapped: the operating system decides what is in memory.
        Mapped => "mapped",
        /// A fixed part in memory; the rest is read ahead of use and dropped after it.
        Stream => "stream",
        /// The routed experts on demand, with a cache of them; everything else in memory.
        Experts => "experts",
    }
}

named_enum! {
    /// A category of measurement, each run in a fresh process.
    Category {
        Speed => "speed",
        Throughput => "throughput",
        Memory => "memory",
        Accuracy => "accuracy",
        Power => "power",
        OptimizationImpact => "optimization_impact",
        Operators => "operators",
    }
}

/// Element types of inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "ONNX's own names")]
pub enum Dtype {
    Float32,
    Float16,
    #[serde(rename = "bfloat16")]
    BFloat16,
    Int64,
    Int32,
    /// Of caches that are quantized to 8 bits.
    Int8,
    /// Of caches that are quantized to 4 bits: two elements a byte.
    #[serde(rename = "uint8")]
    UInt8,
}

impl Dtype {
    /// Whether elements are numbers with a fraction.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float32 | Self::Float16 | Self::BFloat16)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Float32 | Self::Int32 => 4,
            Self::Float16 | Self::BFloat16 => 2,
            Self::Int64 => 8,
            Self::Int8 | Self::UInt8 => 1,
        }
    }
}

named_enum! {
    /// How a cell, or one of its categories, ended. Ordered from good to bad.
    Status {
        /// Everything asked for was measured.
        Measured => "measured",
        /// This machine, runtime or provider cannot run it, and the reason says what is missing.
        Unsupported => "unsupported",
        /// It ran, but a figure cannot be true, so none is given.
        Invalid => "invalid",
        /// It took longer than its timeout.
        TimedOut => "timed_out",
        /// The kernel or the allocator refused memory, or the estimate said beforehand that they would.
        OutOfMemory => "out_of_memory",
        /// It ended with an error, an abort or a crash.
        Failed => "failed",
    }
}

/// The stable name of a cell: readable axes and a short hash of all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CellId(pub String);

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Which build of ONNX Runtime a backend loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeRef {
    /// One of the runtimes that `ortbench runtime install` places: `cpu`, `openvino`, `cuda`.
    Installed(String),
    /// A `libonnxruntime` file named by the user.
    Path(PathBuf),
}

impl fmt::Display for RuntimeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed(name) => f.pad(name),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A build of ONNX Runtime and the execution provider used in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The name under which the matrix and the results know it.
    pub name: String,
    /// The build of ONNX Runtime.
    pub runtime: RuntimeRef,
    /// The execution provider.
    pub provider: ProviderKind,
    /// Where the provider comes from, where it is a library of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Plugin>,
    /// Provider options, passed on as they are.
    pub options: BTreeMap<String, String>,
}

/// An execution provider in a library of its own, which ONNX Runtime loads at run time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    /// The shared library, absolute.
    pub library: PathBuf,
    /// The provider in it, as the library calls it, e.g. `OpenVINOExecutionProvider`.
    pub provider: String,
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.library.file_name().unwrap_or_default();
        f.pad(&format!("{} of {}", self.provider, file.display()))
    }
}

/// A model's package as one cell uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// The name under which the matrix and the results know it.
    pub name: String,
    /// The package's folder, absolute.
    pub package: PathBuf,
    /// The same as the matrix file writes it, which is what results show: they travel, and absolute paths do not.
    pub written: String,
}

/// Where the tokens of a prompt come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptSource {
    /// Uniform token ids from the seed, special tokens excluded.
    RandomTokens {
        /// Seed of the generator.
        seed: u64,
    },
    /// A text, tokenized and cut (or repeated) to the exact length.
    TextFile {
        /// The UTF-8 file, absolute.
        path: PathBuf,
    },
}

/// Width and height of an image in pixels, written `WIDTHxHEIGHT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageSize {
    /// Pixels of a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl ImageSize {
    /// A number that stands for a size or for no image.
    pub fn pack(size: Option<Self>) -> u32 {
        size.map_or(0, |size| u32::from(size.width) << 16 | u32::from(size.height))
    }

    /// The size behind [`ImageSize::pack`]'s number.
    pub fn unpack(packed: u32) -> Option<Self> {
        (packed != 0).then_some(Self { width: (packed >> 16) as u16, height: packed as u16 })
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}x{}", self.width, self.height))
    }
}

impl std::str::FromStr for ImageSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let sides = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        match sides {
            Some((width, height)) if width > 0 && height > 0 => Ok(Self { width, height }),
            _ => Err(format!(
                "`{text}` is no size of an image; write its width and height, each up to {}, as `448x448`",
                u16::MAX
            )),
        }
    }
}

impl TryFrom<String> for ImageSize {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ImageSize> for String {
    fn from(size: ImageSize) -> Self {
        size.to_string()
    }
}

/// What is asked of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Sequences in one batch.
    pub batch: u32,
    /// Size of the generated image at the start of each prompt, for models that take images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSize>,
    /// Tokens of each prompt, exactly, those of the image among them.
    pub prompt_tokens: u32,
    /// Tokens generated after each prompt, exactly (end-of-text is ignored).
    pub generate_tokens: u32,
    /// Where the prompts come from.
    pub prompt: PromptSource,
}

/// How often and how long a cell is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasurementPlan {
    /// Unmeasured runs before the first measured one.
    pub warmup: u32,
    /// Measured runs, at least.
    pub repetitions: u32,
    /// Measured seconds, at least: repetitions go on until both are reached.
    pub min_seconds: f64,
    /// Fresh processes over which figures that one process gives once (memory, load) are repeated.
    pub processes: u32,
    /// A worker that runs longer than this is ended and its cell is `timed_out`.
    pub timeout_seconds: f64,
    /// True for the `quick` profile, which every row says.
    pub quick: bool,
}

/// One configuration of the matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Stable over runs of the same axes.
    pub id: CellId,
    /// The model's package.
    pub model: ModelRef,
    /// Runtime and provider.
    pub backend: Backend,
    /// Weights of the matrix products; the package must agree.
    pub precision: Precision,
    /// Operators of the graph; the package must agree.
    pub flavour: Flavour,
    /// Threads of one operator (intra-op).
    pub threads: u32,
    /// What is asked of the model.
    pub workload: Workload,
    /// What is measured, in this order, each in a process of its own.
    pub categories: Vec<Category>,
    /// How it is measured.
    pub measurement: MeasurementPlan,
    /// When set, a node on another provider than the one named makes the cell `unsupported`.
    pub strict_placement: bool,
    /// Where weights live, and what memory the process has.
    #[serde(default, skip_serializing_if = "MemoryPlan::is_empty")]
    pub memory: MemoryPlan,
    /// Where caches wait that leave for the disk; `None` for the folder of the run's results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload_dir: Option<PathBuf>,
    /// What the category `accuracy` does; `None` where it is not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Box<AccuracyPlan>>,
    /// What the category `power` does; `None` where it is not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<Box<PowerPlan>>,
    /// Which optimizations it switches on; `None` where the matrix file says nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizations: Option<Box<OptimizationPlan>>,
    /// Of a cell that runs any ONNX graph, everything about it. Precision, flavour and workload, which are a language
    /// model's, say nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<Box<GraphPlan>>,
}

impl Cell {
    /// Whether all weights that a step reads are in memory while it runs, if the machine has room for them, and are those of
    /// the package.
    pub fn holds_all_weights(&self) -> bool {
        self.memory.holds_all_weights() && !self.is_optimized()
    }

    /// Whether it switches an optimization on.
    pub fn is_optimized(&self) -> bool {
        self.optimizations.as_ref().is_some_and(|plan| !plan.switched.is_empty())
    }

    /// What its model is.
    pub fn kind(&self) -> ModelKind {
        if self.graph.is_some() { ModelKind::Graph } else { ModelKind::Package }
    }
}
