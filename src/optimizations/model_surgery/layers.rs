//! Layers leave: the stream flows past them, and those that stay are counted anew.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::stream::{Stream, sum_of};
use crate::error::{Error, Result};
use crate::package::edition::Edition;
use crate::package::onnx::{AttributeProto, GraphProto, NodeProto};
use crate::package::{Dim, Graph, Port, PortRole};

const CACHE_ROLES: [PortRole; 4] =
    [PortRole::PastKey, PortRole::PastValue, PortRole::PresentKey, PortRole::PresentValue];

/// Takes layers out, by number. What joins the stream behind a layer without being its work, as features of images do,
/// still joins it there.
///
/// # Errors
/// A graph whose layers cannot be told apart; a first norm that this program cannot make anew.
pub fn drop(edition: &mut Edition, dropped: &BTreeSet<usize>) -> Result<()> {
    if dropped.is_empty() {
        return Ok(());
    }
    let decoder = edition.decoder_mut()?.clone();
    let stream = Stream::find(&edition.graph, &decoder)?;
    let layers = stream.ends.len();
    let mut layer = 0;
    let mut passes = Vec::new();
    while layer < layers {
        let first = layer;
        while layer < layers && dropped.contains(&layer) {
            layer += 1;
        }
        if layer > first {
            passes.push((first, layer));
        }
        layer += 1;
    }
    let constants: HashSet<String> = edition.constants_read().into_iter().map(|(name, ..)| name).collect();
    // From the last to the first: places of nodes before a pass stay what they are.
    for (first, behind) in passes.into_iter().rev() {
        pass_by(&mut edition.graph, &stream, &constants, first..behind)?;
    }
    take_ports_out(edition, &decoder, dropped)?;
    edition.remove_dead()?;
    count_anew(edition, layers, dropped)
}

/// Leads the stream past neighbouring layers.
fn pass_by(graph: &mut GraphProto, stream: &Stream, constants: &HashSet<String>, layers: Range<usize>) -> Result<()> {
    let end = stream.ends[layers.end - 1];
    let mut state = match layers.start {
        0 => vec![stream.embedded.clone()],
        first => graph.node[stream.ends[first - 1]].input[..2].to_vec(),
    };
    let beside: Vec<String> = layers.flat_map(|layer| beside(graph, stream, constants, layer)).collect();
    let taken: HashSet<String> = graph.node.iter().map(|node| node.name().to_owned()).collect();
    let names = (0..).map(|number| format!("{}/passed/Add_{number}", graph.node[end].name()));
    let mut names = names.filter(|name| !taken.contains(name));
    let mut sums = Vec::new();
    for value in beside {
        if state.len() == 1 {
            state.push(value);
            continue;
        }
        let Some(name) = names.next() else { break };
        let sum = format!("{name}/output_0");
        let last = std::mem::replace(&mut state[1], sum.clone());
        sums.push(NodeProto {
            name: Some(name),
            op_type: Some("Add".to_owned()),
            input: vec![last, value],
            output: vec![sum],
            ..NodeProto::default()
        });
    }
    match state.as_slice() {
        [alone] => {
            let alone = alone.clone();
            begin_with(graph, end, &alone)?;
        }
        _ => graph.node[end].input[..2].clone_from_slice(&state),
    }
    // Before the node that reads them.
    graph.node.splice(end..end, sums);
    Ok(())
}

/// What is added to a layer's own last output before it joins the stream, of values that no layer makes. A constant is the
/// bias of the layer's last product.
fn beside(graph: &GraphProto, stream: &Stream, constants: &HashSet<String>, layer: usize) -> Vec<String> {
    let start = layer.checked_sub(1).map_or(0, |before| stream.ends[before]);
    let end = stream.ends[layer];
    let made: HashMap<&str, usize> =
        (start..end).flat_map(|place| graph.node[place].makes().map(move |name| (name, place))).collect();
    // What depends on the stream is the layer's own.
    let mut own: HashSet<&str> = match layer {
        0 => HashSet::from([stream.embedded.as_str()]),
        _ => graph.node[start].makes().collect(),
    };
    for node in &graph.node[start..end] {
        if node.reads().iter().any(|name| own.contains(name)) {
            own.extend(node.makes());
        }
    }
    let mut found = Vec::new();
    for joined in &graph.node[end].input[..2] {
        let mut value = joined;
        while let Some(&place) = made.get(value.as_str()) {
            let node = &graph.node[place];
            let (mine, others): (Vec<&String>, Vec<&String>) =
                node.input.iter().partition(|input| own.contains(input.as_str()));
            let ("Add", [mine], [other]) = (node.op_type(), mine.as_slice(), others.as_slice()) else { break };
            if !constants.contains(*other) {
                found.push((*other).clone());
            }
            value = mine;
        }
    }
    found
}

/// Makes of the node at `end`, which added two values up, one that begins with the embedded tokens alone.
fn begin_with(graph: &mut GraphProto, end: usize, embedded: &str) -> Result<()> {
    let sum = sum_of(&mut graph.node[end]);
    let node = &mut graph.node[end];
    match node.op_type() {
        "Add" => {}
        "SkipSimplifiedLayerNormalization" if node.input_at(3).is_none() => {
            node.op_type = Some("SimplifiedLayerNormalization".to_owned());
            node.domain = None;
            node.input = vec![embedded.to_owned(), node.input[2].clone()];
            node.output.truncate(1);
            node.attribute.push(AttributeProto::of_int("axis", -1));
            node.attribute.push(AttributeProto::of_int("stash_type", 1));
        }
        other => {
            return Err(Error::unsupported(format!("the first layer cannot leave: `{other}` follows it"))
                .hint("let the first layer stay"));
        }
    }
    // An addition that nobody reads any more is left out.
    for node in &mut graph.node {
        node.input.iter_mut().filter(|name| **name == sum).for_each(|name| embedded.clone_into(name));
    }
    Ok(())
}

/// Removes the caches of layers that left; those that stay get the names of the first ones.
fn take_ports_out(edition: &mut Edition, decoder: &Graph, dropped: &BTreeSet<usize>) -> Result<()> {
    let (mut gone, mut renamed) = (HashSet::new(), HashMap::new());
    for role in CACHE_ROLES {
        let ports = decoder.layers(role);
        let names = ports.iter().map(|port| &port.name);
        let (left, kept): (Vec<_>, Vec<_>) = ports.iter().enumerate().partition(|(place, _)| dropped.contains(place));
        gone.extend(left.iter().map(|(_, port)| port.name.clone()));
        renamed.extend(kept.iter().map(|(_, port)| port.name.clone()).zip(names.cloned()));
    }
    let graph = &mut edition.graph;
    graph.input.retain(|input| !gone.contains(input.name()));
    graph.output.retain(|output| !gone.contains(output.name()));
    // The caches of layers that leave are still read by what `remove_dead` removes, under names that may be others' now.
    let rename = |name: &mut String| {
        if let Some(new) = renamed.get(name) {
            name.clone_from(new);
        } else if gone.contains(name) {
            name.push_str("/gone");
        }
    };
    graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)).for_each(rename);
    for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        value.name.iter_mut().for_each(rename);
    }

    let mut bytes = 0;
    let numbers: HashMap<u64, u64> = {
        let ports = decoder.layers(PortRole::PresentKey);
        let kept = ports.iter().enumerate().filter(|(place, _)| !dropped.contains(place));
        kept.zip(&ports).filter_map(|((_, port), first)| Some((port.layer?, first.layer?))).collect()
    };
    let entry = edition.decoder_mut()?;
    for ports in [&mut entry.inputs, &mut entry.outputs] {
        ports.retain(|port| !gone.contains(&port.name));
        for port in ports.iter_mut().filter(|port| CACHE_ROLES.contains(&port.role)) {
            rename(&mut port.name);
            port.layer = port.layer.and_then(|layer| numbers.get(&layer).copied());
        }
    }
    for port in entry.outputs.iter().filter(|port| CACHE_ROLES.contains(&port.role)) {
        bytes += bytes_per_token(port);
    }
    let (layers, manifest) = (numbers.len() as u64, &mut edition.manifest);
    manifest.cache.bytes_per_token = bytes;
    manifest.shape.layers = layers;
    Ok(())
}

/// One token's share of a cache tensor `[batch, heads, tokens, width]`.
fn bytes_per_token(port: &Port) -> u64 {
    let sizes = port.dims.iter().filter_map(|dim| match dim {
        Dim::Size(size) => Some(*size),
        Dim::Symbol(_) => None,
    });
    sizes.product::<u64>() * port.dtype.size() as u64
}

/// Nodes, values and weights that name their layer get its new number: tools cut graphs by such names.
fn count_anew(edition: &mut Edition, layers: usize, dropped: &BTreeSet<usize>) -> Result<()> {
    let kept = (0..layers).filter(|layer| !dropped.contains(layer));
    let numbers: HashMap<usize, usize> = kept.enumerate().map(|(new, old)| (old, new)).collect();
    let new_name = |name: &str| renumbered(name, &numbers);
    for (name, ..) in edition.constants_read() {
        if let Some(new) = new_name(&name) {
            edition.rename(&name, &new)?;
        }
    }
    for node in &mut edition.graph.node {
        let names = node.input.iter_mut().chain(&mut node.output).chain(&mut node.name);
        names.for_each(|name| {
            if let Some(new) = new_name(name) {
                *name = new;
            }
        });
    }
    for value in &mut edition.graph.value_info {
        value.name = value.name.take().map(|name| new_name(&name).unwrap_or(name));
    }
    let mut seen = HashSet::new();
    let twice = edition.graph.node.iter().flat_map(NodeProto::makes).find(|name| !seen.insert(*name));
    twice.map_or(Ok(()), |name| {
        Err(Error::unsupported(format!("layers cannot be counted anew: two values would be `{name}`"))
            .hint("drop layers of a package that this program's exporter wrote"))
    })
}

/// The name with another number behind `layers.` or `layers/`; `None` where it stays.
pub fn renumbered(name: &str, numbers: &HashMap<usize, usize>) -> Option<String> {
    name.match_indices("layers").find_map(|(at, word)| {
        let start = at + word.len() + 1;
        let rest = name[at + word.len()..].strip_prefix(['.', '/'])?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let old: usize = rest[..digits].parse().ok()?;
        let new = numbers.get(&old).filter(|new| **new != old)?;
        Some(format!("{}{new}{}", &name[..start], &rest[digits..]))
    })
}
