//! Shapes of a graph's tensors as far as they follow from its inputs: at least their ranks for the operators that
//! language models are made of. A dimension that does not follow is left open, never guessed.

use std::collections::HashMap;

use crate::package::onnx::{Dimension, NodeProto, TensorProto, TensorShape, ValueInfoProto, data_type};

/// Shapes by tensor.
#[derive(Debug, Default)]
pub struct Shapes {
    shapes: HashMap<String, Vec<Dimension>>,
    /// Tensors of integers that are sizes or axes: their elements, as dimensions.
    values: HashMap<String, Vec<Dimension>>,
}

impl Shapes {
    /// What the graph states of a tensor.
    pub fn state(&mut self, value: &ValueInfoProto) {
        if let Some(shape) = value.shape() {
            self.shapes.insert(value.name().to_owned(), shape.dim.clone());
        }
    }

    /// A constant.
    pub fn constant(&mut self, tensor: &TensorProto) {
        self.shapes.insert(tensor.name().to_owned(), tensor.dims.iter().map(|&dim| size(dim)).collect());
        if tensor.data_type() == data_type::INT64
            && tensor.location().is_none()
            && tensor.elements() <= 16
            && let Ok(raw) = tensor.raw()
        {
            let values = raw.as_chunks::<8>().0.iter().map(|value| size(i64::from_le_bytes(*value))).collect();
            self.values.insert(tensor.name().to_owned(), values);
        }
    }

    /// A tensor's shape.
    pub fn of(&self, name: &str) -> Option<TensorShape> {
        self.shapes.get(name).map(|dim| TensorShape { dim: dim.clone() })
    }

    /// The shapes of what a node makes.
    pub fn infer(&mut self, node: &NodeProto) {
        if let (Some(name), Some(values)) = (node.output.first(), self.elements(node)) {
            self.values.insert(name.clone(), values);
        }
        for (place, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            if !self.shapes.contains_key(name)
                && let Some(shape) = self.shape(node, place)
            {
                self.shapes.insert(name.clone(), shape);
            }
        }
    }

    fn input(&self, node: &NodeProto, place: usize) -> Option<&Vec<Dimension>> {
        self.shapes.get(node.input_at(place)?)
    }

    fn value(&self, node: &NodeProto, place: usize) -> Option<&Vec<Dimension>> {
        self.values.get(node.input_at(place)?)
    }

    /// Sizes that a node computes out of shapes.
    fn elements(&self, node: &NodeProto) -> Option<Vec<Dimension>> {
        match node.op_type() {
            "Shape" => self.asked(node).map(<[Dimension]>::to_vec),
            "Concat" => {
                let parts = (0..node.input.len()).map(|place| self.value(node, place).cloned());
                Some(parts.collect::<Option<Vec<_>>>()?.concat())
            }
            _ => None,
        }
    }

    fn shape(&self, node: &NodeProto, place: usize) -> Option<Vec<Dimension>> {
        let input = |place| self.input(node, place);
        match (node.op_type(), place) {
            ("Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Min" | "Max" | "And" | "Or" | "Xor" | "Where", 0)
            | ("Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual", 0) => {
                let all = (0..node.input.len()).map(|place| input(place).cloned());
                all.reduce(|one, other| Some(broadcast(&one?, &other?)))?
            }
            ("Cast" | "Sigmoid" | "Tanh" | "Gelu" | "QuickGelu" | "Relu" | "Not" | "Neg" | "Sqrt" | "Floor", 0)
            | ("Exp" | "Log" | "Cos" | "Sin" | "Reciprocal" | "Identity" | "Softmax" | "CumSum" | "Clip" | "Abs", 0)
            | ("SimplifiedLayerNormalization" | "LayerNormalization" | "RMSNormalization", 0)
            | ("SkipSimplifiedLayerNormalization" | "SkipLayerNormalization", 0 | 3)
            | ("DequantizeLinear" | "QuantizeLinear" | "ScatterElements" | "ScatterND" | "Trilu", 0)
            | ("MoE" | "QMoE" | "RotaryEmbedding", 0) => input(0).cloned(),
            ("GatherElements", 0) => input(1).cloned(),
            ("Shape", 0) => Some(vec![self.asked(node).map_or(open(), count)]),
            ("Range", 0) => Some(vec![open()]),
            ("ConstantOfShape", 0) => self.sized(node, 0),
            ("Expand", 0) => Some(broadcast(input(0)?, &self.sized(node, 1)?)),
            ("Reshape", 0) => self.reshaped(node),
            ("Flatten", 0) => Some(vec![open(), open()]),
            ("Transpose", 0) => {
                let (shape, order) = (input(0)?, &node.attribute("perm")?.ints);
                order.iter().map(|&axis| shape.get(usize::try_from(axis).ok()?).cloned()).collect()
            }
            ("Unsqueeze", 0) => {
                let (shape, axes) = (input(0)?, self.axes(node)?);
                let rank = shape.len() + axes.len();
                let axes: Vec<usize> = axes.iter().map(|&axis| axis_of(axis, rank)).collect::<Option<_>>()?;
                let mut rest = shape.iter().cloned();
                let dims = (0..rank).map(|axis| if axes.contains(&axis) { Some(size(1)) } else { rest.next() });
                dims.collect()
            }
            ("Squeeze", 0) => {
                let (shape, axes) = (input(0)?, self.axes(node)?);
                let axes: Vec<usize> = axes.iter().map(|&axis| axis_of(axis, shape.len())).collect::<Option<_>>()?;
                let left = shape.iter().enumerate().filter(|(axis, _)| !axes.contains(axis));
                Some(left.map(|(_, dim)| dim.clone()).collect())
            }
            ("ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin", 0) => {
                let (shape, axes) = (input(0)?, self.axes(node)?);
                let axes: Vec<usize> = axes.iter().map(|&axis| axis_of(axis, shape.len())).collect::<Option<_>>()?;
                let keep = node.int("keepdims").unwrap_or(1) != 0;
                let dims = shape.iter().enumerate().filter(|(axis, _)| keep || !axes.contains(axis));
                Some(dims.map(|(axis, dim)| if axes.contains(&axis) { size(1) } else { dim.clone() }).collect())
            }
            ("TopK", _) => self.with_open(node, node.int("axis").unwrap_or(-1)),
            ("Split", _) => {
                let axis = node.int("axis").unwrap_or(0);
                let mut shape = self.with_open(node, axis)?;
                if let Some(part) = self.value(node, 1).and_then(|parts| parts.get(place)) {
                    let axis = axis_of(axis, shape.len())?;
                    shape[axis] = part.clone();
                }
                Some(shape)
            }
            ("Slice", 0) => Some(vec![open(); input(0)?.len()]),
            ("Concat", 0) => {
                let mut shape = self.with_open(node, node.int("axis")?)?;
                let axis = axis_of(node.int("axis")?, shape.len())?;
                let mut sizes = (0..node.input.len()).map(|place| input(place)?.get(axis)?.dim_value);
                shape[axis] = sizes.try_fold(0_i64, |sum, size| sum.checked_add(size?)).map_or(open(), size);
                Some(shape)
            }
            ("Gather", 0) => {
                let (table, ids) = (input(0)?, input(1)?);
                let axis = axis_of(node.int("axis").unwrap_or(0), table.len())?;
                Some([&table[..axis], ids, &table[axis + 1..]].concat())
            }
            ("GatherND", 0) => {
                let (table, ids) = (input(0)?, input(1)?);
                let (depth, before) = ids.split_last()?;
                let skipped =
                    usize::try_from(depth.dim_value?.checked_add(node.int("batch_dims").unwrap_or(0))?).ok()?;
                Some([before, table.get(skipped..)?].concat())
            }
            ("GatherBlockQuantized", 0) if node.int("gather_axis").unwrap_or(0) == 0 => {
                let ([_, blocks], [_, codes]) = (&input(2)?[..], &input(0)?[..]) else { return None };
                let width = blocks.dim_value?.checked_mul(node.int("block_size")?)?;
                // A last block that is cut off leaves the width open.
                let packed = codes.dim_value?.checked_mul(8)? / node.int("bits").unwrap_or(4).max(1);
                let width = if packed == width { size(width) } else { open() };
                Some([&input(1)?[..], &[width]].concat())
            }
            // Without a key the first input holds queries, keys and values.
            ("GroupQueryAttention", 0) if node.input_at(1).is_some() => input(0).cloned(),
            ("SwiGlu" | "SkipNorm", 0) | ("SkipNorm", 1) => input(0).cloned(),
            ("HeadNorm", 0) => with_last(input(0)?, size(node.int("queries")?)),
            ("HeadNorm", 1) => with_last(input(0)?, size(node.int("keys")?)),
            ("HeadNorm", 2) => with_last(input(0)?, open()),
            ("MatMulNBits", 0) => with_last(input(0)?, size(node.int("N")?)),
            ("MatMul", 0) => {
                let (one, other) = (input(0)?, input(1)?);
                let ([batch @ .., row, _], [other_batch @ .., _, column]) = (&one[..], &other[..]) else { return None };
                Some([&broadcast(batch, other_batch)[..], &[row.clone(), column.clone()]].concat())
            }
            ("Gemm", 0) => {
                let place = |name| usize::from(node.int(name).unwrap_or(0) != 0);
                let (row, column) = (input(0)?.get(place("transA"))?, input(1)?.get(1 - place("transB"))?);
                Some(vec![row.clone(), column.clone()])
            }
            _ => None,
        }
    }

    /// The dimensions that a `Shape` node asks for.
    fn asked(&self, node: &NodeProto) -> Option<&[Dimension]> {
        let shape = self.input(node, 0)?;
        let rank = shape.len() as i64;
        let place = |name, otherwise| {
            let place: i64 = node.int(name).unwrap_or(otherwise);
            (if place < 0 { place.saturating_add(rank) } else { place }).clamp(0, rank) as usize
        };
        Some(shape.get(place("start", 0)..place("end", rank)).unwrap_or_default())
    }

    /// The shape that a tensor of sizes names.
    fn sized(&self, node: &NodeProto, place: usize) -> Option<Vec<Dimension>> {
        if let Some(sizes) = self.value(node, place) {
            return Some(sizes.clone());
        }
        let [rank] = &self.input(node, place)?[..] else { return None };
        Some(vec![open(); usize::try_from(rank.dim_value?).ok().filter(|rank| *rank <= 16)?])
    }

    fn reshaped(&self, node: &NodeProto) -> Option<Vec<Dimension>> {
        let sizes = self.sized(node, 1)?;
        let keeps_zeros = node.int("allowzero").unwrap_or(0) != 0;
        let dims = sizes.into_iter().enumerate().map(|(axis, dim)| match dim.dim_value {
            Some(-1) => open(),
            Some(0) if !keeps_zeros => {
                self.input(node, 0).and_then(|shape| shape.get(axis)).cloned().unwrap_or_default()
            }
            _ => dim,
        });
        Some(dims.collect())
    }

    /// Axes of a node, by its second input or by its attribute, as older operator sets have them.
    fn axes(&self, node: &NodeProto) -> Option<Vec<i64>> {
        if let Some(axes) = node.attribute("axes") {
            return Some(axes.ints.clone());
        }
        self.value(node, 1)?.iter().map(|dim| dim.dim_value).collect()
    }

    /// The first input's shape with one dimension left open.
    fn with_open(&self, node: &NodeProto, axis: i64) -> Option<Vec<Dimension>> {
        let mut shape = self.input(node, 0)?.clone();
        let axis = axis_of(axis, shape.len())?;
        shape[axis] = open();
        Some(shape)
    }
}

fn open() -> Dimension {
    Dimension::default()
}

fn size(value: i64) -> Dimension {
    Dimension { dim_value: Some(value), ..Dimension::default() }
}

fn count(of: &[Dimension]) -> Dimension {
    size(of.len() as i64)
}

fn with_last(shape: &[Dimension], last: Dimension) -> Option<Vec<Dimension>> {
    let (_, rest) = shape.split_last()?;
    Some([rest, &[last]].concat())
}

/// An axis that may be counted from the end.
fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|axis| *axis < rank)
}

/// The shape of an elementwise operation.
fn broadcast(one: &[Dimension], other: &[Dimension]) -> Vec<Dimension> {
    let rank = one.len().max(other.len());
    let at = |shape: &[Dimension], axis: usize| (axis + shape.len()).checked_sub(rank).map(|axis| shape[axis].clone());
    let dims = (0..rank).map(|axis| match (at(one, axis), at(other, axis)) {
        (Some(a), Some(b)) => match (a.dim_value, b.dim_value) {
            (Some(1), _) => b,
            (_, Some(1)) => a,
            // What a size is added to is of that size, or 1.
            (Some(_), _) => a,
            (_, Some(_)) => b,
            // A name stands for one size; two names, or none, may be anything.
            (None, None) => {
                if a == b {
                    a
                } else {
                    open()
                }
            }
        },
        (a, b) => a.or(b).unwrap_or_default(),
    });
    dims.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::onnx::AttributeProto;

    fn named(name: &str) -> Dimension {
        Dimension { dim_param: Some(name.to_owned()), ..Dimension::default() }
    }

    fn check(op_type: &str, input: &[&str], attribute: Vec<AttributeProto>, expected: Option<&str>) {
        let mut shapes = Shapes::default();
        let tensor = |name: &str, dims: &[Dimension]| {
            ValueInfoProto::of_tensor(name, 1, Some(TensorShape { dim: dims.to_vec() }))
        };
        shapes.state(&tensor("x", &[named("batch"), named("sequence"), size(8)]));
        shapes.state(&tensor("square", &[size(8), size(6)]));
        shapes.state(&tensor("row", &[size(8)]));
        shapes.state(&tensor("ids", &[named("batch"), size(2)]));
        for (name, values) in [("one", vec![1]), ("split", vec![3, 5]), ("to", vec![0, -1, 4, 2])] {
            let tensor = TensorProto {
                name: Some(name.to_owned()),
                data_type: Some(data_type::INT64),
                dims: vec![values.len() as i64],
                int64_data: values,
                ..TensorProto::default()
            };
            shapes.constant(&tensor);
        }
        shapes.infer(&NodeProto {
            op_type: Some("Shape".to_owned()),
            input: vec!["x".to_owned()],
            output: vec!["shape".to_owned()],
            ..NodeProto::default()
        });
        let node = NodeProto {
            op_type: Some(op_type.to_owned()),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec!["y".to_owned()],
            attribute,
            ..NodeProto::default()
        };
        shapes.infer(&node);
        let text = |dim: &Dimension| match (dim.dim_value, &dim.dim_param) {
            (Some(size), _) => size.to_string(),
            (None, name) => name.clone().unwrap_or("?".to_owned()),
        };
        let found = shapes.of("y").map(|shape| shape.dim.iter().map(text).collect::<Vec<_>>().join(" "));
        assert_eq!(found.as_deref(), expected, "{op_type} {input:?}");
    }

    #[test]
    fn shapes_follow_from_operators() {
        let int = |name: &str, value| vec![AttributeProto::of_int(name, value)];
        let perm = AttributeProto { name: Some("perm".to_owned()), ints: vec![2, 0, 1], ..AttributeProto::default() };
        check("Add", &["x", "row"], vec![], Some("batch sequence 8"));
        check("Add", &["x", "unknown"], vec![], None);
        check("MatMul", &["x", "square"], vec![], Some("batch sequence 6"));
        check("MatMul", &["x", "row"], vec![], None);
        check("Unsqueeze", &["x", "one"], vec![], Some("batch 1 sequence 8"));
        check("Squeeze", &["x", "one"], vec![], Some("batch 8"));
        check("ReduceMean", &["x", "one"], vec![], Some("batch 1 8"));
        check("ReduceSum", &["x", "one"], int("keepdims", 0), Some("batch 8"));
        check("Transpose", &["x"], vec![perm], Some("8 batch sequence"));
        check("Reshape", &["x", "to"], vec![], Some("batch ? 4 2"));
        check("Reshape", &["unknown", "shape"], vec![], Some("batch sequence 8"));
        check("Concat", &["x", "x"], int("axis", -1), Some("batch sequence 16"));
        check("Split", &["x", "split"], int("axis", 2), Some("batch sequence 3"));
        check("Gather", &["square", "ids"], int("axis", 1), Some("8 batch 2"));
        check("GatherND", &["square", "ids"], vec![], Some("batch"));
        check("Expand", &["row", "shape"], vec![], Some("batch sequence 8"));
        check("TopK", &["x", "one"], vec![], Some("batch sequence ?"));
        check("Gemm", &["square", "square"], int("transB", 1), Some("8 8"));
        check("Shape", &["x"], vec![], Some("3"));
        check("Shape", &["x"], int("start", -2), Some("2"));
        check("Shape", &["x"], vec![AttributeProto::of_int("start", 2), AttributeProto::of_int("end", 1)], Some("0"));
        // Axes that are not there.
        check("Concat", &["x", "x"], int("axis", 9), None);
        check("Gather", &["square", "ids"], int("axis", -9), None);
    }
}
