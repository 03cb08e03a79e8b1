//! What the model does with some tokens: how much each layer turns the stream, and which experts its routers choose.

use std::collections::BTreeMap;

use super::experts::{Choice, Router};
use super::stream::Stream;
use super::window::Windows;
use crate::cell::{Backend, Dtype, ElementType, ProviderKind};
use crate::error::{Context, Error, Result};
use crate::optimizations::Workshop;
use crate::package::edition::Edition;
use crate::package::onnx::{self, GraphProto, ModelProto, ValueInfoProto, data_type};
use crate::package::{Dim, Port, PortRole};
use crate::runtime::{Bound, HostTensor, Output, OutputElements, Session, SessionOptions};

/// Lets ONNX Runtime find the weights of a graph that it gets from memory.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calibration {
    /// Tokens that went through the model, and what they were.
    pub tokens: u64,
    /// What they were.
    pub source: String,
    /// Of each layer, 1 − the mean cosine similarity of the stream before and behind it ("block influence", Men et al.
    /// 2024, arXiv 2403.03853).
    pub importance: Vec<f64>,
    /// Of each layer with experts, how often each was chosen.
    pub uses: BTreeMap<usize, Vec<u64>>,
}

/// Runs the model over the windows on the CPU provider, with the values of interest as outputs. The provider of the cell
/// has no say: what is cut off must not depend on it.
///
/// # Errors
/// A graph without a known stream; what ONNX Runtime says.
pub fn measure(
    edition: &Edition,
    windows: &Windows,
    routers: &[Router],
    layers: bool,
    workshop: &Workshop,
) -> Result<Calibration> {
    let decoder = edition.decoder()?;
    let mut graph = edition.graph.clone();
    let states = match layers {
        true => Stream::find(&graph, decoder)?.states(&mut graph),
        false => Vec::new(),
    };
    let activations = edition.manifest.cache.dtype;
    let float = float_type(activations)?;
    let mut wanted: Vec<(String, ElementType)> = states.iter().map(|name| (name.clone(), float)).collect();
    for router in routers {
        wanted.push(match &router.choice {
            Choice::Scores(name) => (name.clone(), float),
            Choice::Ids(name) => (name.clone(), ElementType::Int64),
        });
    }
    let mut session = open(edition, graph, &wanted, workshop)?;

    let mut sums = vec![(0.0, 0_u64); states.len().saturating_sub(1)];
    let experts = edition.manifest.shape.experts.unwrap_or(0) as usize;
    let chosen = edition.manifest.shape.experts_per_token.unwrap_or(0) as usize;
    let mut uses: BTreeMap<usize, Vec<u64>> = routers.iter().map(|router| (router.layer, vec![0; experts])).collect();
    for (done, ids) in windows.ids.iter().enumerate() {
        workshop.report.progress("calibrate", done as u64, windows.ids.len() as u64)?;
        let mut inputs = Vec::with_capacity(decoder.inputs.len());
        for port in &decoder.inputs {
            inputs.push((port.name.clone(), input(port, ids)?));
        }
        let mut bound = Bound::new(&session, &cpu(workshop), inputs, &wanted, true)?;
        bound.run(&mut session)?;
        let outputs = bound.outputs()?;
        let (streams, choices) = outputs.split_at(states.len());
        let mut before: Option<Vec<f32>> = None;
        for (place, output) in streams.iter().enumerate() {
            let behind = floats(output)?;
            if let Some(before) = before {
                let width = behind.len() / ids.len().max(1);
                for (a, b) in before.chunks_exact(width.max(1)).zip(behind.chunks_exact(width.max(1))) {
                    sums[place - 1].0 += cosine(a, b);
                    sums[place - 1].1 += 1;
                }
            }
            before = Some(behind);
        }
        for (router, output) in routers.iter().zip(choices) {
            let counts = uses.get_mut(&router.layer).ok_or_else(|| Error::new("a router without a layer"))?;
            count(output, chosen, counts)?;
        }
    }
    let importance = sums.into_iter().map(|(sum, count)| 1.0 - sum / count.max(1) as f64).collect::<Vec<f64>>();
    if importance.iter().any(|value| !value.is_finite()) {
        return Err(Error::new("the model's hidden states are not finite over the calibration tokens")
            .hint("measure the model's answers first; a model that overflows cannot be cut by importance"));
    }
    Ok(Calibration { tokens: windows.tokens(), source: windows.source.clone(), importance, uses })
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

/// Loads the graph with more outputs; its weights stay where the package has them.
fn open(
    edition: &Edition,
    mut graph: GraphProto,
    wanted: &[(String, ElementType)],
    workshop: &Workshop,
) -> Result<Session> {
    for (name, element) in wanted {
        if !graph.output.iter().any(|output| output.name() == name) {
            graph.output.push(ValueInfoProto::of_tensor(name, element.onnx(), None));
        }
    }
    graph.initializer.clone_from(&edition.source().graph.initializer);
    graph.value_info.clear();
    let model = ModelProto { graph: Some(graph), ..edition.source().model.clone() };
    let folder = edition.package().root.to_str().ok_or_else(|| {
        Error::unsupported(format!("the path `{}` is not UTF-8", edition.package().root.display()))
            .hint("move the package")
    })?;
    let options = SessionOptions {
        threads: workshop.threads,
        config: BTreeMap::from([(WEIGHTS_FOLDER.to_owned(), folder.to_owned())]),
        arena: true,
        profile: None,
    };
    Session::of_bytes(workshop.runtime, &onnx::write(&model), &cpu(workshop), &options)
        .context("cannot load the model for calibration")
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
