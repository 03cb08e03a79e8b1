//! `manifest.json`, format version 2: the types behind `docs/package.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cell::{Dtype, Flavour, Precision};
use crate::error::{Context, Error, Result};
use crate::package::Image;
use crate::package::shards::Form;

/// The value of `format`.
pub const FORMAT: &str = "ortbench-package";

/// What helps against a manifest that contradicts itself or its folder.
pub(super) const EXPORT_AGAIN: &str = "the package is incomplete or was changed; export it again";

/// The version this program reads.
pub const FORMAT_VERSION: u32 = 2;

/// The whole manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `ortbench-package`.
    pub format: String,
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Identity and origin.
    pub model: Model,
    /// Dimensions.
    pub shape: Shape,
    /// How images become tokens, of models that take them.
    pub image: Option<Image>,
    /// Counts of weights.
    pub parameters: Parameters,
    /// How weights and activations are stored.
    pub precision: PrecisionDetail,
    /// Which operators the graphs are made of.
    pub flavour: Flavour,
    /// Operator-set version of each domain.
    pub opsets: BTreeMap<String, u32>,
    /// The ONNX graphs.
    pub graphs: Vec<Graph>,
    /// The key/value cache.
    pub cache: Cache,
    /// Ways in which a batch of unequal prompts may be padded, the preferred one first.
    pub padding: Vec<Padding>,
    /// Special tokens.
    pub tokens: Tokens,
    /// The tokenizer's file, if the package has one.
    pub tokenizer: Option<String>,
    /// The chat template's file, if the package has one.
    pub chat_template: Option<String>,
    /// What one decoded token must read.
    pub bytes_read_per_token: BytesRead,
    /// Every other file of the package.
    pub files: Vec<FileEntry>,
    /// What wrote the package.
    pub exporter: Exporter,
    /// Of a pack: where its large weights are, since they are not in its graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack: Option<Pack>,
}

impl Manifest {
    /// Reads a manifest's bytes.
    ///
    /// # Errors
    /// What is no JSON, of another format or version, or lacks a key, with the position.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        /// What every version has, read first so that a newer version is named rather than its new keys.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            format_version: u32,
        }
        let head: Head = serde_json::from_slice(bytes).context("its manifest.json is not valid")?;
        if head.format != FORMAT {
            return Err(Error::new(format!("its manifest.json is of the format `{}`, not `{FORMAT}`", head.format)));
        }
        if head.format_version != FORMAT_VERSION {
            let message = format!("its format version is {}, this program reads {FORMAT_VERSION}", head.format_version);
            return Err(Error::new(message).hint("export the model with the exporter that came with this program"));
        }
        let manifest: Self = serde_json::from_slice(bytes).context("its manifest.json is not valid")?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Contradictions that types do not exclude.
    fn check(&self) -> Result<()> {
        let shape = &self.shape;
        let positive = [
            shape.layers,
            shape.hidden_size,
            shape.attention_heads,
            shape.attention_width,
            shape.kv_heads,
            shape.head_dim,
            shape.vocab_size,
        ];
        if positive.contains(&0) || self.parameters.total == 0 || self.bytes_read_per_token.weights == 0 {
            return Err(Error::new("its manifest.json names a size of zero").hint(EXPORT_AGAIN));
        }
        self.check_images()?;
        let listed = |file: &String| self.files.iter().any(|entry| entry.path == *file);
        let named = self.graphs.iter().flat_map(|graph| std::iter::once(&graph.file).chain(&graph.external_data));
        let index = self.pack.as_ref().map(|pack| &pack.index);
        for file in named.chain(&self.tokenizer).chain(&self.chat_template).chain(index) {
            if !listed(file) {
                let message = format!("its manifest.json uses `{file}` but does not list it in `files`");
                return Err(Error::new(message).hint(EXPORT_AGAIN));
            }
        }
        Ok(())
    }
}

/// What makes a package a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// The index of shards.
    pub index: String,
    /// How the decoder graph takes its weights. With [`Form::Inputs`] there is no whole decoder graph: its `file` is
    /// the index, which names the graph's segments.
    pub form: Form,
}

/// Identity and origin of the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name, e.g. `qwen3-tiny`.
    pub id: String,
    /// The class that the checkpoint's configuration names.
    pub architecture: String,
    /// Folder or hub name of the checkpoint.
    pub source: Option<String>,
    /// Hash of the checkpoint's weights.
    pub revision: Option<String>,
    /// Trained or random.
    pub weights: Weights,
    /// Seed of random weights.
    pub seed: Option<u64>,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// Read from a checkpoint.
    Checkpoint,
    /// Drawn from a generator: speed and memory are real, answers are not.
    Random,
    /// The same, with routers that prefer some experts to others (`docs/measurements/streaming/skew.py`).
    #[serde(rename = "random, router skewed")]
    RandomSkewed,
}

impl Weights {
    /// The word in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Random => "random",
            Self::RandomSkewed => "random, router skewed",
        }
    }
}

/// Dimensions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the field's own words")]
pub struct Shape {
    pub layers: u64,
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub attention_heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub attention_width: u64,
    pub vocab_size: u64,
    pub context_length: u64,
    pub experts: Option<u64>,
    pub experts_per_token: Option<u64>,
    pub expert_intermediate_size: Option<u64>,
}

/// Counts of weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// In all, tied weights once.
    pub total: u64,
    /// Those that one decoded token multiplies with.
    pub active_per_token: u64,
}

/// How weights and activations are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionDetail {
    /// Weights of the matrix products.
    pub name: Precision,
    /// Of the weight-only quantization, along the input dimension.
    pub block_size: Option<u32>,
    /// Whether quantization is symmetric.
    pub symmetric: Option<bool>,
    /// MatMulNBits' attribute.
    pub accuracy_level: Option<u32>,
    /// The embedding's storage.
    pub embedding: Precision,
    /// The head's storage.
    pub lm_head: Precision,
    /// The vision tower's matrices, of models that take images.
    pub vision: Option<Precision>,
    /// The activations' type.
    pub activations: Precision,
}

/// One ONNX file and its interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    /// What it is for.
    pub role: GraphRole,
    /// The ONNX file; of a pack whose segments take weights as inputs, the index of its segments.
    pub file: String,
    /// Its weights.
    pub external_data: Vec<String>,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
}

/// What a graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphRole {
    /// Token ids to logits, with a cache.
    Decoder,
    /// The patches of one image to its features.
    Vision,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Name in the graph.
    pub name: String,
    /// What it is for.
    pub role: PortRole,
    /// Layer of a cache tensor.
    pub layer: Option<u64>,
    /// ONNX's name of the element type.
    pub dtype: Dtype,
    /// Sizes and symbolic names.
    pub dims: Vec<Dim>,
}

/// What an input or output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the contract's own; docs/package.md explains them")]
pub enum PortRole {
    InputIds,
    AttentionMask,
    PositionIds,
    MropePositionIds,
    LogitsPositions,
    PixelValues,
    ImageGrid,
    ImageFeatures,
    PastKey,
    PastValue,
    PresentKey,
    PresentValue,
    Logits,
}

impl Graph {
    /// The input or output of that role, for tensors that exist once.
    pub fn port(&self, role: PortRole) -> Option<&Port> {
        self.inputs.iter().chain(&self.outputs).find(|port| port.role == role)
    }

    /// The same where the graph is of no use without it; `word` says what for.
    ///
    /// # Errors
    /// A graph without one.
    pub fn need(&self, role: PortRole, word: &str) -> Result<Port> {
        let found = self.port(role).cloned();
        found.ok_or_else(|| Error::new(format!("the graph `{}` has no tensor for {word}", self.file)))
    }

    /// The cache tensors of that role, in the order of layers.
    pub fn layers(&self, role: PortRole) -> Vec<&Port> {
        let mut ports: Vec<_> = self.inputs.iter().chain(&self.outputs).filter(|port| port.role == role).collect();
        ports.sort_by_key(|port| port.layer);
        ports
    }
}

/// A dimension: a number or a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Fixed.
    Size(u64),
    /// Bound at run time.
    Symbol(String),
}

/// The key/value cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Element type.
    pub dtype: Dtype,
    /// One sequence, all layers, keys and values.
    pub bytes_per_token: u64,
    /// How present relates to past.
    pub update: CacheUpdate,
}

/// How present relates to past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheUpdate {
    /// One buffer of full capacity may be both, or present may be past and the new tokens.
    InPlaceOrAppend,
    /// Present is past with the new tokens behind it.
    Append,
}

/// How a batch of unequal prompts is padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Zeros of the mask come first.
    Left,
    /// Zeros of the mask come last.
    Right,
}

/// Special tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Fills a batch.
    pub pad: Option<u32>,
    /// Any of these ends generation.
    pub eos: Vec<u32>,
}

/// What one decoded token must read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BytesRead {
    /// Weights, active experts only.
    pub weights: u64,
}

/// A file of the package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative to the folder, `/` between its parts, never `..`.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

/// What wrote the package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exporter {
    /// Program.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Options that shaped the result.
    pub options: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::Resample;

    #[test]
    fn a_vision_graph_and_its_image_section_are_read() {
        let graph: Graph = serde_json::from_value(serde_json::json!({
            "role": "vision", "file": "vision.onnx", "external_data": ["vision.onnx.data"],
            "inputs": [
                {"name": "pixel_values", "role": "pixel_values", "layer": null, "dtype": "float32", "dims": ["patches", 1536]},
                {"name": "image_grid_thw", "role": "image_grid", "layer": null, "dtype": "int64", "dims": [1, 3]},
            ],
            "outputs": [{"name": "image_features", "role": "image_features", "layer": null, "dtype": "float32",
                         "dims": ["image_tokens", 8192]}],
        }))
        .expect("a graph");
        assert_eq!(graph.role, GraphRole::Vision);
        assert_eq!(graph.port(PortRole::ImageGrid).expect("a port").dims, [Dim::Size(1), Dim::Size(3)]);
        let positions: PortRole = serde_json::from_str("\"mrope_position_ids\"").expect("a role");
        assert_eq!(positions, PortRole::MropePositionIds);

        let image: Image = serde_json::from_value(serde_json::json!({
            "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 65536, "max_pixels": 16777216,
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resample": "bicubic", "image_token": 151655,
            "vision_start": 151652, "vision_end": 151653, "feature_width": 8192, "deepstack": 3, "layers": 24,
            "hidden_size": 1024, "intermediate_size": 4096, "heads": 16, "parameters": 407000000,
        }))
        .expect("an image section");
        assert_eq!((image.resample, image.feature_width), (Resample::Bicubic, 8192));
    }
}
