//! What a decoder's weights are: counted as a checkpoint counts them, and in bytes that one decoded token reads.

use std::collections::{HashMap, HashSet};

use super::head::Head;
use super::stream::embeddings;
use crate::cell::Precision;
use crate::error::Result;
use crate::package::edition::Edition;
use crate::package::onnx::{NodeProto, TensorProto, element_bits};
use crate::package::{Manifest, PortRole};

/// Sums over the weights of a graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Weights, the embedding's and the head's left out.
    pub total: u64,
    /// Those of them that one decoded token multiplies with.
    pub active: u64,
    /// Bytes that one decoded token reads, of all weights.
    pub bytes_read: u64,
}

/// How a weight is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    /// This many weights, all of them used.
    Matrix(u64),
    /// Stacks of experts: this many weights, of which the chosen experts' are used.
    Experts(u64),
    /// Scales and the like: bytes that are read, and no weights.
    Beside,
    /// The same of experts.
    BesideExperts,
    /// A table, of which one row is read.
    Row,
    /// The head's matrix.
    Head,
}

impl Account {
    /// Counts the weights that the graph reads as it is now.
    ///
    /// # Errors
    /// As [`Head::find`].
    pub fn of(edition: &Edition) -> Result<Self> {
        let manifest = &edition.manifest;
        let decoder = edition.decoder()?;
        let shape = &manifest.shape;
        let ids = decoder.need(PortRole::InputIds, "the token ids")?.name;
        let head = Head::find(&edition.graph, decoder)?;
        let described = edition.constants_read();
        let constants: HashMap<&str, (i32, &[u64])> =
            described.iter().map(|(name, kind, dims)| (name.as_str(), (*kind, dims.as_slice()))).collect();
        let tables: HashSet<usize> = embeddings(&edition.graph, &ids).map(|(place, _)| place).collect();
        // Codes of less than a byte lie packed in bytes, whose type does not say so.
        let packed = if manifest.precision.name == Precision::Int4 { 2 } else { 1 };

        let mut account = Self::default();
        let mut seen = HashSet::new();
        for (place, node) in edition.graph.node.iter().enumerate() {
            for (at, name) in node.input.iter().enumerate() {
                let Some(&(kind, dims)) = constants.get(name.as_str()) else { continue };
                // Names of small constants of the graph itself begin so.
                if name.starts_with('/') || !seen.insert(name.as_str()) {
                    continue;
                }
                let tensor = TensorProto {
                    data_type: Some(kind),
                    dims: dims.iter().map(|&size| size as i64).collect(),
                    ..TensorProto::default()
                };
                let (elements, bytes) = (tensor.elements(), tensor.bytes());
                let codes = if element_bits(kind) == Some(8) { packed * elements } else { elements };
                let is_head = place == head.product || Some(place) == head.dequantized;
                let part = if tables.contains(&place) || name.contains("cos_cache") || name.contains("sin_cache") {
                    Part::Row
                } else if is_head {
                    Part::Head
                } else {
                    part(node, at, name, codes, elements)
                };
                let experts = shape.experts.unwrap_or(1).max(1);
                let chosen = shape.experts_per_token.unwrap_or(1);
                let (weights, used) = match part {
                    Part::Matrix(weights) => (weights, weights),
                    Part::Experts(weights) => (weights, weights / experts * chosen),
                    _ => (0, 0),
                };
                account.total += weights;
                account.active += used;
                account.bytes_read += match part {
                    Part::Matrix(_) | Part::Beside | Part::Head => bytes,
                    Part::Experts(_) | Part::BesideExperts => bytes / experts * chosen,
                    Part::Row => bytes / dims.first().copied().unwrap_or(1).max(1),
                };
            }
        }
        Ok(account)
    }
}

fn part(node: &NodeProto, at: usize, name: &str, codes: u64, elements: u64) -> Part {
    let attribute = |name: &str| node.int(name).unwrap_or(0).max(0) as u64;
    match (node.op_type(), at) {
        ("MatMulNBits", 1) => Part::Matrix(attribute("N") * attribute("K")),
        ("MatMulNBits", 5) => Part::Matrix(elements),
        ("MatMulNBits", _) => Part::Beside,
        // Weights and biases; scales and zero points stand between and behind them.
        ("QMoE", 2 | 5 | 8) => Part::Experts(codes),
        ("QMoE", 4 | 7 | 10) | ("MoE", _) => Part::Experts(elements),
        ("QMoE", _) => Part::BesideExperts,
        ("Gather", 0) if name.ends_with(".scales") => Part::BesideExperts,
        ("Gather", 0) => Part::Experts(codes),
        ("DequantizeLinear", 1..) => Part::Beside,
        _ if name.contains("rotary_emb") => Part::Beside,
        _ => Part::Matrix(elements),
    }
}

/// Whether embedding and head are the same weights, by what a manifest counts: those that no token multiplies with are
/// then of idle experts and of the vision tower alone.
pub fn ties(manifest: &Manifest, account: Account) -> bool {
    let parameters = &manifest.parameters;
    let vision = manifest.image.as_ref().map_or(0, |image| image.parameters);
    let table = manifest.shape.vocab_size * manifest.shape.hidden_size;
    let rest = parameters.total.saturating_sub(parameters.active_per_token + vision + account.total - account.active);
    rest < table
}

/// Makes the manifest's counts those of the edited graph: what it counted before, less what the edits took away. The
/// embedding's and the head's weights are counted by whoever changes the vocabulary.
pub fn enter(edition: &mut Edition, before: Account) -> Result<()> {
    let after = Account::of(edition)?;
    let manifest = &mut edition.manifest;
    let less = |value: u64, before: u64, after: u64| value.saturating_sub(before.saturating_sub(after));
    let parameters = &mut manifest.parameters;
    parameters.total = less(parameters.total, before.total, after.total);
    parameters.active_per_token = less(parameters.active_per_token, before.active, after.active);
    let read = &mut manifest.bytes_read_per_token;
    read.weights = less(read.weights, before.bytes_read, after.bytes_read);
    Ok(())
}

#[cfg(test)]
#[path = "tests/account.rs"]
mod tests;
