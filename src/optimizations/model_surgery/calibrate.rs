//! What the model does with some tokens: how much each layer turns the stream, and which experts its routers choose.
//!
//! One layer runs after the other, each over all windows and in a session of its own: a model that is larger than memory
//! can be looked at as well, and nothing but the stream is kept between them.

use std::collections::{BTreeMap, HashSet};

use super::experts::{Choice, Router};
use super::slice::slice;
use super::stream::Stream;
use super::window::Windows;
use crate::cell::{Backend, Dtype, ElementType, ProviderKind};
use crate::error::{Context, Error, Result};
use crate::optimizations::Workshop;
use crate::package::edition::Edition;
use crate::package::onnx::{self, GraphProto, ModelProto, ValueInfoProto, build, data_type};
use crate::package::{Dim, Port, PortRole};
use crate::runtime::{Bound, HostTensor, Output, OutputElements, Session, SessionOptions};

/// Lets ONNX Runtime find the weights of a graph that it gets from memory.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calibration {
    /// Tokens that went through the model.
    pub tokens: u64,
    /// What they were.
    pub source: String,
    /// Of each layer, 1 − the mean cosine similarity of the stream before and behind it ("block influence", Men et al.
    /// 2024, arXiv 2403.03853).
    pub importance: Vec<f64>,
    /// Of each layer with experts, how often each was chosen.
    pub uses: BTreeMap<usize, Vec<u64>>,
}

/// Two values, or one, whose sum is the stream of a window, as they lie in memory.
type State = Vec<Output>;

/// Runs the model over the windows on the CPU provider. The provider of the cell has no say: what is cut off must not
/// depend on it.
///
/// # Errors
/// A graph without a known stream; what ONNX Runtime says.
pub fn measure(edition: &Edition, windows: &Windows, routers: &[Router], workshop: &Workshop) -> Result<Calibration> {
    let stream = Stream::find(&edition.graph, edition.decoder()?)?;
    let experts = edition.manifest.shape.experts.unwrap_or(0) as usize;
    let chosen = edition.manifest.shape.experts_per_token.unwrap_or(0) as usize;
    let float = float_type(edition.manifest.cache.dtype)?;
    let layers = stream.ends.len();
    let mut calibration =
        Calibration { tokens: windows.tokens(), source: windows.source.clone(), ..Calibration::default() };
    let mut states: Vec<State> = Vec::new();
    for layer in 0..layers {
        workshop.report.progress("calibrate", layer as u64, layers as u64)?;
        let router = routers.iter().find(|router| router.layer == layer);
        let before = match layer.checked_sub(1) {
            Some(before) => edition.graph.node[stream.ends[before]].input[..2].to_vec(),
            None => Vec::new(),
        };
        let mut wanted: Vec<(String, ElementType)> =
            edition.graph.node[stream.ends[layer]].input[..2].iter().map(|name| (name.clone(), float)).collect();
        if layer == 0 && wanted.iter().all(|(name, _)| *name != stream.embedded) {
            wanted.push((stream.embedded.clone(), float));
        }
        let kept = wanted.len();
        wanted.extend(router.map(|router| match &router.choice {
            Choice::Scores(name) => (name.clone(), float),
            Choice::Ids(name) => (name.clone(), ElementType::Int64),
        }));
        let (mut session, inputs) = open(edition, &before, &wanted, workshop)?;
        let (mut sum, mut counts) = (0.0, vec![0; experts]);
        for (place, ids) in windows.ids.iter().enumerate() {
            let mut given = Vec::with_capacity(inputs.len());
            for port in &inputs {
                given.push((port.name.clone(), input(port, ids)?));
            }
            for (name, output) in before.iter().zip(states.get(place).into_iter().flatten()) {
                given.push((name.clone(), again(output)?));
            }
            let mut bound = Bound::new(&session, &cpu(workshop), given, &wanted, true)?;
            bound.run(&mut session)?;
            let mut outputs = bound.outputs()?;
            if let Some(choice) = outputs.split_off(kept).first() {
                count(choice, chosen, &mut counts)?;
            }
            let old = match states.get(place) {
                Some(state) => added(state)?,
                None => added(outputs.iter().filter(|output| output.name == stream.embedded))?,
            };
            outputs.truncate(2);
            let new = added(&outputs)?;
            let width = new.len() / ids.len().max(1);
            let pairs = old.chunks_exact(width.max(1)).zip(new.chunks_exact(width.max(1)));
            sum += pairs.map(|(a, b)| cosine(a, b)).sum::<f64>();
            match states.get_mut(place) {
                Some(state) => *state = outputs,
                None => states.push(outputs),
            }
        }
        calibration.importance.push(1.0 - sum / windows.tokens().max(1) as f64);
        if router.is_some() {
            calibration.uses.insert(layer, counts);
        }
    }
    if calibration.importance.iter().any(|value| !value.is_finite()) {
        return Err(Error::new("the model's hidden states are not finite over the calibration tokens")
            .hint("measure the model's answers first; a model that overflows cannot be cut by importance"));
    }
    Ok(calibration)
}

fn cpu(workshop: &Workshop) -> Backend {
    Backend {
        name: "cpu".to_owned(),
        runtime: workshop.backend.runtime.clone(),
        provider: ProviderKind::Cpu,
        plugin: None,
        options: BTreeMap::new(),
    }
}

/// Loads the part of the graph that makes the values wanted of those that are given; and which of the decoder's inputs it
/// takes. Weights stay where the package has them.
fn open(
    edition: &Edition,
    given: &[String],
    wanted: &[(String, ElementType)],
    workshop: &Workshop,
) -> Result<(Session, Vec<Port>)> {
    let names: Vec<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
    let mut graph: GraphProto = slice(&edition.graph, given, &names);
    let read: HashSet<&str> = graph.node.iter().flat_map(|node| node.reads()).collect();
    let constants = edition.source().graph.initializer.iter();
    let constants = constants.filter(|tensor| read.contains(tensor.name())).cloned().collect();
    let ports = edition.decoder()?.inputs.iter().filter(|port| read.contains(port.name.as_str())).cloned().collect();
    let inputs: Vec<_> = edition.graph.input.iter().filter(|input| read.contains(input.name())).cloned().collect();
    graph.initializer = constants;
    graph.input = inputs;
    let float = float_type(edition.manifest.cache.dtype)?.onnx();
    let hidden = edition.manifest.shape.hidden_size;
    let dims = [Dim::Symbol("batch".to_owned()), Dim::Symbol("sequence".to_owned()), Dim::Size(hidden)];
    graph.input.extend(given.iter().map(|name| build::tensor(name, float, &dims)));
    graph.output = wanted.iter().map(|(name, element)| ValueInfoProto::of_tensor(name, element.onnx(), None)).collect();
    let model = ModelProto { graph: Some(graph), ..edition.source().model.clone() };
    let folder = edition.package().root.to_str().ok_or_else(|| {
        Error::unsupported(format!("the path `{}` is not UTF-8", edition.package().root.display()))
            .hint("move the package")
    })?;
    let config = BTreeMap::from([(WEIGHTS_FOLDER.to_owned(), folder.to_owned())]);
    let options = SessionOptions { config, ..SessionOptions::with_threads(workshop.threads) };
    let session = Session::of_bytes(workshop.runtime, &onnx::write(&model), &cpu(workshop), &options)
        .context("cannot load a layer for calibration")?;
    Ok((session, ports))
}

/// What a layer made, for the next one.
fn again(output: &Output) -> Result<HostTensor> {
    let OutputElements::Bytes(bytes) = &output.elements else {
        return Err(Error::new(format!("`{}` holds texts", output.name)));
    };
    let mut tensor = HostTensor::new(output.element, &output.shape)?;
    tensor.bytes_mut().copy_from_slice(bytes);
    Ok(tensor)
}

/// The sum of values of one shape.
fn added<'a>(values: impl IntoIterator<Item = &'a Output>) -> Result<Vec<f32>> {
    let mut sum = Vec::new();
    for value in values {
        let own = floats(value)?;
        if sum.is_empty() {
            sum = own;
        } else {
            sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
    }
    Ok(sum)
}

/// What goes into an input for one sequence of these tokens, from its first on.
fn input(port: &Port, ids: &[u32]) -> Result<HostTensor> {
    let length = ids.len() as u64;
    let whole = |shape: &[u64], values: &mut dyn Iterator<Item = i64>| {
        let mut tensor = HostTensor::new(element_type(port.dtype)?, shape)?;
        let width = port.dtype.size();
        for (slot, value) in tensor.bytes_mut().chunks_exact_mut(width).zip(values) {
            slot.copy_from_slice(&value.to_le_bytes()[..width]);
        }
        Ok(tensor)
    };
    match port.role {
        PortRole::InputIds => whole(&[1, length], &mut ids.iter().map(|&id| i64::from(id))),
        PortRole::AttentionMask => whole(&[1, length], &mut std::iter::repeat(1)),
        PortRole::PositionIds => whole(&[1, length], &mut (0..)),
        PortRole::MropePositionIds => whole(&[3, 1, length], &mut (0..length as i64).cycle()),
        PortRole::LogitsPositions => whole(&[1, 1], &mut std::iter::once(length as i64 - 1)),
        // Nothing is cached yet, and nothing is seen.
        _ => {
            let size = |(axis, dim): (usize, &Dim)| match dim {
                Dim::Size(size) => *size,
                Dim::Symbol(_) => u64::from(axis == 0 && port.role != PortRole::ImageFeatures),
            };
            let shape: Vec<u64> = port.dims.iter().enumerate().map(size).collect();
            HostTensor::new(element_type(port.dtype)?, &shape)
        }
    }
}

fn element_type(dtype: Dtype) -> Result<ElementType> {
    match dtype {
        Dtype::Int64 => Ok(ElementType::Int64),
        Dtype::Int32 => Ok(ElementType::Int32),
        float => float_type(float),
    }
}

fn float_type(dtype: Dtype) -> Result<ElementType> {
    match dtype {
        Dtype::Float32 => Ok(ElementType::Float32),
        Dtype::Float16 => Ok(ElementType::Float16),
        Dtype::BFloat16 => Ok(ElementType::BFloat16),
        other => Err(Error::unsupported(format!("hidden states of the type {other:?} are not known"))),
    }
}

/// An output of floats.
fn floats(output: &Output) -> Result<Vec<f32>> {
    let OutputElements::Bytes(bytes) = &output.elements else {
        return Err(Error::new(format!("`{}` holds texts", output.name)));
    };
    let halves = || bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    Ok(match output.element.onnx() {
        data_type::FLOAT16 => halves().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        data_type::BFLOAT16 => halves().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect(),
    })
}

/// Cosine of the angle between two vectors; of one without length, 0.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    // NaN stays, to be seen.
    if lengths == 0.0 { 0.0 } else { dot(a, b) / lengths }
}

/// Adds one for each expert that a token goes to. Of equal scores the first ones count, as ONNX's TopK has it.
fn count(output: &Output, chosen: usize, counts: &mut [u64]) -> Result<()> {
    let strange = || Error::new(format!("`{}` names an expert that there is not", output.name));
    if output.element == ElementType::Int64 {
        let OutputElements::Bytes(bytes) = &output.elements else { return Err(strange()) };
        for eight in bytes.as_chunks::<8>().0 {
            let expert = usize::try_from(i64::from_le_bytes(*eight)).ok();
            *expert.and_then(|expert| counts.get_mut(expert)).ok_or_else(strange)? += 1;
        }
        return Ok(());
    }
    let scores = floats(output)?;
    for row in scores.chunks_exact(counts.len().max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        order.into_iter().take(chosen).for_each(|expert| counts[expert] += 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_is_a_cosine() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 3.0]), 0.0);
        assert!(cosine(&[f32::NAN, 0.0], &[0.0, 3.0]).is_nan());
    }

    #[test]
    fn the_best_scores_are_the_choice() {
        let scores = [0.1_f32, 0.9, 0.9, -1.0, 2.0, 2.0, 2.0, 2.0];
        let bytes = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let (element, shape) = (ElementType::Float32, vec![2, 4]);
        let output = Output { name: "scores".to_owned(), element, shape, elements: OutputElements::Bytes(bytes) };
        let mut counts = [0; 4];
        count(&output, 2, &mut counts).unwrap();
        assert_eq!(counts, [1, 2, 1, 0]);
        let bytes = [3_i64, 4].iter().flat_map(|id| id.to_le_bytes()).collect();
        let output = Output { element: ElementType::Int64, elements: OutputElements::Bytes(bytes), ..output };
        assert!(count(&output, 2, &mut counts).is_err());
    }
}
