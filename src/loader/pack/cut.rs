//! The rewritten graph as one model, and as one model a part.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::rewrite::{Rewritten, import_domain};
use super::types::Types;
use crate::error::{Error, Result};
use crate::package::onnx::Source;
use crate::package::onnx::{GraphProto, ModelProto, TensorProto, ValueInfoProto};
use crate::package::shards::Form;

/// A part of the graph as a model of its own.
#[derive(Debug)]
pub struct Part {
    /// The part's number.
    pub part: usize,
    /// The model.
    pub model: ModelProto,
    /// Tensors from earlier parts.
    pub takes: Vec<String>,
    /// Tensors for later ones.
    pub makes: Vec<String>,
}

/// Names of the constants that stay in the graph, in the graph's order.
pub fn kept(source: &Source, rewritten: &Rewritten) -> Vec<String> {
    let mut read: HashSet<&str> = rewritten.nodes.iter().flat_map(|node| node.reads()).collect();
    read.extend(source.graph.output.iter().map(|output| output.name()));
    // A record has the name of the constant that it is, where that is free.
    for name in rewritten.nodes.iter().flat_map(|node| node.makes()) {
        read.remove(name);
    }
    for (_, input) in &rewritten.inputs {
        read.remove(input.name());
    }
    let names = source.graph.initializer.iter().map(TensorProto::name);
    names.filter(|name| read.contains(name)).map(str::to_owned).collect()
}

/// The whole graph as one model.
pub fn whole(
    source: &Source,
    rewritten: &Rewritten,
    constants: &HashMap<String, TensorProto>,
    form: Form,
) -> ModelProto {
    let graph = &source.graph;
    let names: HashSet<&str> = rewritten.nodes.iter().flat_map(|node| node.makes()).collect();
    let cut = GraphProto {
        node: rewritten.nodes.clone(),
        initializer: in_order(graph, constants, |_| true),
        value_info: graph.value_info.iter().filter(|value| names.contains(value.name())).cloned().collect(),
        ..around(graph)
    };
    model(source, cut, form)
}

/// One model for each part that has nodes, in order.
///
/// # Errors
/// A tensor between parts whose type is unknown.
pub fn parts(
    source: &Source,
    rewritten: &Rewritten,
    constants: &HashMap<String, TensorProto>,
    form: Form,
) -> Result<Vec<Part>> {
    let graph = &source.graph;
    let types = Types::of(graph);
    let made_in: HashMap<&str, usize> = rewritten
        .nodes
        .iter()
        .zip(&rewritten.parts)
        .flat_map(|(node, &part)| node.makes().map(move |name| (name, part)))
        .collect();
    if let Some(output) = graph.output.iter().find(|output| !made_in.contains_key(output.name())) {
        return Err(Error::unsupported(format!("no node makes the graph's output `{}`", output.name())));
    }
    let value = |name: &String| {
        types.value(name).ok_or_else(|| {
            Error::unsupported(format!("the type of `{name}`, which passes between layers, is not known"))
                .hint("let ONNX's shape inference write types into the model first")
        })
    };
    let used: BTreeSet<usize> = rewritten.parts.iter().copied().collect();
    let mut cuts = Vec::with_capacity(used.len());
    for &part in &used {
        let inside = || rewritten.nodes.iter().zip(&rewritten.parts).filter(|(_, in_part)| **in_part == part);
        let read: HashSet<&str> = inside().flat_map(|(node, _)| node.reads()).collect();
        let crossing = |own: &dyn Fn(usize) -> bool, wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
            // In the order in which they are made.
            let makers = rewritten.nodes.iter().zip(&rewritten.parts).filter(|(_, made)| own(**made));
            let names = makers.flat_map(|(node, _)| node.makes());
            names.filter(|name| wanted(name)).map(str::to_owned).collect()
        };
        let takes = crossing(&|made| made < part, &|name| read.contains(name));
        let later: HashSet<&str> = rewritten
            .nodes
            .iter()
            .zip(&rewritten.parts)
            .filter(|(_, in_part)| **in_part > part)
            .flat_map(|(node, _)| node.reads())
            .collect();
        let makes = crossing(&|made| made == part, &|name| later.contains(name));
        let mut input: Vec<ValueInfoProto> =
            graph.input.iter().filter(|input| read.contains(input.name())).cloned().collect();
        input.extend(takes.iter().map(value).collect::<Result<Vec<_>>>()?);
        input.extend(rewritten.inputs.iter().filter(|(of, _)| *of == part).map(|(_, value)| value.clone()));
        let own = |output: &&ValueInfoProto| made_in.get(output.name()) == Some(&part);
        let mut output: Vec<ValueInfoProto> = graph.output.iter().filter(own).cloned().collect();
        let passed = makes.iter().filter(|name| !graph.output.iter().any(|output| output.name() == name.as_str()));
        output.extend(passed.map(value).collect::<Result<Vec<_>>>()?);
        let names: HashSet<&str> = inside().flat_map(|(node, _)| node.makes()).collect();
        let stated: HashSet<&str> = output.iter().map(ValueInfoProto::name).collect();
        let cut = GraphProto {
            node: inside().map(|(node, _)| node.clone()).collect(),
            initializer: in_order(graph, constants, |name| read.contains(name)),
            value_info: graph
                .value_info
                .iter()
                .filter(|value| names.contains(value.name()) && !stated.contains(value.name()))
                .cloned()
                .collect(),
            sparse_initializer: graph
                .sparse_initializer
                .iter()
                .filter(|sparse| sparse.values.as_ref().is_some_and(|values| read.contains(values.name())))
                .cloned()
                .collect(),
            input,
            output,
            ..around(graph)
        };
        cuts.push(Part { part, model: model(source, cut, form), takes, makes });
    }
    Ok(cuts)
}

/// What a cut keeps of the graph around it.
fn around(graph: &GraphProto) -> GraphProto {
    GraphProto {
        name: graph.name.clone(),
        doc_string: graph.doc_string.clone(),
        metadata_props: graph.metadata_props.clone(),
        input: graph.input.clone(),
        output: graph.output.clone(),
        sparse_initializer: graph.sparse_initializer.clone(),
        quantization_annotation: graph.quantization_annotation.clone(),
        ..GraphProto::default()
    }
}

fn in_order(
    graph: &GraphProto,
    constants: &HashMap<String, TensorProto>,
    wanted: impl Fn(&str) -> bool,
) -> Vec<TensorProto> {
    let names = graph.initializer.iter().map(TensorProto::name);
    names.filter(|name| wanted(name)).filter_map(|name| constants.get(name)).cloned().collect()
}

fn model(source: &Source, graph: GraphProto, form: Form) -> ModelProto {
    let mut model = ModelProto { graph: Some(graph), ..source.model.clone() };
    if form == Form::Operators {
        import_domain(&mut model.opset_import);
    }
    model
}
