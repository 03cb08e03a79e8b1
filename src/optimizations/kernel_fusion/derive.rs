//! The derivation: nodes replaced by operators of this program.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::patterns::{Match, PATTERNS};
use super::view::View;
use crate::error::{Error, Result};
use crate::optimizations::{Derivation, Evidence, Stage, Workshop};
use crate::package::Package;
use crate::package::edition::Edition;
use crate::package::onnx::{NodeProto, Source};
use crate::runtime::custom::DOMAIN;

/// Changes with the operators' meaning and with what they replace.
const VERSION: u32 = 1;

/// Puts operators of this program in the place of several of ONNX Runtime's.
#[derive(Debug)]
pub struct Operators {
    /// Their names.
    pub names: Vec<&'static str>,
}

impl Derivation for Operators {
    fn stage(&self) -> Stage {
        Stage::Operators
    }

    fn describe(&self) -> String {
        format!("fused {} version {VERSION}", self.names.join(" "))
    }

    fn derive(&self, package: &Package, folder: &Path, _workshop: &Workshop) -> Result<Evidence> {
        let mut edition = Edition::of(package)?;
        let before = edition.graph.node.len();
        let fused = fuse(edition.source(), &self.names);
        if fused.counts.is_empty() {
            return Err(Error::unsupported(format!(
                "nothing in the graph of `{}` is what {} take the place of",
                package.manifest.model.id,
                self.names.join(", ")
            ))
            .hint("they take the place of contrib operators on floats of 32 bits: export the model `fused`, with int4, int8 or fp32 weights"));
        }
        let counts = fused.counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        edition.graph.node = fused.nodes;
        edition.import(DOMAIN, 1);
        let after = edition.graph.node.len();
        edition.write(folder)?;
        Ok(Evidence::from([
            ("fusion_nodes_before".to_owned(), (before as u64).into()),
            ("fusion_nodes_after".to_owned(), (after as u64).into()),
            ("fusion_nodes_replaced".to_owned(), (fused.replaced as u64).into()),
            ("fusion_operators".to_owned(), counts.into()),
        ]))
    }
}

/// A graph's nodes after the replacements.
#[derive(Debug)]
struct Fused {
    nodes: Vec<NodeProto>,
    /// Nodes of each operator.
    counts: BTreeMap<&'static str, u64>,
    /// Nodes that went.
    replaced: usize,
}

fn fuse(source: &Source, names: &[&'static str]) -> Fused {
    let view = View::new(source);
    let mut gone: HashSet<usize> = HashSet::new();
    let mut new: HashMap<usize, NodeProto> = HashMap::new();
    let mut counts = BTreeMap::new();
    for place in 0..view.nodes().len() {
        for pattern in PATTERNS.iter().filter(|pattern| names.contains(&pattern.operator)) {
            let Some(Match { node, replaced }) = (pattern.find)(&view, place) else { continue };
            if replaced.iter().any(|place| gone.contains(place)) {
                continue;
            }
            gone.extend(replaced);
            new.insert(place, node);
            *counts.entry(pattern.operator).or_default() += 1;
        }
    }
    let replaced = gone.len();
    let mut nodes = Vec::with_capacity(view.nodes().len());
    for (place, node) in view.nodes().iter().enumerate() {
        match new.remove(&place) {
            Some(fused) => nodes.push(fused),
            None if gone.contains(&place) => {}
            None => nodes.push(node.clone()),
        }
    }
    Fused { nodes, counts, replaced }
}
