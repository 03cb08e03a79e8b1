//! Element types of a graph's tensors, and their shapes as far as they follow: what the borders of segments must state.

use std::collections::HashMap;

use super::shapes::Shapes;
use crate::package::onnx::{GraphProto, NodeProto, ValueInfoProto, data_type};

/// Types and shapes by tensor.
#[derive(Debug, Default)]
pub struct Types {
    elements: HashMap<String, i32>,
    shapes: Shapes,
}

impl Types {
    /// Reads what the graph states and infers the rest by the operators' rules.
    pub fn of(graph: &GraphProto) -> Self {
        let mut types = Self::default();
        for value in graph.input.iter().chain(&graph.value_info).chain(&graph.output) {
            if let Some(element) = value.elem_type() {
                types.elements.insert(value.name().to_owned(), element);
            }
            types.shapes.state(value);
        }
        for tensor in &graph.initializer {
            types.elements.insert(tensor.name().to_owned(), tensor.data_type());
            types.shapes.constant(tensor);
        }
        for node in &graph.node {
            types.infer(node);
            types.shapes.infer(node);
        }
        types
    }

    /// The tensor as a graph's input or output; `None` where its type is unknown.
    pub fn value(&self, name: &str) -> Option<ValueInfoProto> {
        let element = *self.elements.get(name)?;
        Some(ValueInfoProto::of_tensor(name, element, self.shapes.of(name)))
    }

    fn infer(&mut self, node: &NodeProto) {
        for (place, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            if !self.elements.contains_key(name)
                && let Some(element) = self.element(node, place)
            {
                self.elements.insert(name.clone(), element);
            }
        }
    }

    fn element(&self, node: &NodeProto, place: usize) -> Option<i32> {
        let input = |place| self.elements.get(node.input_at(place)?).copied();
        let stated = |name| node.int(name).map(|number| number as i32).filter(|number| *number != 0);
        match (node.op_type(), place) {
            ("Cast", _) => stated("to"),
            ("CastLike" | "Where", _) => input(1),
            ("Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin", _) | ("TopK", 1) => Some(data_type::INT64),
            ("Unique", 1..) | ("MaxPool", 1) => Some(data_type::INT64),
            ("Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual", _)
            | ("And" | "Or" | "Xor" | "Not" | "IsNaN" | "IsInf", _)
            | ("Dropout", 1) => Some(data_type::BOOL),
            ("DequantizeLinear", _) => stated("output_dtype").or_else(|| input(1)),
            ("QuantizeLinear", _) => stated("output_dtype").or_else(|| input(2)).or(Some(data_type::UINT8)),
            ("DynamicQuantizeLinear", 0 | 2) => Some(data_type::UINT8),
            ("DynamicQuantizeLinear", _) => Some(data_type::FLOAT),
            ("MatMulInteger" | "ConvInteger", _) => Some(data_type::INT32),
            ("GatherBlockQuantized" | "OneHot", _) => input(2),
            ("ConstantOfShape" | "Constant", _) => constant_type(node),
            ("RandomNormal" | "RandomUniform", _) => stated("dtype").or(Some(data_type::FLOAT)),
            ("RandomNormalLike" | "RandomUniformLike" | "EyeLike", _) => stated("dtype").or_else(|| input(0)),
            // The mean and the inverse deviation.
            ("LayerNormalization" | "SimplifiedLayerNormalization", 1..) => Some(data_type::FLOAT),
            ("SkipLayerNormalization" | "SkipSimplifiedLayerNormalization", 1 | 2) => Some(data_type::FLOAT),
            ("If" | "Loop" | "Scan", _) => None,
            ("SequenceAt" | "SequenceConstruct" | "SplitToSequence" | "Optional", _) => None,
            // A past that is left out has the type of what is cached.
            ("GroupQueryAttention", 1 | 2) => input(3).or_else(|| input(0)),
            _ => input(0),
        }
    }
}

fn constant_type(node: &NodeProto) -> Option<i32> {
    let types = [("value_int", data_type::INT64), ("value_ints", data_type::INT64)];
    let types = types.into_iter().chain([("value_float", data_type::FLOAT), ("value_floats", data_type::FLOAT)]);
    match node.attribute("value").and_then(|value| value.t.as_ref()) {
        Some(tensor) => Some(tensor.data_type()),
        None => types
            .into_iter()
            .find(|(name, _)| node.attribute(name).is_some())
            .map(|(_, number)| number)
            // `ConstantOfShape` fills with zeros of float32 unless told otherwise.
            .or((node.op_type() == "ConstantOfShape").then_some(data_type::FLOAT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::onnx::{AttributeProto, Dimension, TensorShape};

    fn node(op_type: &str, input: &[&str], output: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            op_type: Some(op_type.to_owned()),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: output.iter().map(|name| (*name).to_owned()).collect(),
            attribute,
            ..NodeProto::default()
        }
    }

    #[test]
    fn types_follow_from_operators() {
        let shape = TensorShape {
            dim: vec![Dimension { dim_param: Some("batch".to_owned()), ..Dimension::default() }, Dimension::default()],
        };
        let graph = GraphProto {
            input: vec![
                ValueInfoProto::of_tensor("ids", data_type::INT64, None),
                ValueInfoProto::of_tensor("x", data_type::FLOAT, Some(shape)),
            ],
            node: vec![
                node("Cast", &["x"], &["half"], vec![AttributeProto::of_int("to", 10)]),
                node("Shape", &["x"], &["shape"], vec![]),
                node("LessOrEqual", &["x", "x"], &["mask"], vec![]),
                node("Where", &["mask", "half", "half"], &["where"], vec![]),
                node("TopK", &["x", "shape"], &["best", "places"], vec![]),
                node("MatMulNBits", &["x", "b"], &["y"], vec![AttributeProto::of_int("N", 7)]),
                node("If", &["mask"], &["z"], vec![]),
            ],
            ..GraphProto::default()
        };
        let types = Types::of(&graph);
        let element = |name| types.value(name).and_then(|value| value.elem_type());
        assert_eq!(
            ["half", "shape", "mask", "where", "best", "places", "y", "z"].map(element),
            [Some(10), Some(7), Some(9), Some(10), Some(1), Some(7), Some(1), None]
        );
        let y = types.value("y").unwrap();
        assert_eq!(y.shape().unwrap().dim.last().unwrap().dim_value, Some(7));
        assert_eq!(y.shape().unwrap().dim[0].dim_param(), "batch");
    }
}
