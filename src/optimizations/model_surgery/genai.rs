//! The files by which onnxruntime-genai loads a package, where it has them.

use serde_json::{Value, json};

use super::head::set_dim;
use crate::error::{Context, Result};
use crate::package::edition::Edition;
use crate::package::onnx::GraphProto;
use crate::package::{Dim, PortRole};

const CONFIG: &str = "genai_config.json";
/// The graph with no inputs but those that onnxruntime-genai knows, as the exporter calls it.
const GRAPH: &str = "genai.onnx";

/// Keeps the configuration, which then says what is so now, and the graph that it names.
///
/// # Errors
/// A configuration that cannot be read.
pub fn keep(edition: &mut Edition) -> Result<()> {
    let path = edition.package().root.join(CONFIG);
    let Ok(text) = std::fs::read(&path) else { return Ok(()) };
    let failed = || format!("cannot read `{}`", path.display());
    let mut config: Value = serde_json::from_slice(&text).with_context(failed)?;
    let selects = edition.decoder()?.port(PortRole::LogitsPositions).is_some();
    let (shape, tokens) = (&edition.manifest.shape, &edition.manifest.tokens);
    let mut set = |pointer: &str, value: Value| {
        // What it did not say before, it need not say now.
        if let Some(slot) = config.pointer_mut(pointer) {
            *slot = value;
        }
    };
    set("/model/vocab_size", shape.vocab_size.into());
    set("/model/bos_token_id", json!(tokens.bos));
    set("/model/pad_token_id", json!(tokens.pad.or(tokens.eos.first().copied())));
    set("/model/eos_token_id", json!(tokens.eos));
    set("/model/decoder/num_hidden_layers", shape.layers.into());
    set("/model/decoder/filename", if selects { GRAPH } else { "model.onnx" }.into());
    let mut bytes = serde_json::to_vec_pretty(&config).with_context(failed)?;
    bytes.push(b'\n');
    edition.files.insert(CONFIG.to_owned(), bytes);
    if selects {
        edition.companions.push((GRAPH.to_owned(), with_all_logits));
    }
    Ok(())
}

/// The graph without the input that chooses positions.
fn with_all_logits(mut graph: GraphProto) -> GraphProto {
    const INPUT: &str = "logits_positions";
    let reader = |graph: &GraphProto, name: &str| {
        graph.node.iter().position(|node| node.input.iter().any(|input| input == name))
    };
    let Some(unsqueeze) = reader(&graph, INPUT) else { return graph };
    let Some(gather) = reader(&graph, &graph.node[unsqueeze].output[0]) else { return graph };
    let (all, chosen) = (graph.node[gather].input[0].clone(), graph.node[gather].output[0].clone());
    for node in &mut graph.node {
        node.input.iter_mut().filter(|name| **name == chosen).for_each(|name| name.clone_from(&all));
    }
    let mut place = 0;
    graph.node.retain(|_| {
        place += 1;
        ![unsqueeze, gather].contains(&(place - 1))
    });
    graph.input.retain(|input| input.name() != INPUT);
    set_dim(&mut graph.output, "logits", 1, Dim::Symbol("sequence".to_owned()));
    graph
}
