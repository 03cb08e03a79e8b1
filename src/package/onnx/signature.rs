//! What an ONNX file takes and gives, read without its weights: files may be of many gigabytes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use prost::Message;

use super::proto::{StringStringEntryProto, TypeProto, ValueInfoProto};
use crate::error::{Context, Error, Result};
use crate::package::Dim;

/// Inputs, outputs and size of a graph.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signature {
    /// What must be fed, in the graph's order.
    pub inputs: Vec<GraphValue>,
    /// What may be fed: inputs that have a value of their own.
    pub optional: Vec<GraphValue>,
    /// What comes out.
    pub outputs: Vec<GraphValue>,
    /// Nodes of the graph as written, those of subgraphs not counted.
    pub nodes: u64,
    /// Elements of its constants.
    pub parameters: u64,
    /// Files beside it that hold constants, in the order of their names.
    pub external: Vec<String>,
}

/// An input or an output.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphValue {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ValueKind,
}

/// What an input or output is.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueKind {
    /// A dense tensor: the number of its element type, and its shape where the graph says one. A dimension without
    /// name and size is a [`Dim::Symbol`] of no letters.
    Tensor(i32, Option<Vec<Dim>>),
    /// Something else, by ONNX's name.
    Other(&'static str),
}

/// Messages that are read whole are no longer than this.
const LONGEST_MESSAGE: u64 = 16 << 20;

impl Signature {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no ONNX model.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = || format!("cannot read the ONNX file `{}`", path.display());
        let metadata = std::fs::metadata(path).with_context(failed)?;
        if !metadata.is_file() {
            return Err(Error::new(failed()).because(std::io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).with_context(failed)?;
        Self::of(BufReader::new(file), metadata.len()).with_context(failed)
    }

    /// Bytes of the file and of those beside it that hold its constants; those that are missing count nothing.
    pub fn bytes(&self, path: &Path) -> u64 {
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        self.files(path).into_iter().map(size).fold(0, u64::saturating_add)
    }

    /// The file, and those beside it that hold its constants.
    pub fn files(&self, path: &Path) -> Vec<PathBuf> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let beside = self.external.iter().map(|name| folder.join(name));
        std::iter::once(path.to_owned()).chain(beside).collect()
    }

    fn of(source: impl Read + Seek, length: u64) -> Result<Self> {
        let mut reader = Reader { source, position: 0 };
        let mut found = Found::default();
        let mut graphs = 0;
        while reader.position < length {
            match reader.field(length)? {
                // ModelProto.graph
                Field { number: 7, payload: Some(end) } => {
                    graphs += 1;
                    reader.graph(end, &mut found)?;
                }
                field => reader.skip(field)?,
            }
        }
        if graphs != 1 {
            return Err(no_onnx(format!("it has {graphs} graphs where a model has one")));
        }
        if found.outputs.is_empty() {
            return Err(no_onnx("its graph has no output".to_owned()));
        }
        let constants = &found.constants;
        let (optional, inputs) = found.inputs.into_iter().partition(|input| constants.contains(&input.name));
        Ok(Self {
            inputs,
            optional,
            outputs: found.outputs,
            nodes: found.nodes,
            parameters: found.parameters,
            external: found.external.into_iter().collect(),
        })
    }
}

#[derive(Default)]
struct Found {
    inputs: Vec<GraphValue>,
    outputs: Vec<GraphValue>,
    constants: BTreeSet<String>,
    external: BTreeSet<String>,
    nodes: u64,
    parameters: u64,
}

/// A field's number, and the end of its contents where it has a length.
struct Field {
    number: u64,
    payload: Option<u64>,
}

/// Protocol Buffers' wire format, as far as it is needed to find one's way.
struct Reader<S> {
    source: S,
    position: u64,
}

impl<S: Read + Seek> Reader<S> {
    fn graph(&mut self, end: u64, found: &mut Found) -> Result<()> {
        while self.position < end {
            match self.field(end)? {
                // GraphProto.node, initializer, input, output, sparse_initializer
                field @ Field { number: 1, payload: Some(_) } => {
                    found.nodes += 1;
                    self.skip(field)?;
                }
                Field { number: 5, payload: Some(end) } => self.initializer(end, found)?,
                Field { number: 11, payload: Some(end) } => found.inputs.push(self.value(end)?),
                Field { number: 12, payload: Some(end) } => found.outputs.push(self.value(end)?),
                // Its values come first, and their name is the constant's.
                Field { number: 15, payload: Some(end) } => {
                    while self.position < end {
                        match self.field(end)? {
                            Field { number: 1, payload: Some(end) } => self.initializer(end, found)?,
                            field => self.skip(field)?,
                        }
                    }
                }
                field => self.skip(field)?,
            }
        }
        Ok(())
    }

    /// A constant: its name, its size and its file, and not its contents.
    fn initializer(&mut self, end: u64, found: &mut Found) -> Result<()> {
        let mut elements: u64 = 1;
        while self.position < end {
            match self.field_with_number(end)? {
                // TensorProto.dims, packed or not, name, external_data
                (Field { number: 1, payload: None }, size) => elements = elements.saturating_mul(size),
                (Field { number: 1, payload: Some(end) }, _) => {
                    while self.position < end {
                        elements = elements.saturating_mul(self.number()?);
                    }
                }
                (Field { number: 8, payload: Some(end) }, _) => {
                    let name = self.bytes(end)?;
                    found.constants.insert(String::from_utf8_lossy(&name).into_owned());
                }
                (Field { number: 13, payload: Some(end) }, _) => {
                    let entry = self.bytes(end)?;
                    let entry = StringStringEntryProto::decode(&*entry).context("its external data are damaged")?;
                    if entry.key() == "location" {
                        found.external.insert(entry.value().to_owned());
                    }
                }
                (field, _) => self.skip(field)?,
            }
        }
        found.parameters = found.parameters.saturating_add(elements);
        Ok(())
    }

    fn value(&mut self, end: u64) -> Result<GraphValue> {
        let bytes = self.bytes(end)?;
        let value = ValueInfoProto::decode(&*bytes).context("an input or output is damaged")?;
        let kind = value.r#type.as_ref().map_or(ValueKind::Other("value without a type"), kind_of);
        Ok(GraphValue { name: value.name().to_owned(), kind })
    }

    fn field(&mut self, end: u64) -> Result<Field> {
        Ok(self.field_with_number(end)?.0)
    }

    /// A field's head; a number is read, what has a length is not.
    fn field_with_number(&mut self, end: u64) -> Result<(Field, u64)> {
        let tag = self.number()?;
        let number = tag >> 3;
        let (payload, value) = match tag & 7 {
            0 => (None, self.number()?),
            1 => (Some(self.position + 8), 0),
            2 => {
                let length = self.number()?;
                (Some(self.position.checked_add(length).ok_or_else(|| cut(u64::MAX))?), 0)
            }
            5 => (Some(self.position + 4), 0),
            wire => return Err(no_onnx(format!("it has a field of the unknown kind {wire}"))),
        };
        if number == 0 {
            return Err(no_onnx("it has a field of the number 0".to_owned()));
        }
        if payload.is_some_and(|payload| payload > end) || self.position > end {
            return Err(cut(end));
        }
        Ok((Field { number, payload }, value))
    }

    fn skip(&mut self, field: Field) -> Result<()> {
        let Some(end) = field.payload else { return Ok(()) };
        // A seek keeps what is buffered; sizes of files fit an i64.
        self.source.seek_relative((end - self.position) as i64).context("cannot go on in the file")?;
        self.position = end;
        Ok(())
    }

    fn bytes(&mut self, end: u64) -> Result<Vec<u8>> {
        let length = end - self.position;
        if length > LONGEST_MESSAGE {
            return Err(no_onnx(format!("a name or a type in it has {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        self.source.read_exact(&mut bytes).context("the file is cut short")?;
        self.position = end;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0;
        for place in 0..10 {
            let mut byte = [0];
            self.source.read_exact(&mut byte).context("the file is cut short")?;
            self.position += 1;
            value |= u64::from(byte[0] & 0x7f) << (7 * place).min(63);
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(no_onnx("it has a number of more than ten bytes".to_owned()))
    }
}

fn kind_of(kind: &TypeProto) -> ValueKind {
    if let Some(tensor) = &kind.tensor_type {
        let dims = |shape: &super::TensorShape| shape.dim.iter().map(dimension).collect();
        return ValueKind::Tensor(tensor.elem_type(), tensor.shape.as_ref().map(dims));
    }
    ValueKind::Other(match kind {
        TypeProto { sequence_type: Some(_), .. } => "sequence",
        TypeProto { map_type: Some(_), .. } => "map",
        TypeProto { optional_type: Some(_), .. } => "optional value",
        TypeProto { sparse_tensor_type: Some(_), .. } => "sparse tensor",
        TypeProto { opaque_type: Some(_), .. } => "opaque value",
        _ => "value without a type",
    })
}

/// Exporters write an unknown size as −1 too.
fn dimension(dimension: &super::Dimension) -> Dim {
    match (dimension.dim_value.map(u64::try_from), &dimension.dim_param) {
        (Some(Ok(size)), _) => Dim::Size(size),
        (_, name) => Dim::Symbol(name.clone().unwrap_or_default()),
    }
}

fn no_onnx(cause: String) -> Error {
    Error::new("it is no ONNX file").because(std::io::Error::other(cause))
}

fn cut(end: u64) -> Error {
    no_onnx(format!("a field reaches beyond byte {end}, the end of what holds it"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::super::{Dimension, GraphProto, ModelProto, NodeProto, TensorProto, TensorShape, ValueInfoProto, write};
    use super::*;

    fn shape(dims: &[Result<i64, &str>]) -> TensorShape {
        let dimension = |dim: &Result<i64, &str>| Dimension {
            dim_value: dim.ok(),
            dim_param: dim.err().map(str::to_owned),
            denotation: None,
        };
        TensorShape { dim: dims.iter().map(dimension).collect() }
    }

    fn model() -> Vec<u8> {
        let tensor = |name: &str, dims: Vec<i64>| TensorProto {
            name: Some(name.to_owned()),
            dims,
            data_type: Some(1),
            raw_data: Some(vec![7; 4000]),
            ..TensorProto::default()
        };
        let sequence = TypeProto { sequence_type: Some(super::super::ElementType::default()), ..TypeProto::default() };
        let graph = GraphProto {
            node: vec![NodeProto::default(); 3],
            initializer: vec![tensor("weight", vec![10, 100]), tensor("w", vec![]).at("data.bin", 0, 4)],
            input: vec![
                ValueInfoProto::of_tensor("x", 1, Some(shape(&[Err("batch"), Ok(3), Ok(-1)]))),
                ValueInfoProto::of_tensor("weight", 1, Some(shape(&[Ok(10), Ok(100)]))),
            ],
            output: vec![
                ValueInfoProto::of_tensor("y", 7, None),
                ValueInfoProto { name: Some("list".to_owned()), r#type: Some(sequence), ..ValueInfoProto::default() },
            ],
            ..GraphProto::default()
        };
        write(&ModelProto { ir_version: Some(10), graph: Some(graph), ..ModelProto::default() })
    }

    fn read(bytes: &[u8]) -> Result<Signature> {
        Signature::of(Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn a_graph_is_read_without_its_weights() {
        let signature = read(&model()).unwrap();
        let dims = vec![Dim::Symbol("batch".to_owned()), Dim::Size(3), Dim::Symbol(String::new())];
        let x = GraphValue { name: "x".to_owned(), kind: ValueKind::Tensor(1, Some(dims)) };
        assert_eq!(signature.inputs, [x]);
        assert_eq!(signature.optional[0].name, "weight");
        assert_eq!(signature.outputs[0].kind, ValueKind::Tensor(7, None));
        assert_eq!(signature.outputs[1].kind, ValueKind::Other("sequence"));
        assert_eq!((signature.nodes, signature.parameters), (3, 1001));
        assert_eq!(signature.external, ["data.bin"]);
        assert_eq!(signature.files(Path::new("/m/a.onnx"))[1], Path::new("/m/data.bin"));
    }

    #[test]
    fn what_is_no_model_says_so() {
        let model = model();
        for (bytes, words) in [
            (&b""[..], "0 graphs"),
            (b"hello, I am a text", "no ONNX file"),
            (&model[..model.len() / 2], "ONNX"),
            (&write(&ModelProto::default()), "0 graphs"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.chain().contains(words), "{}", error.chain());
        }
        assert!(Signature::read(Path::new("/none.onnx")).unwrap_err().chain().contains("No such file"));
        assert!(Signature::read(Path::new("/tmp")).unwrap_err().chain().contains("regular file"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0..200_usize, byte in any::<u8>(), length in 0..5000_usize) {
            let mut bytes = model();
            bytes[at] = byte;
            bytes.truncate(length);
            let _ = read(&bytes);
        }
    }
}
