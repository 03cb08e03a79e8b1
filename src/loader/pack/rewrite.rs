//! The graph with its large weights taken out: operators that ask for records, or inputs that are bound to them.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::quantized::{self, CONTRIB, Mixture, Product};
use super::record::{Content, Plan};
use super::router::{Finder, Router};
use crate::package::onnx::Source;
use crate::package::onnx::{AttributeProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use crate::package::onnx::{Dimension, TensorShape};
use crate::package::shards::Form;

/// The domain of this program's operators, and its version.
pub const DOMAIN: (&str, i64) = ("ortbench", 1);

/// What decides which weights leave the graph.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// How the graph takes them.
    pub form: Form,
    /// Constants of at most so many bytes stay.
    pub threshold: u64,
    /// Pack products whose graph does not ask for activations of 8 bits.
    pub int8_activations: bool,
}

/// A graph without its large weights.
#[derive(Debug, Default)]
pub struct Rewritten {
    /// Nodes, in order of execution …
    pub nodes: Vec<NodeProto>,
    /// … and the part that each is in.
    pub parts: Vec<usize>,
    /// Inputs that are bound to records, each with its part.
    pub inputs: Vec<(usize, ValueInfoProto)>,
    /// The weights that left it: a part's dense ones in the order of use, then its experts.
    pub records: Vec<Plan>,
    /// How mixtures choose experts, where it is known, in order.
    pub routers: Vec<Router>,
    /// Why quantized nodes kept their stock operator: the operator and the reason, how many, and bytes of weights.
    pub stock: BTreeMap<(String, &'static str), (usize, u64)>,
}

/// Operators that read some rows of a constant, whose other pages need never be in memory.
const BY_ROWS: &[&str] = &["Gather", "GatherElements", "GatherND", "GatherBlockQuantized", "Slice", "Shape", "Size"];

/// Operators that read a table of angles by rows: the inputs that are the table.
const ROTARY: &[&str] = &["GroupQueryAttention", "RotaryEmbedding", "MultiHeadAttention", "PagedAttention"];

/// Takes the large weights out.
pub fn rewrite(source: &Source, parts: &[usize], choice: Choice) -> Rewritten {
    let mut writer = Writer::new(source, choice);
    for (node, &part) in source.graph.node.iter().zip(parts) {
        writer.node(node, part);
    }
    let mut done = writer.done;
    done.records.sort_by_key(|record| (record.part, matches!(record.content, Content::Expert { .. })));
    done
}

/// Names the operators' domain among a model's operator sets.
pub fn import_domain(sets: &mut Vec<OperatorSetIdProto>) {
    if !sets.iter().any(|set| set.domain() == DOMAIN.0) {
        sets.push(OperatorSetIdProto { domain: Some(DOMAIN.0.to_owned()), version: Some(DOMAIN.1) });
    }
}

struct Writer<'a> {
    source: &'a Source,
    choice: Choice,
    finder: Finder,
    /// Names that a record's output must not have.
    taken: HashSet<String>,
    /// Records by what they hold and the part that uses them.
    known: HashMap<(usize, Vec<String>), String>,
    done: Rewritten,
}

impl<'a> Writer<'a> {
    fn new(source: &'a Source, choice: Choice) -> Self {
        let graph = &source.graph;
        let mut taken: HashSet<String> = graph.input.iter().map(|input| input.name().to_owned()).collect();
        taken.extend(graph.node.iter().flat_map(NodeProto::makes).map(str::to_owned));
        let finder = Finder::new(graph);
        let mut writer = Self { source, choice, finder, taken, known: HashMap::new(), done: Rewritten::default() };
        // Constants that stay for some node keep their names.
        let outputs = graph.output.iter().map(|output| output.name());
        let mut stay: HashSet<String> = outputs.map(str::to_owned).collect();
        for node in &graph.node {
            let whole: HashSet<usize> = (0..node.input.len()).filter(|place| writer.leaves(node, *place)).collect();
            let left = node.input.iter().enumerate().filter(|(place, _)| !whole.contains(place));
            stay.extend(left.map(|(_, name)| name.clone()));
            let inside = node.reads().into_iter().skip(node.input.iter().filter(|name| !name.is_empty()).count());
            stay.extend(inside.map(str::to_owned));
        }
        writer.taken.extend(stay.into_iter().filter(|name| source.tensor(name).is_some()));
        writer
    }

    /// Whether that input of a stock operator is a constant that leaves the graph.
    fn leaves(&self, node: &NodeProto, place: usize) -> bool {
        let Some(stored) = node.input_at(place).and_then(|name| self.source.tensor(name)) else { return false };
        if self.quantized(node).is_some_and(|constants| constants.contains(&node.input[place])) {
            return true;
        }
        let by_rows = (BY_ROWS.contains(&node.op_type()) && place == 0)
            || (node.op_type() == "GatherBlockQuantized")
            || ROTARY.contains(&node.op_type())
            || node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty());
        stored.bytes > self.choice.threshold && !by_rows
    }

    /// The constants that a node's record holds, where the kernels compute it.
    fn quantized(&self, node: &NodeProto) -> Option<Vec<String>> {
        match self.recognised(node)? {
            Ok(Quantized::Product(product)) => {
                Some([product.codes, product.scales].into_iter().chain(product.zero_points).collect())
            }
            Ok(Quantized::Mixture(mixture)) => Some(mixture.constants.to_vec()),
            Err(_) => None,
        }
    }

    fn recognised(&self, node: &NodeProto) -> Option<quantized::Recognised<Quantized>> {
        if node.domain() != CONTRIB || self.choice.form == Form::Inputs {
            return None;
        }
        let any_level = self.choice.int8_activations;
        match node.op_type() {
            "MatMulNBits" => Some(quantized::product(node, self.source, any_level).map(Quantized::Product)),
            "QMoE" => Some(quantized::mixture(node, self.source, any_level).map(Quantized::Mixture)),
            _ => None,
        }
    }

    fn node(&mut self, node: &NodeProto, part: usize) {
        match self.recognised(node) {
            Some(Ok(Quantized::Product(product))) => self.product(node, part, product),
            Some(Ok(Quantized::Mixture(mixture))) => self.mixture(node, part, mixture),
            Some(Err(reason)) => {
                let names = (0..node.input.len()).filter_map(|place| node.input_at(place));
                let bytes: u64 = names.filter_map(|name| self.source.tensor(name)).map(|stored| stored.bytes).sum();
                let count = self.done.stock.entry((node.op_type().to_owned(), reason)).or_default();
                *count = (count.0 + 1, count.1 + bytes);
                self.stock(node.clone(), part);
            }
            None => self.stock(node.clone(), part),
        }
    }

    fn product(&mut self, node: &NodeProto, part: usize, product: Product) {
        let Product { shape, codes, scales, zero_points, bias } = product;
        let mut key = vec![codes.clone(), scales.clone(), format!("{shape:?}")];
        key.extend(zero_points.clone());
        let content = Content::Matrix { shape, codes: codes.clone(), scales, zero_points };
        let record = self.record(part, key, &codes, |_| vec![(String::new(), content)]);
        let output = node.output.first().cloned().unwrap_or_default();
        let made = if bias.is_some() { self.unique(&format!("{output}/product")) } else { output.clone() };
        self.push(
            part,
            NodeProto {
                input: node.input.iter().take(1).cloned().collect(),
                output: vec![made.clone()],
                attribute: vec![AttributeProto::of_string("record", &record)],
                ..operator("Matrix", node)
            },
        );
        if let Some(bias) = bias {
            let name = format!("{}/bias", node.name());
            let add = NodeProto {
                name: Some(name),
                op_type: Some("Add".to_owned()),
                input: vec![made, bias],
                output: vec![output],
                ..NodeProto::default()
            };
            self.stock(add, part);
        }
    }

    fn mixture(&mut self, node: &NodeProto, part: usize, mixture: Mixture) {
        let Mixture { experts, gate_up, down, constants, k, normalize, mixing } = mixture;
        let name = node.name().to_owned();
        let name = if name.is_empty() { constants[0].clone() } else { name };
        let record = self.record(part, constants.to_vec(), &name, |mixture| {
            let each = (0..experts).map(|expert| {
                let (mixture, constants) = (mixture.to_owned(), constants.clone());
                (format!("/{expert}"), Content::Expert { mixture, expert, gate_up, down, constants })
            });
            each.collect()
        });
        if !self.done.routers.iter().any(|router| router.mixture == record) {
            self.done.routers.extend(self.finder.find(self.source, node, &record, experts));
        }
        let attribute = vec![
            AttributeProto::of_string("record", &record),
            AttributeProto::of_int("k", k),
            AttributeProto::of_int("normalize", i64::from(normalize)),
        ];
        let input = node.input.iter().take(2).cloned().chain(mixing).collect();
        let output = node.output.iter().take(1).cloned().collect();
        self.push(part, NodeProto { input, output, attribute, ..operator("Experts", node) });
    }

    /// A node as it is, its large constants replaced.
    fn stock(&mut self, mut node: NodeProto, part: usize) {
        for place in 0..node.input.len() {
            if self.leaves(&node, place) {
                node.input[place] = self.weight(&node.input[place].clone(), part);
            }
        }
        self.push(part, node);
    }

    /// The tensor in that part that has a constant's values.
    fn weight(&mut self, name: &str, part: usize) -> String {
        let before = self.done.records.len();
        let content = Content::Tensor { name: name.to_owned() };
        // Not the constant's own name: another node may read the constant where it stays.
        let wanted = format!("{name}/shard");
        let record = self.record(part, vec![name.to_owned()], &wanted, |_| vec![(String::new(), content)]);
        if self.done.records.len() == before {
            return record;
        }
        if self.choice.form == Form::Inputs {
            let stored = self.source.tensor(name);
            let dims = stored.map_or(&[][..], |stored| &stored.dims);
            let dim = |&size| Dimension { dim_value: Some(size as i64), ..Dimension::default() };
            let shape = TensorShape { dim: dims.iter().map(dim).collect() };
            let data_type = stored.map_or(0, |stored| stored.data_type);
            self.done.inputs.push((part, ValueInfoProto::of_tensor(&record, data_type, Some(shape))));
        } else {
            let data_type = self.source.tensor(name).map_or(0, |stored| stored.data_type);
            let node = NodeProto {
                name: Some(format!("{record}/Weight")),
                output: vec![record.clone()],
                attribute: vec![AttributeProto::of_string("record", &record)],
                // One operator an element type: an operator without inputs has no other way to say it.
                ..operator(&format!("Weight{data_type}"), &NodeProto::default())
            };
            self.push(part, node);
        }
        record
    }

    /// The name of the record with these constants in that part; planned when it is asked for first.
    fn record(
        &mut self,
        part: usize,
        key: Vec<String>,
        name: &str,
        contents: impl FnOnce(&str) -> Vec<(String, Content)>,
    ) -> String {
        if let Some(known) = self.known.get(&(part, key.clone())) {
            return known.clone();
        }
        let name = self.unique(name);
        self.known.insert((part, key), name.clone());
        let plans = contents(&name).into_iter().map(|(ending, content)| Plan {
            name: format!("{name}{ending}"),
            part,
            content,
        });
        self.done.records.extend(plans);
        name
    }

    fn unique(&mut self, name: &str) -> String {
        let mut found = name.to_owned();
        let mut number = 1;
        while !self.taken.insert(found.clone()) {
            number += 1;
            found = format!("{name}@{number}");
        }
        found
    }

    fn push(&mut self, part: usize, node: NodeProto) {
        self.done.nodes.push(node);
        self.done.parts.push(part);
    }
}

enum Quantized {
    Product(Product),
    Mixture(Mixture),
}

/// An operator of this program in the place of a node.
fn operator(op_type: &str, of: &NodeProto) -> NodeProto {
    NodeProto {
        name: of.name.clone(),
        op_type: Some(op_type.to_owned()),
        domain: Some(DOMAIN.0.to_owned()),
        doc_string: of.doc_string.clone(),
        metadata_props: of.metadata_props.clone(),
        ..NodeProto::default()
    }
}
