//! Folders that onnxruntime-genai's model builder made, read in place.
//!
//! `genai_config.json` names the tensors and the special tokens; what it does not say (types, precision, sizes) is
//! read from the ONNX graph itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::onnx::{self, GraphProto, NodeProto, TensorProto};
use super::*;
use crate::cell::{Flavour, Precision};

/// The file that marks such a folder.
pub const CONFIG: &str = "genai_config.json";

#[derive(Deserialize)]
struct Config {
    model: ModelConfig,
}

#[derive(Deserialize)]
struct ModelConfig {
    bos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
    eos_token_id: OneOrMany,
    context_length: u64,
    decoder: DecoderConfig,
    r#type: String,
    vocab_size: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
struct DecoderConfig {
    filename: String,
    head_size: u64,
    hidden_size: u64,
    inputs: BTreeMap<String, String>,
    outputs: BTreeMap<String, String>,
    num_attention_heads: u64,
    num_hidden_layers: u64,
    num_key_value_heads: u64,
}

/// Reads the folder as a [`Package`]; nothing is written to it.
pub(super) fn open(root: &Path) -> Result<Package> {
    let path = root.join(CONFIG);
    let text = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let config: Config =
        serde_json::from_slice(&text).with_context(|| format!("`{}` is not as expected", path.display()))?;
    let decoder = &config.model.decoder;
    let file = root.join(&decoder.filename);
    let bytes = fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let (graph, opsets) = onnx::read(&bytes).with_context(|| format!("cannot use `{}`", file.display()))?;
    let weights = WeightCount::of(&graph);

    let external: BTreeSet<_> = graph.initializer.iter().filter_map(TensorProto::location).map(str::to_owned).collect();
    let tokenizer = exists(root, "tokenizer.json");
    let chat_template = exists(root, "chat_template.jinja");
    let names = external.iter().chain([&decoder.filename]).chain(&tokenizer).chain(&chat_template);
    let files = names.map(|name| entry(root, name)).collect::<Result<Vec<_>>>()?;

    let ports = Ports { config: decoder, graph: &graph };
    let decoder_graph = Graph {
        role: GraphRole::Decoder,
        file: decoder.filename.clone(),
        external_data: external.into_iter().collect(),
        inputs: ports.inputs()?,
        outputs: ports.outputs()?,
    };
    let cache_dtype = decoder_graph
        .port(PortRole::PastKey)
        .map(|port| port.dtype)
        .ok_or_else(|| Error::unsupported("its graph has no key/value cache"))?;
    let fused = graph.node.iter().any(|node| node.op_type() == "GroupQueryAttention");
    let manifest = Manifest {
        pack: None,
        format: FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        model: Model {
            id: root.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned()),
            architecture: config.model.r#type,
            source: None,
            revision: None,
            weights: Weights::Checkpoint,
            seed: None,
        },
        shape: Shape {
            layers: decoder.num_hidden_layers,
            hidden_size: decoder.hidden_size,
            intermediate_size: weights.intermediate_size,
            attention_heads: decoder.num_attention_heads,
            kv_heads: decoder.num_key_value_heads,
            head_dim: decoder.head_size,
            attention_width: 2 * decoder.head_size,
            vocab_size: config.model.vocab_size,
            context_length: config.model.context_length,
            experts: None,
            experts_per_token: None,
            expert_intermediate_size: None,
        },
        image: None,
        parameters: Parameters { total: weights.parameters, active_per_token: weights.multiplied },
        precision: PrecisionDetail {
            name: weights.precision,
            block_size: weights.block_size,
            symmetric: None,
            accuracy_level: weights.accuracy_level,
            embedding: weights.precision,
            lm_head: weights.precision,
            vision: None,
            // There is no word for bfloat16 among precisions of weights; what counts here is its size.
            activations: if cache_dtype.size() == 2 { Precision::Fp16 } else { Precision::Fp32 },
        },
        flavour: if fused { Flavour::Fused } else { Flavour::Plain },
        opsets: opsets.into_iter().map(|set| (set.domain().to_owned(), set.version().max(0) as u32)).collect(),
        cache: Cache {
            dtype: cache_dtype,
            bytes_per_token: 2
                * decoder.num_hidden_layers
                * decoder.num_key_value_heads
                * decoder.head_size
                * cache_dtype.size() as u64,
            update: if fused { CacheUpdate::InPlaceOrAppend } else { CacheUpdate::Append },
        },
        padding: vec![if fused { Padding::Right } else { Padding::Left }],
        tokens: Tokens {
            bos: config.model.bos_token_id,
            pad: config.model.pad_token_id,
            eos: match config.model.eos_token_id {
                OneOrMany::One(id) => vec![id],
                OneOrMany::Many(ids) => ids,
            },
        },
        graphs: vec![decoder_graph],
        tokenizer,
        chat_template,
        bytes_read_per_token: BytesRead { weights: weights.bytes_per_token },
        files,
        exporter: Exporter {
            name: "onnxruntime-genai".to_owned(),
            version: String::new(),
            options: serde_json::Value::Null,
        },
    };
    let hash = digest::sha256(serde_json::to_vec(&manifest).context("cannot describe the folder")?);
    Ok(Package { root: root.to_owned(), manifest, hash })
}

fn exists(root: &Path, name: &str) -> Option<String> {
    root.join(name).is_file().then(|| name.to_owned())
}

/// Such a folder states no hashes: what is there is taken as it is, and named by the hash of what it holds.
fn entry(root: &Path, name: &str) -> Result<FileEntry> {
    let path = root.join(name);
    let size = fs::metadata(&path).with_context(|| format!("cannot find `{}`", path.display()))?.len();
    let sha256 = digest::sha256_file(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(FileEntry { path: name.to_owned(), bytes: size, sha256 })
}

struct Ports<'a> {
    config: &'a DecoderConfig,
    graph: &'a GraphProto,
}

impl Ports<'_> {
    fn inputs(&self) -> Result<Vec<Port>> {
        self.ports(
            &self.graph.input,
            &self.config.inputs,
            &[
                ("input_ids", PortRole::InputIds),
                ("attention_mask", PortRole::AttentionMask),
                ("position_ids", PortRole::PositionIds),
                ("past_key_names", PortRole::PastKey),
                ("past_value_names", PortRole::PastValue),
            ],
        )
    }

    fn outputs(&self) -> Result<Vec<Port>> {
        self.ports(
            &self.graph.output,
            &self.config.outputs,
            &[
                ("logits", PortRole::Logits),
                ("present_key_names", PortRole::PresentKey),
                ("present_value_names", PortRole::PresentValue),
            ],
        )
    }

    fn ports(
        &self,
        values: &[onnx::ValueInfoProto],
        names: &BTreeMap<String, String>,
        roles: &[(&str, PortRole)],
    ) -> Result<Vec<Port>> {
        let mut known = HashMap::new();
        for (key, role) in roles {
            let Some(pattern) = names.get(*key) else { continue };
            if pattern.contains("%d") {
                for layer in 0..self.config.num_hidden_layers {
                    known.insert(pattern.replace("%d", &layer.to_string()), (*role, Some(layer)));
                }
            } else {
                known.insert(pattern.clone(), (*role, None));
            }
        }
        values
            .iter()
            .map(|value| {
                let name = value.name().to_owned();
                let unknown = || Error::unsupported(format!("its graph has the tensor `{name}`, of no known purpose"));
                let (role, layer) = *known.get(&name).ok_or_else(unknown)?;
                let dtype = value.dtype().ok_or_else(|| {
                    Error::unsupported(format!("the tensor `{name}` has an element type that the runner cannot bind"))
                })?;
                let mut dims = value.dims();
                // The builder leaves the cache's fixed sizes to its configuration.
                if let (Some(_), [_, heads, _, width]) = (layer, dims.as_mut_slice()) {
                    *heads = Dim::Size(self.config.num_key_value_heads);
                    *width = Dim::Size(self.config.head_size);
                }
                Ok(Port { role, layer, dtype, dims, name })
            })
            .collect()
    }
}

/// What the graph's own weights say.
struct WeightCount {
    parameters: u64,
    multiplied: u64,
    bytes_per_token: u64,
    precision: Precision,
    block_size: Option<u32>,
    accuracy_level: Option<u32>,
    intermediate_size: u64,
}

impl WeightCount {
    /// Counts each initializer by the nodes that use it: a product reads all of it, a look-up one row.
    fn of(graph: &GraphProto) -> Self {
        let initializers: HashMap<&str, &TensorProto> =
            graph.initializer.iter().map(|tensor| (tensor.name(), tensor)).collect();
        let mut count = Self {
            parameters: 0,
            multiplied: 0,
            bytes_per_token: 0,
            precision: Precision::Fp32,
            block_size: None,
            accuracy_level: None,
            intermediate_size: 0,
        };
        let mut seen = BTreeSet::new();
        // Products first: a table that is both looked up and multiplied (tied weights) is read whole.
        let (products, others): (Vec<&NodeProto>, Vec<_>) =
            graph.node.iter().partition(|node| node.op_type().starts_with("MatMul") || node.op_type() == "Gemm");
        for node in products {
            let weights = match (node.int("N"), node.int("K")) {
                (Some(n), Some(k)) => (n * k) as u64,
                _ => node.input.get(1).and_then(|name| initializers.get(name.as_str())).map_or(0, |t| t.elements()),
            };
            if node.name().contains("gate_proj") {
                count.intermediate_size = node.int("N").unwrap_or(0) as u64;
            }
            count.multiplied += weights;
            if let Some(bits) = node.int("bits").or_else(|| node.int("N").map(|_| 4)) {
                count.precision = if bits == 4 { Precision::Int4 } else { Precision::Int8 };
                count.block_size = node.int("block_size").map(|size| size as u32);
                count.accuracy_level = node.int("accuracy_level").map(|level| level as u32);
            } else if let Some(tensor) = node.input.get(1).and_then(|name| initializers.get(name.as_str()))
                && tensor.data_type() == 10
                && count.precision == Precision::Fp32
            {
                count.precision = Precision::Fp16;
            }
            let mut new = false;
            for name in &node.input {
                if let Some(tensor) = initializers.get(name.as_str())
                    && seen.insert(name.clone())
                {
                    new = true;
                    count.bytes_per_token += tensor.bytes();
                }
            }
            if new {
                count.parameters += weights;
            }
        }
        for node in others {
            let table = node.op_type().starts_with("Gather");
            // The rotary caches are constants of the architecture, one row of which is read: not weights.
            let rotary = node.op_type() == "GroupQueryAttention" || node.op_type() == "RotaryEmbedding";
            for name in node.input.iter().filter(|_| !rotary) {
                let Some(tensor) = initializers.get(name.as_str()) else { continue };
                if !seen.insert(name.clone()) {
                    continue;
                }
                let rows = tensor.dims.first().map_or(1, |&rows| rows.max(1) as u64);
                count.bytes_per_token += if table { tensor.bytes() / rows } else { tensor.bytes() };
                // Shapes and axes are integers, weights are not.
                if tensor.data_type() != 7 && tensor.data_type() != 6 {
                    count.parameters += tensor.elements();
                }
            }
        }
        count
    }
}
