//! Models of the kind `graph`: any ONNX file, what is fed to it, and the sizes of its free dimensions.
//!
//! The file's inputs are read when the matrix is checked, so that a wrong name, type or shape has its place in the
//! matrix file. What depends on the axis `dimensions` is settled cell by cell ([`GraphModel::plan`]).

mod dimensions;
mod inputs;
mod kinds;
mod outputs;

use std::path::{Path, PathBuf};

use serde_yaml::{Location, Spanned};

use super::check::Checker;
use super::file::ModelEntry;
use super::paths;
use crate::cell::{Dimensions, ElementType, Fill, GraphPlan, InputPlan, OutputPlan};
use crate::package::Dim;
use crate::package::onnx::{GraphValue, Signature, ValueKind};

pub(super) use dimensions::Known;

/// A graph of the matrix.
#[derive(Debug)]
pub struct GraphModel {
    pub path: PathBuf,
    precision: Option<String>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    items: Option<Items>,
    /// Names of free dimensions that the file itself has, those that the entry gives sizes among them.
    declared: Vec<String>,
    /// Where the entry stands.
    at: Location,
}

/// An input that is fed.
#[derive(Debug)]
struct Input {
    name: String,
    element: ElementType,
    shape: Vec<Dim>,
    fill: Fill,
    at: Location,
}

/// An output.
#[derive(Debug)]
struct Output {
    plan: OutputPlan,
    shape: Option<Vec<Dim>>,
}

/// How many items a run works on.
#[derive(Debug)]
enum Items {
    Count(u64),
    Along(String),
}

/// Largest size of a dimension; anything above is a slip of the hand.
pub(super) const MAX_DIMENSION: u64 = 1 << 40;

/// Why a graph cannot be run with some dimensions.
#[derive(Debug, PartialEq)]
pub struct Unfit {
    pub at: Location,
    pub message: String,
}

impl GraphModel {
    /// Reads the entry and its file; mistakes go to the checker.
    pub(super) fn check(checker: &mut Checker, entry: &ModelEntry) -> Option<Self> {
        let written = entry.path.as_ref()?;
        if written.value.contains(['{', '}']) {
            let message = "nothing is filled in in the path of a graph: it is the same for all its cells";
            checker.problem(written.referenced, message);
            return None;
        }
        let path = checker.path(&written.value);
        let signature = match Signature::read(&path) {
            Ok(signature) => signature,
            Err(error) => {
                checker.problem(written.referenced, error.chain());
                return None;
            }
        };
        let precision = entry.precision.as_ref();
        if let Some(label) = precision {
            checker.name(label, "a graph's precision");
        }
        let inputs = inputs::check(checker, entry, &signature);
        let outputs = outputs::check(checker, entry, &signature);
        let mut model = Self {
            path,
            precision: precision.map(|label| label.value.clone()),
            inputs: inputs?,
            outputs: outputs?,
            items: None,
            declared: declared(&signature),
            at: entry.name.referenced,
        };
        model.items = entry.items.as_ref().and_then(|items| model.items(checker, items));
        Some(model)
    }

    fn items(&self, checker: &mut Checker, written: &Spanned<String>) -> Option<Items> {
        let free = self.free();
        match written.value.parse() {
            Ok(count @ 1..=MAX_DIMENSION) => Some(Items::Count(count)),
            Err(_) if free.contains(&written.value.as_str()) => Some(Items::Along(written.value.clone())),
            _ => {
                let message = format!(
                    "`items` is `{}`; it is a whole number from 1, or a free dimension of the inputs{}",
                    written.value,
                    crate::yaml::suggest(&written.value, &free)
                );
                checker.problem(written.referenced, message);
                None
            }
        }
    }

    /// Names of free dimensions, each once.
    pub fn free(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.inputs.iter().flat_map(|input| &input.shape).filter_map(name_of).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Names that the axis `dimensions` may have for this graph.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.free().into_iter().chain(self.declared.iter().map(String::as_str))
    }

    /// Whether an output has an expected value, so that accuracy can be measured without a reference.
    pub fn expects(&self) -> bool {
        self.outputs.iter().any(|output| output.plan.expected.is_some())
    }

    /// The graph in a cell with these dimensions.
    ///
    /// # Errors
    /// A dimension without a size, or sizes that nothing can hold.
    pub fn plan(&self, dimensions: &Dimensions) -> Result<GraphPlan, Unfit> {
        let size = |dim: &Dim| match dim {
            Dim::Size(size) => Some(*size),
            Dim::Symbol(name) => dimensions.0.get(name).copied(),
        };
        let mut inputs = Vec::new();
        for input in &self.inputs {
            let mut shape = Vec::new();
            for dim in &input.shape {
                shape.push(size(dim).ok_or_else(|| self.unbound(name_of(dim).unwrap_or_default()))?);
            }
            let plan = InputPlan { name: input.name.clone(), element: input.element, shape, fill: input.fill.clone() };
            inputs::check_size(&plan).map_err(|message| Unfit { at: input.at, message })?;
            inputs.push(plan);
        }
        let shape = |dims: &Vec<Dim>| dims.iter().map(size).collect::<Option<Vec<u64>>>();
        let output =
            |output: &Output| OutputPlan { shape: output.shape.as_ref().and_then(shape), ..output.plan.clone() };
        Ok(GraphPlan {
            precision: self.precision.clone(),
            dimensions: dimensions.clone(),
            inputs,
            outputs: self.outputs.iter().map(output).collect(),
            items: match &self.items {
                None => None,
                Some(Items::Count(count)) => Some(*count),
                Some(Items::Along(name)) => dimensions.0.get(name).copied(),
            },
        })
    }

    fn unbound(&self, name: &str) -> Unfit {
        let with = |input: &&Input| input.shape.iter().any(|dim| name_of(dim) == Some(name));
        let inputs: Vec<_> = self.inputs.iter().filter(with).map(|input| format!("`{}`", input.name)).collect();
        let plural = if inputs.len() == 1 { "input" } else { "inputs" };
        let message = format!(
            "the free dimension `{name}` of the {plural} {} has no size: add it to the axis `dimensions` of the \
             matrix, as `dimensions: [{{{name}: 1}}]`, or give the {plural} a `shape`",
            inputs.join(", ")
        );
        Unfit { at: self.at, message }
    }
}

fn declared(signature: &Signature) -> Vec<String> {
    let shape = |input: &GraphValue| match &input.kind {
        ValueKind::Tensor(_, shape) => shape.clone().unwrap_or_default(),
        ValueKind::Other(_) => Vec::new(),
    };
    let dims: Vec<Dim> = signature.inputs.iter().chain(&signature.optional).flat_map(shape).collect();
    dims.iter().filter_map(name_of).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn name_of(dim: &Dim) -> Option<&str> {
    match dim {
        Dim::Size(_) => None,
        Dim::Symbol(name) => Some(name),
    }
}

/// The element type and shape of an input or output that can be fed or read.
///
/// # Errors
/// Why it cannot.
fn tensor<'a>(value: &'a GraphValue, what: &str) -> Result<(ElementType, Option<&'a [Dim]>), String> {
    let name = &value.name;
    match &value.kind {
        ValueKind::Other(kind) => Err(format!("the {what} `{name}` is a {kind}; only tensors are run here")),
        ValueKind::Tensor(number, shape) => match ElementType::of_onnx(*number) {
            Some(element) => Ok((element, shape.as_deref())),
            None => Err(format!(
                "the {what} `{name}` is a tensor of {}, which is not run here; known are {}",
                crate::package::onnx::element_name(*number),
                ElementType::NAMES.join(", ")
            )),
        },
    }
}

/// An array's file: absolute, with the array's name where it is a `.npz` file.
fn array_file(checker: &mut Checker, written: &Spanned<String>, array: Option<&Spanned<String>>, name: &str) -> Fill {
    let path = checker.path(&written.value);
    let archive = is_archive(&path);
    if let Some(array) = array.filter(|_| !archive) {
        checker.problem(array.referenced, "`array` names one of the arrays of a `.npz` file, and this file is none");
    }
    let array = archive.then(|| array.map_or_else(|| name.to_owned(), |array| array.value.clone()));
    Fill::File { path, array }
}

fn is_array(text: &str) -> bool {
    text.ends_with(".npy") || text.ends_with(".npz")
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "npz")
}

/// Paths of models that are packages.
pub(super) fn package_only(checker: &mut Checker, entry: &ModelEntry) {
    let places = [
        ("path", entry.path.as_ref().map(|written| written.referenced)),
        ("inputs", entry.inputs.as_ref().map(|written| written.referenced)),
        ("outputs", entry.outputs.as_ref().map(|written| written.referenced)),
        ("items", entry.items.as_ref().map(|written| written.referenced)),
    ];
    for (key, at) in places.into_iter().filter_map(|(key, at)| Some((key, at?))) {
        checker.problem(at, format!("`{key}` is for a model of `kind: graph`"));
    }
    if let Some(package) = &entry.package {
        for problem in paths::unknown_placeholders(&package.value, "a package") {
            checker.problem(package.referenced, problem);
        }
    } else {
        checker.problem(entry.name.referenced, "the model needs a `package`, or `kind: graph` and a `path`");
    }
}

/// Keys of packages in the entry of a graph.
pub(super) fn graph_only(checker: &mut Checker, entry: &ModelEntry) {
    let places = [("package", &entry.package), ("checkpoint", &entry.checkpoint), ("flavour", &entry.flavour)];
    for (key, written) in places {
        if let Some(written) = written {
            checker.problem(written.referenced, format!("`{key}` is for packages, and the model is a graph"));
        }
    }
    if entry.path.is_none() {
        checker.problem(entry.name.referenced, "a model of `kind: graph` needs the `path` of an ONNX file");
    }
}
