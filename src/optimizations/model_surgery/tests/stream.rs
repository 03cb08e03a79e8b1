use super::*;
use crate::package::onnx::build::node;

/// Two layers: attention that makes a cache and joins the stream, and a product that joins it.
fn decoder() -> (GraphProto, Graph) {
    let nodes = vec![
        node("Gather", &["table", "ids"], "x"),
        node("Shape", &["ids"], "length"),
        node("MatMul", &["x", "w"], "key.0"),
        node("Softmax", &["key.0"], "a0"),
        node("Add", &["x", "a0"], "h0"),
        node("Relu", &["h0"], "n0"),
        node("Add", &["n0", "bias"], "m0"),
        node("Add", &["h0", "m0"], "h1"),
        node("MatMul", &["h1", "w"], "key.1"),
        node("Reshape", &["key.1", "length"], "a1"),
        node("Add", &["a1", "h1"], "h2"),
        node("Relu", &["h2"], "m1"),
        node("Add", &["h2", "m1"], "h3"),
        node("MatMul", &["h3", "head"], "logits"),
    ];
    let graph = GraphProto { node: nodes, ..GraphProto::default() };
    let ports = |names: &[(&str, &str, Option<u64>)]| -> serde_json::Value {
        let port = |(name, role, layer): &(&str, &str, Option<u64>)| serde_json::json!({"name": name, "role": role, "layer": layer, "dtype": "float32", "dims": ["batch"]});
        names.iter().map(port).collect()
    };
    let manifest = serde_json::json!({
        "role": "decoder", "file": "model.onnx", "external_data": [],
        "inputs": ports(&[("ids", "input_ids", None)]),
        "outputs": ports(&[("key.0", "present_key", Some(0)), ("key.1", "present_key", Some(1)), ("logits", "logits", None)]),
    });
    (graph, serde_json::from_value(manifest).unwrap())
}

#[test]
fn layers_end_where_they_join_the_stream() {
    let (graph, decoder) = decoder();
    let stream = Stream::find(&graph, &decoder).unwrap();
    assert_eq!(stream, Stream { embedded: "x".to_owned(), ends: vec![7, 12] });
}

#[test]
fn a_graph_without_a_stream_is_refused() {
    let (mut graph, decoder) = decoder();
    // The second layer's attention is all that there is behind it.
    graph.node[10] = node("Mul", &["a1", "h1"], "h2");
    let error = Stream::find(&graph, &decoder).unwrap_err();
    assert!(error.chain().contains("cannot be told apart"), "{}", error.chain());
    let (mut graph, decoder) = self::decoder();
    graph.node[2] = node("MatMul", &["q", "w"], "key.0");
    graph.node.swap(2, 9);
    assert!(Stream::find(&graph, &decoder).is_err());
}
