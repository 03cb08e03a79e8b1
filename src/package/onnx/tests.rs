use prost::Message as _;

use super::*;

/// A model with every kind of attribute, type and tensor.
fn model() -> ModelProto {
    let tensor = TensorProto {
        dims: vec![2, 0, -1],
        data_type: Some(1),
        float_data: vec![1.5, 0.0],
        name: Some("t".to_owned()),
        ..TensorProto::default()
    };
    let inner = GraphProto {
        node: vec![NodeProto {
            input: vec!["outer".to_owned(), "own".to_owned()],
            output: vec!["made".to_owned()],
            op_type: Some("Add".to_owned()),
            ..NodeProto::default()
        }],
        input: vec![ValueInfoProto::of_tensor("own", 1, None)],
        output: vec![ValueInfoProto::of_tensor("made", 1, None)],
        ..GraphProto::default()
    };
    let attribute = |name: &str| AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let element =
        TypeProto { tensor_type: Some(TensorType { elem_type: Some(7), shape: None }), ..TypeProto::default() };
    let sequence = ElementType { elem_type: Some(Box::new(element)) };
    let node = NodeProto {
        input: vec!["x".to_owned(), String::new()],
        output: vec!["y".to_owned()],
        name: Some(String::new()),
        op_type: Some("If".to_owned()),
        attribute: vec![
            AttributeProto::of_int("zero", 0),
            AttributeProto::of_string("text", "words"),
            AttributeProto { g: Some(inner), ..attribute("branch") },
            AttributeProto { t: Some(tensor.clone()), ..attribute("tensor") },
            AttributeProto { ints: vec![1, -2], floats: vec![0.5], strings: vec![vec![255]], ..attribute("lists") },
            AttributeProto { f: Some(0.0), ref_attr_name: Some("of".to_owned()), ..attribute("float") },
            AttributeProto {
                tp: Some(TypeProto { sequence_type: Some(sequence), ..TypeProto::default() }),
                ..attribute("type")
            },
        ],
        ..NodeProto::default()
    };
    let entry = StringStringEntryProto { key: Some("key".to_owned()), value: Some("value".to_owned()) };
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(21) }],
        graph: Some(GraphProto { node: vec![node], initializer: vec![tensor.at("d", 64, 8)], ..GraphProto::default() }),
        metadata_props: vec![entry],
        functions: vec![FunctionProto { name: Some("f".to_owned()), ..FunctionProto::default() }],
        ..ModelProto::default()
    }
}

#[test]
fn a_model_that_is_written_and_read_is_the_same() {
    let model = model();
    let bytes = write(&model);
    let again = read_whole(&bytes).unwrap();
    assert_eq!(again, model);
    assert_eq!(write(&again), bytes);
    let node = &again.graph.unwrap().node[0];
    // Zero and empty are not absent.
    assert_eq!((node.int("zero"), node.float("float"), node.name.as_deref()), (Some(0), Some(0.0), Some("")));
    assert_eq!(node.reads(), ["x", "outer"]);
}

#[test]
fn what_is_unknown_is_refused_rather_than_lost() {
    let mut bytes = write(&model());
    // Field 200, a varint.
    bytes.extend([0xc0, 0x0c, 1]);
    let error = read_whole(&bytes).unwrap_err();
    assert!(error.chain().contains("ModelProto.200"), "{}", error.chain());
    assert!(read(&bytes).is_ok(), "readers need not know everything");

    // Field 99 of a node, which is inside of a graph.
    let mut node = NodeProto { op_type: Some("Add".to_owned()), ..NodeProto::default() }.encode_to_vec();
    node.extend([0x98, 0x06, 1]);
    let mut graph = vec![0x0a, node.len() as u8];
    graph.extend(node);
    let mut bytes = vec![0x3a, graph.len() as u8];
    bytes.extend(graph);
    assert!(read_whole(&bytes).unwrap_err().chain().contains("NodeProto.99"));
}

#[test]
fn bytes_that_are_no_model_are_refused() {
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\x3a\x7f", b"not a model at all"] {
        assert!(read_whole(bytes).is_err());
    }
    let bytes = write(&model());
    for length in 0..bytes.len() {
        // Some prefixes are models; none may panic.
        let _ = read_whole(&bytes[..length]);
    }
}

#[test]
fn tensors_inside_a_file_have_raw_bytes() {
    let tensor = |data_type, dims: Vec<i64>| TensorProto { data_type: Some(data_type), dims, ..TensorProto::default() };
    let floats = TensorProto { float_data: vec![1.0, -2.0], ..tensor(1, vec![2]) };
    assert_eq!(floats.raw().unwrap(), [1.0_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat());
    let bytes = TensorProto { int32_data: vec![1, 255], ..tensor(2, vec![2]) };
    assert_eq!(bytes.raw().unwrap(), [1, 255]);
    let halves = TensorProto { int32_data: vec![0x3c00], ..tensor(10, vec![1]) };
    assert_eq!(halves.raw().unwrap(), [0, 0x3c]);
    // Two to a byte.
    let nibbles = TensorProto { int32_data: vec![0x21, 0x03], ..tensor(22, vec![3]) };
    assert_eq!(nibbles.raw().unwrap(), [0x21, 0x03]);
    assert!(TensorProto { int64_data: vec![1], ..tensor(7, vec![2]) }.raw().is_err());
    assert!(tensor(8, vec![1]).raw().is_err());
}
