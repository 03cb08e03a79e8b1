//! What must hold of every pack.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use ortbench::loader::{codec, kernels};
use ortbench::package::Package;
use ortbench::package::onnx::{self, GraphProto, NodeProto};
use ortbench::package::shards::{Form, Record, ShardIndex, What};

pub fn graph(path: &Path) -> GraphProto {
    let bytes = fs::read(path).expect("a model");
    let (graph, sets) = onnx::read(&bytes).expect("a model");
    let domains: HashSet<&str> = sets.iter().map(|set| set.domain()).collect();
    for node in &graph.node {
        assert!(domains.contains(node.domain()), "{}: {}", path.display(), node.domain());
    }
    graph
}

/// A constant's bytes, wherever they are.
pub fn constant(folder: &Path, graph: &GraphProto, name: &str) -> Vec<u8> {
    let tensor = graph.initializer.iter().find(|tensor| tensor.name() == name);
    let tensor = tensor.unwrap_or_else(|| panic!("`{name}` is no constant"));
    let Some(location) = tensor.location() else { return tensor.raw().expect("its bytes") };
    let number = |key| tensor.external(key).map_or(0, |text| text.parse::<usize>().expect("a number"));
    let bytes = fs::read(folder.join(location)).expect("external data");
    bytes[number("offset")..number("offset") + number("length")].to_vec()
}

pub fn stored(folder: &Path, index: &ShardIndex, record: &Record) -> Vec<u8> {
    let file = fs::read(folder.join(&index.files[record.file].file)).expect("a shard");
    let stored = &file[record.offset as usize..(record.offset + record.stored) as usize];
    let mut bytes = vec![0; record.bytes as usize];
    codec::decode(record.codec, stored, &mut bytes).expect("what was encoded");
    bytes
}

pub fn bytes_of(scales: &[f32]) -> Vec<u8> {
    scales.iter().flat_map(|scale| scale.to_le_bytes()).collect()
}

/// Everything in the records is the source's, bit for bit.
pub fn holds_the_package(from: &Path, output: &Path, index: &ShardIndex) {
    let package = Package::open(from).expect("a package");
    let source = graph(&from.join(&package.decoder().expect("a decoder").file));
    let find = |wanted: &dyn Fn(&&NodeProto) -> bool| source.node.iter().find(wanted).expect("a node");
    for record in &index.records {
        let bytes = stored(output, index, record);
        // A second use in another segment has a number behind its name.
        let name = record.name.split('@').next().expect("a name").trim_end_matches("/shard");
        match &record.what {
            What::Tensor { .. } => assert!(bytes == constant(from, &source, name), "{name}"),
            What::Matrix { shape } => {
                let node = find(&|node| node.op_type() == "MatMulNBits" && node.input[1] == name);
                let (codes, scales, zeros) = kernels::unpack(shape, &bytes);
                assert!(codes == constant(from, &source, name), "{name}");
                assert!(bytes_of(&scales) == constant(from, &source, &node.input[2]), "{name}");
                assert_eq!(zeros, node.input_at(3).map(|zeros| constant(from, &source, zeros)), "{name}");
            }
            What::Expert { mixture, expert, gate_up, down } => {
                let node = find(&|node| node.op_type() == "QMoE" && node.name() == mixture);
                let at = *expert as usize;
                let down_at = kernels::down_offset(gate_up);
                for (shape, packed, codes_of, scales_of) in [
                    (gate_up, &bytes[..kernels::packed_bytes(gate_up)], &node.input[2], &node.input[3]),
                    (down, &bytes[down_at..], &node.input[5], &node.input[6]),
                ] {
                    let (codes, scales, _) = kernels::unpack(shape, packed);
                    let all = constant(from, &source, codes_of);
                    assert!(codes == all[at * codes.len()..(at + 1) * codes.len()], "{}", record.name);
                    let (all, scales) = (constant(from, &source, scales_of), bytes_of(&scales));
                    assert!(scales == all[at * scales.len()..(at + 1) * scales.len()], "{}", record.name);
                }
            }
        }
    }
}

/// Every input is there before it is used, every name is made once, external data is what the source has.
pub fn is_whole(from: &Path, output: &Path, source: &GraphProto, graph: &GraphProto) {
    let mut known: HashSet<&str> = graph.input.iter().map(|input| input.name()).collect();
    for tensor in &graph.initializer {
        assert!(known.insert(tensor.name()), "{}", tensor.name());
        let same = constant(output, graph, tensor.name()) == constant(from, source, tensor.name());
        assert!(same, "{}", tensor.name());
    }
    for node in &graph.node {
        for name in node.reads() {
            assert!(known.contains(name), "{} reads `{name}` before it is made", node.name());
        }
        for name in node.makes() {
            assert!(known.insert(name), "`{name}` is made twice");
        }
    }
    for value in &graph.output {
        assert!(known.contains(value.name()), "{}", value.name());
    }
    for value in graph.input.iter().chain(&graph.output) {
        assert!(value.elem_type().is_some(), "{}", value.name());
    }
    let read: HashSet<&str> = graph.node.iter().flat_map(NodeProto::reads).collect();
    let unused = graph.initializer.iter().find(|tensor| !read.contains(tensor.name()));
    assert!(unused.is_none(), "{unused:?} is not used");
}

/// Names of records that nodes ask for.
pub fn asked(graph: &GraphProto) -> HashSet<String> {
    let ours = graph.node.iter().filter(|node| node.domain() == "ortbench");
    ours.map(|node| String::from_utf8(node.string("record").expect("a record").to_vec()).expect("UTF-8")).collect()
}

pub fn names(values: &[onnx::ValueInfoProto]) -> HashSet<String> {
    values.iter().map(|value| value.name().to_owned()).collect()
}

/// The segments are the graph, cut: they pass on what they say, and have their own records.
pub fn segments_fit(from: &Path, output: &Path, index: &ShardIndex) {
    let package = Package::open(from).expect("a package");
    let source = graph(&from.join(&package.decoder().expect("a decoder").file));
    let (inputs, outputs) = (names(&source.input), names(&source.output));
    let (mut made, mut given, mut layers) = (HashSet::new(), HashSet::new(), Vec::new());
    for segment in &index.segments {
        let graph = graph(&output.join(&segment.file));
        is_whole(from, output, &source, &graph);
        let records = &index.records[segment.first_record..segment.first_record + segment.records];
        let of_records: HashSet<String> = records.iter().map(|record| record.name.clone()).collect();
        let takes: HashSet<String> = segment.takes.iter().cloned().collect();
        assert!(takes.is_subset(&made), "{}", segment.file);
        let mut expected: HashSet<String> = takes.clone();
        if index.form == Form::Inputs {
            expected.extend(of_records);
        } else {
            let mixtures = records.iter().filter_map(|record| match &record.what {
                What::Expert { mixture, .. } => Some(mixture.clone()),
                _ => None,
            });
            let dense = records.iter().filter(|record| !matches!(record.what, What::Expert { .. }));
            let all: HashSet<String> = dense.map(|record| record.name.clone()).chain(mixtures).collect();
            assert_eq!(asked(&graph), all, "{}", segment.file);
        }
        let here = names(&graph.input);
        expected.extend(here.intersection(&inputs).cloned());
        assert_eq!(here, expected, "{}", segment.file);
        let makes: HashSet<String> = segment.makes.iter().cloned().collect();
        let there = names(&graph.output);
        assert!(makes.is_subset(&there));
        for name in there.difference(&makes) {
            assert!(outputs.contains(name), "{name}");
        }
        given.extend(there.intersection(&outputs).cloned());
        made.extend(makes);
        assert!(records.iter().all(|record| record.layer == segment.layer), "{}", segment.file);
        layers.push(segment.layer);
    }
    assert_eq!(given, outputs);
    let count = package.manifest.shape.layers as u32;
    let expected: Vec<_> = std::iter::once(None).chain((0..count).map(Some)).chain([None]).collect();
    assert_eq!(layers, expected);
}
