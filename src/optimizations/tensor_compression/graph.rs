//! The edit of a graph: caches of 8 or 4 bits instead of floats.
//!
//! Attention that is one operator (GroupQueryAttention) quantizes and multiplies itself; it is told how, and given the
//! scales. Attention of standard operators joins past and new tokens by a Concat: what is joined are integers then, with
//! new ones are quantized before it, and all are multiplied with their scales behind it.

use super::scales::{Bits, Channels, Sharing};
use crate::cell::Dtype;
use crate::error::{Error, Result};
use crate::package::edition::Edition;
use crate::package::onnx::{AttributeProto, GraphProto, NodeProto, Source, data_type};
use crate::package::{Dim, Port, PortRole};

/// Past, present and what makes present of past.
#[derive(Debug, Clone)]
pub struct Cache {
    /// The past.
    pub past: Port,
    /// The present.
    pub present: Port,
    /// The node's place in the graph.
    node: usize,
    form: Form,
}

/// How present is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// By GroupQueryAttention.
    Attention,
    /// By a Concat along the tokens.
    Joined,
}

/// How much more than what was measured may come, where keys turn with their positions by operators of which nothing is
/// known here: two channels of which each reached the same have this length together.
const ROOM: f32 = std::f32::consts::SQRT_2;

/// A pair of channels that turns by less over the whole context is taken as it is.
const STILL: f64 = 0.5;

impl Cache {
    /// The decoder's caches.
    ///
    /// # Errors
    /// A graph whose caches are made by other operators, or are quantized already (both `unsupported`).
    pub fn all(edition: &mut Edition, bits: Bits) -> Result<Vec<Self>> {
        let decoder = edition.decoder_mut()?.clone();
        let mut caches = Vec::new();
        for (past, present) in
            [(PortRole::PastKey, PortRole::PresentKey), (PortRole::PastValue, PortRole::PresentValue)]
        {
            for (past, present) in decoder.layers(past).into_iter().zip(decoder.layers(present)) {
                caches.push(Self::of(&edition.graph, past, present, bits)?);
            }
        }
        Ok(caches)
    }

    fn of(graph: &GraphProto, past: &Port, present: &Port, bits: Bits) -> Result<Self> {
        if !past.dtype.is_float() {
            return Err(Error::unsupported(format!("the cache tensor `{}` is quantized already", past.name)));
        }
        let made = graph.node.iter().position(|node| node.makes().any(|name| name == present.name));
        let made = made.ok_or_else(|| Error::new(format!("nothing makes the cache tensor `{}`", present.name)))?;
        let node = &graph.node[made];
        let reads = |place| node.input_at(place) == Some(past.name.as_str());
        let along_tokens = node.int("axis").is_some_and(|axis| axis == 2 || axis == -2);
        let form = match node.op_type() {
            "GroupQueryAttention" if reads(3) || reads(4) => Form::Attention,
            "Concat" if node.input.len() == 2 && reads(0) && along_tokens => Form::Joined,
            other => {
                return Err(Error::unsupported(format!(
                    "the cache tensor `{}` is made by the operator {other}, for which there are no quantized caches",
                    present.name
                )));
            }
        };
        let cache = Self { past: past.clone(), present: present.clone(), node: made, form };
        let (_, width) = cache.sizes()?;
        match (bits, form) {
            (Bits::Eight, _) => Ok(cache),
            (Bits::Four, Form::Joined) => Err(needs_attention()),
            (Bits::Four, Form::Attention) if width % 2 == 1 => Err(Error::unsupported(format!(
                "the cache tensor `{}` has heads of {width} channels, of which no two share a byte",
                past.name
            ))),
            (Bits::Four, Form::Attention) => Ok(cache),
        }
    }

    /// Whether attention is one operator, which has to take what is quantized.
    pub fn is_attention(&self) -> bool {
        self.form == Form::Attention
    }

    /// Heads, and channels of a head.
    fn sizes(&self) -> Result<(usize, usize)> {
        match self.past.dims.as_slice() {
            [_, Dim::Size(heads), _, Dim::Size(width)] => Ok((*heads as usize, *width as usize)),
            _ => Err(Error::new(format!("the cache tensor `{}` is not [batch, heads, past, width]", self.past.name))),
        }
    }

    /// How its channels may be quantized.
    ///
    /// # Errors
    /// Constants that cannot be read.
    pub fn channels(&self, edition: &Edition, per_channel: bool) -> Result<Channels> {
        let (heads, width) = self.sizes()?;
        let sharing = if per_channel { Sharing::Channel } else { Sharing::Tensor };
        let mut channels = Channels::new(heads, width, sharing);
        if self.past.role == PortRole::PastKey {
            let node = &edition.graph.node[self.node];
            match self.form {
                Form::Attention if node.int("do_rotary") == Some(1) => {
                    let context = edition.manifest.shape.context_length;
                    turn(&mut channels.partner, node, edition.source(), context)?;
                }
                _ => channels.room = ROOM,
            }
        }
        Ok(channels)
    }

    /// Bytes of a token of one sequence in it.
    pub fn bytes_per_token(&self, bits: Option<Bits>) -> Result<u64> {
        let (heads, width) = self.sizes()?;
        let elements = (heads * width) as u64;
        Ok(match bits {
            None => elements * self.past.dtype.size() as u64,
            Some(bits) => elements * u64::from(bits.count()) / 8,
        })
    }
}

/// What to do where 4 bits are asked for and attention is no operator.
pub fn needs_attention() -> Error {
    Error::unsupported(
        "caches of 4 bits need attention that is one operator (GroupQueryAttention), which this graph does not have",
    )
    .hint(
        "`cache: int8` works with it; or take a package of the `fused` flavour of a model with grouped-query attention",
    )
}

/// Which channels rotary embeddings turn into each other, of those that turn within the context.
fn turn(partner: &mut [usize], node: &NodeProto, source: &Source, context: u64) -> Result<()> {
    let Some((name, stored)) = node.input_at(8).and_then(|name| Some((name, source.tensor(name)?))) else {
        return Err(Error::unsupported(format!("`{}` turns keys by a table that is no constant", node.name())));
    };
    let [positions, pairs] = stored.dims[..] else {
        return Err(Error::new(format!("the table `{name}` of rotary embeddings is no matrix")));
    };
    let bytes = stored.bytes / positions.max(1);
    // The second position's sines are the angles by which a pair turns a token, none of which is more than 1.
    let row = if positions > 1 { source.read(name, bytes..2 * bytes)? } else { Vec::new() };
    let sines: Vec<f64> = match stored.data_type {
        data_type::FLOAT => row.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        data_type::FLOAT16 => {
            row.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).into()).collect()
        }
        data_type::BFLOAT16 => {
            row.as_chunks::<2>().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).into()).collect()
        }
        other => return Err(Error::new(format!("the table `{name}` of rotary embeddings is of type {other}"))),
    };
    let (pairs, interleaved) = (pairs as usize, node.int("rotary_interleaved") == Some(1));
    if 2 * pairs > partner.len() {
        return Err(Error::new(format!("the table `{name}` turns more channels than a head has")));
    }
    for (pair, sine) in sines.iter().enumerate() {
        if sine.clamp(-1.0, 1.0).asin().abs() * context as f64 > STILL {
            let (one, other) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
            (partner[one], partner[other]) = (other, one);
        }
    }
    Ok(())
}

/// Rewrites the graph and the manifest; `scales` are those of the caches, in their order.
///
/// # Errors
/// A manifest that has no decoder.
pub fn quantize(edition: &mut Edition, caches: &[Cache], scales: &[(Vec<f32>, Channels)], bits: Bits) -> Result<()> {
    let (dtype, element) = match bits {
        Bits::Eight => (Dtype::Int8, data_type::INT8),
        Bits::Four => (Dtype::UInt8, data_type::UINT8),
    };
    let mut inserted: Vec<(usize, NodeProto)> = Vec::new();
    for (cache, (values, channels)) in caches.iter().zip(scales) {
        match cache.form {
            Form::Attention => attend(edition, cache, values, channels, bits),
            Form::Joined => join(edition, cache, values, channels, &mut inserted)?,
        }
        for value in
            edition.graph.input.iter_mut().chain(&mut edition.graph.output).chain(&mut edition.graph.value_info)
        {
            if value.name() == cache.past.name || value.name() == cache.present.name {
                retype(value, element, (bits == Bits::Four).then_some(channels.width as i64 / 2));
            }
        }
    }
    let mut nodes = Vec::with_capacity(edition.graph.node.len() + inserted.len());
    inserted.sort_by_key(|(place, _)| *place);
    let mut inserted = inserted.into_iter().peekable();
    for (place, node) in std::mem::take(&mut edition.graph.node).into_iter().enumerate() {
        while let Some((_, new)) = inserted.next_if(|(before, _)| *before == place) {
            nodes.push(new);
        }
        nodes.push(node);
    }
    nodes.extend(inserted.map(|(_, node)| node));
    edition.graph.node = nodes;
    let mut bytes_per_token = 0;
    for cache in caches {
        bytes_per_token += cache.bytes_per_token(Some(bits))?;
    }
    let names: Vec<&String> = caches.iter().flat_map(|cache| [&cache.past.name, &cache.present.name]).collect();
    let decoder = edition.decoder_mut()?;
    for port in decoder.inputs.iter_mut().chain(&mut decoder.outputs).filter(|port| names.contains(&&port.name)) {
        port.dtype = dtype;
        if let (Bits::Four, Some(Dim::Size(width))) = (bits, port.dims.last_mut()) {
            *width /= 2;
        }
    }
    edition.manifest.cache.dtype = dtype;
    edition.manifest.cache.bytes_per_token = bytes_per_token;
    Ok(())
}

fn retype(value: &mut crate::package::onnx::ValueInfoProto, element: i32, width: Option<i64>) {
    let Some(tensor) = value.r#type.as_mut().and_then(|of| of.tensor_type.as_mut()) else { return };
    tensor.elem_type = Some(element);
    if let (Some(width), Some(last)) = (width, tensor.shape.as_mut().and_then(|shape| shape.dim.last_mut())) {
        last.dim_value = Some(width);
    }
}

/// Tells GroupQueryAttention.
fn attend(edition: &mut Edition, cache: &Cache, values: &[f32], channels: &Channels, bits: Bits) {
    let key = cache.past.role == PortRole::PastKey;
    let (place, attribute) = if key { (12, "k_quant_type") } else { (13, "v_quant_type") };
    let name = format!("{}.scale", cache.past.name);
    let kind = match channels.sharing {
        Sharing::Tensor => "PER_TENSOR",
        Sharing::Channel => "PER_CHANNEL",
    };
    edition.set(
        &name,
        data_type::FLOAT,
        &dims(channels),
        values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    );
    let node = &mut edition.graph.node[cache.node];
    if node.input.len() <= place {
        node.input.resize(place + 1, String::new());
    }
    node.input[place] = name;
    let width = "kv_cache_bit_width";
    node.attribute.retain(|set| set.name() != attribute && set.name() != width);
    node.attribute.push(AttributeProto::of_int(width, bits.count().into()));
    node.attribute.push(AttributeProto::of_string(attribute, kind));
}

/// Joins integers.
fn join(
    edition: &mut Edition,
    cache: &Cache,
    values: &[f32],
    channels: &Channels,
    inserted: &mut Vec<(usize, NodeProto)>,
) -> Result<()> {
    let (past, present) = (&cache.past.name, &cache.present.name);
    let named = |word: &str| format!("{past}.{word}");
    let float = cache.past.dtype;
    let (element, bytes) = floats(values, float)?;
    edition.set(&named("scale"), element, &dims(channels), bytes);
    edition.set(&named("least"), element, &[], floats(&[-128.0], float)?.1);
    edition.set(&named("most"), element, &[], floats(&[127.0], float)?.1);
    // Whoever read the present reads floats again.
    for input in edition.graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|input| *input == present) {
        *input = named("values");
    }
    let node = &mut edition.graph.node[cache.node];
    let made = std::mem::replace(&mut node.input[1], named("new"));
    let stage = |operator: &str, inputs: &[&str], output: &str| NodeProto {
        name: Some(format!("/{output}/{operator}")),
        op_type: Some(operator.to_owned()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let cast = |input: &str, output: &str, element: i32| {
        let to = vec![AttributeProto::of_int("to", element.into())];
        NodeProto { attribute: to, ..stage("Cast", &[input], output) }
    };
    // By hand rather than by QuantizeLinear and DequantizeLinear: with a scale a channel these take ten times as long
    // on the CPU, and ONNX Runtime's optimizer moves them about and fails where they are halves.
    let before = [
        stage("Div", &[&made, &named("scale")], &named("scaled")),
        stage("Round", &[&named("scaled")], &named("rounded")),
        stage("Clip", &[&named("rounded"), &named("least"), &named("most")], &named("cut")),
        cast(&named("cut"), &named("new"), data_type::INT8),
    ];
    let after = [
        cast(present, &named("integers"), element),
        stage("Mul", &[&named("integers"), &named("scale")], &named("values")),
    ];
    inserted.extend(before.into_iter().map(|node| (cache.node, node)));
    inserted.extend(after.into_iter().map(|node| (cache.node + 1, node)));
    Ok(())
}

/// Dimensions of scales.
fn dims(channels: &Channels) -> Vec<u64> {
    match channels.sharing {
        Sharing::Tensor => vec![1],
        Sharing::Channel => vec![1, channels.heads as u64, 1, channels.width as u64],
    }
}

/// Numbers of the cache's type.
fn floats(values: &[f32], dtype: Dtype) -> Result<(i32, Vec<u8>)> {
    Ok(match dtype {
        Dtype::Float32 => (data_type::FLOAT, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::Float16 => {
            // No scale becomes zero, by which nothing can be divided.
            let least = |half: half::f16| if half == half::f16::ZERO { half::f16::MIN_POSITIVE } else { half };
            let halves = values.iter().map(|value| least(half::f16::from_f32(*value)));
            (data_type::FLOAT16, halves.flat_map(half::f16::to_le_bytes).collect())
        }
        other => {
            return Err(Error::unsupported(format!("caches of {other:?} that a Concat joins cannot be quantized")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::package::onnx::build;

    fn port(name: &str, role: PortRole, dtype: Dtype, width: u64) -> Port {
        let dims = build::dims(&format!("batch 2 past {width}"));
        Port { name: name.to_owned(), role, layer: Some(0), dtype, dims }
    }

    fn of(nodes: Vec<NodeProto>, dtype: Dtype, width: u64, bits: Bits) -> Result<Cache> {
        let graph = GraphProto { node: nodes, ..GraphProto::default() };
        let (past, present) = (PortRole::PastKey, PortRole::PresentKey);
        Cache::of(&graph, &port("past", past, dtype, width), &port("present", present, dtype, width), bits)
    }

    fn joined(axis: i64) -> NodeProto {
        let attribute = vec![AttributeProto::of_int("axis", axis)];
        NodeProto { attribute, ..build::node("Concat", &["past", "new"], "present") }
    }

    fn attention() -> NodeProto {
        let mut node = build::node("GroupQueryAttention", &["q", "k", "v", "past", "past_value", "s", "t"], "out");
        node.output.push("present".to_owned());
        node
    }

    #[test]
    fn attention_and_joints_are_found() {
        for (node, form) in [(attention(), Form::Attention), (joined(2), Form::Joined), (joined(-2), Form::Joined)] {
            let cache = of(vec![node], Dtype::Float32, 16, Bits::Eight).unwrap();
            assert_eq!(cache.form, form);
            assert_eq!(cache.bytes_per_token(None).unwrap(), 2 * 16 * 4);
            assert_eq!(cache.bytes_per_token(Some(Bits::Four)).unwrap(), 16);
        }
    }

    #[test]
    fn other_graphs_are_refused_by_name() {
        let other = build::node("MultiHeadAttention", &["q", "past"], "present");
        for (nodes, dtype, width, bits, words) in [
            (vec![other], Dtype::Float32, 16, Bits::Eight, "MultiHeadAttention"),
            (vec![joined(1)], Dtype::Float32, 16, Bits::Eight, "Concat"),
            (vec![joined(2)], Dtype::Float32, 16, Bits::Four, "GroupQueryAttention"),
            (vec![attention()], Dtype::Float32, 15, Bits::Four, "15 channels"),
            (vec![attention()], Dtype::Int8, 16, Bits::Eight, "already"),
        ] {
            let error = of(nodes, dtype, width, bits).unwrap_err();
            assert_eq!(error.root_kind(), Kind::Unsupported);
            assert!(error.chain().contains(words), "{}", error.chain());
        }
        assert!(of(Vec::new(), Dtype::Float32, 16, Bits::Eight).is_err());
    }

    #[test]
    fn no_scale_of_halves_is_zero() {
        let (element, bytes) = floats(&[1e-9, 0.5], Dtype::Float16).unwrap();
        let halves: Vec<half::f16> =
            bytes.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes)).collect();
        assert_eq!((element, halves), (data_type::FLOAT16, vec![half::f16::MIN_POSITIVE, half::f16::from_f32(0.5)]));
        assert!(floats(&[1.0], Dtype::BFloat16).is_err());
    }
}
