//! A small graph written by hand.

/// An ONNX graph, as the bytes of its protobuf. Numbers are fields of onnx.proto3.
#[derive(Default)]
pub struct Graph(Vec<u8>);

impl Graph {
    /// An initializer; types by ONNX's number.
    pub fn tensor(&mut self, name: &str, data_type: u64, dims: &[usize], data: &[u8]) {
        let mut tensor = Vec::new();
        dims.iter().for_each(|&size| number(&mut tensor, 1, size as u64));
        number(&mut tensor, 2, data_type);
        bytes(&mut tensor, 8, name.as_bytes());
        bytes(&mut tensor, 9, data);
        bytes(&mut self.0, 5, &tensor);
    }

    /// A tensor of floats `[rows, width]`: an input of the graph (11) or an output (12).
    pub fn value(&mut self, field: u64, name: &str, width: usize) {
        let (mut row, mut column, mut shape) = (Vec::new(), Vec::new(), Vec::new());
        bytes(&mut row, 2, b"rows");
        number(&mut column, 1, width as u64);
        bytes(&mut shape, 1, &row);
        bytes(&mut shape, 1, &column);
        let (mut tensor, mut kind, mut value) = (Vec::new(), Vec::new(), Vec::new());
        number(&mut tensor, 1, 1);
        bytes(&mut tensor, 2, &shape);
        bytes(&mut kind, 1, &tensor);
        bytes(&mut value, 1, name.as_bytes());
        bytes(&mut value, 2, &kind);
        bytes(&mut self.0, field, &value);
    }

    /// A node of the contrib domain.
    pub fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        ints: &[(&str, usize)],
        floats: &[(&str, f32)],
        strings: &[(&str, &str)],
    ) {
        let mut node = Vec::new();
        inputs.iter().for_each(|name| bytes(&mut node, 1, name.as_bytes()));
        bytes(&mut node, 2, output.as_bytes());
        bytes(&mut node, 3, output.as_bytes());
        bytes(&mut node, 4, operator.as_bytes());
        bytes(&mut node, 7, b"com.microsoft");
        let mut attribute = |name: &str, kind: u64, value: &dyn Fn(&mut Vec<u8>)| {
            let mut attribute = Vec::new();
            bytes(&mut attribute, 1, name.as_bytes());
            value(&mut attribute);
            number(&mut attribute, 20, kind);
            bytes(&mut node, 5, &attribute);
        };
        for (name, value) in floats {
            attribute(name, 1, &|into| {
                varint(into, 2 << 3 | 5);
                into.extend_from_slice(&value.to_le_bytes());
            });
        }
        for (name, value) in ints {
            attribute(name, 2, &|into| number(into, 3, *value as u64));
        }
        for (name, value) in strings {
            attribute(name, 3, &|into| bytes(into, 4, value.as_bytes()));
        }
        bytes(&mut self.0, 1, &node);
    }

    /// The ONNX file.
    pub fn model(&self) -> Vec<u8> {
        let mut model = Vec::new();
        number(&mut model, 1, 10);
        bytes(&mut model, 7, &[&self.0[..], &[2 << 3 | 2, 1, b'g']].concat());
        for (domain, version) in [("", 21), ("com.microsoft", 1)] {
            let mut opset = Vec::new();
            bytes(&mut opset, 1, domain.as_bytes());
            number(&mut opset, 2, version);
            bytes(&mut model, 8, &opset);
        }
        model
    }
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        into.push(value as u8 | 128);
        value >>= 7;
    }
    into.push(value as u8);
}

fn number(into: &mut Vec<u8>, field: u64, value: u64) {
    varint(into, field << 3);
    varint(into, value);
}

fn bytes(into: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(into, field << 3 | 2);
    varint(into, value.len() as u64);
    into.extend_from_slice(value);
}
