//! What a graph's outputs are held against.

use serde_yaml::Spanned;

use super::super::check::Checker;
use super::super::file::{ModelEntry, OutputEntry};
use super::inputs::words;
use super::{Output, array_file, is_array, tensor};
use crate::cell::{ElementType, Fill, OutputPlan};
use crate::package::Dim;
use crate::package::npy::Header;
use crate::package::onnx::Signature;
use crate::yaml::suggest;

/// Tolerances where the file says none: those of ONNX's own tests of backends, with room for zeros that are no zeros.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-5;

/// Every output; `None` where one of them has a mistake, which the checker knows.
pub(super) fn check(checker: &mut Checker, entry: &ModelEntry, signature: &Signature) -> Option<Vec<Output>> {
    let written = entry.outputs.as_ref().map(|outputs| outputs.value.0.as_slice()).unwrap_or_default();
    let mut whole = true;
    for (name, _) in written {
        if !signature.outputs.iter().any(|output| output.name == name.value) {
            let names: Vec<_> = signature.outputs.iter().map(|output| output.name.as_str()).collect();
            let message = format!("the graph has no output `{}`{}", name.value, suggest(&name.value, &names));
            checker.problem(name.referenced, message);
            whole = false;
        }
    }
    let mut outputs = Vec::new();
    for value in &signature.outputs {
        let entry_of = written.iter().find(|(name, _)| name.value == value.name).map(|(_, entry)| entry);
        let at = entry_of.map_or(entry.name.referenced, |entry| entry.referenced);
        let (element, shape) = match tensor(value, "output") {
            Ok(found) => found,
            Err(problem) => {
                checker.problem(at, problem);
                whole = false;
                continue;
            }
        };
        let entry = entry_of.map(|entry| &entry.value);
        let tolerance = |checker: &mut Checker, written: Option<&Spanned<f64>>, default: f64| {
            let Some(written) = written else { return default };
            if !(0.0..f64::INFINITY).contains(&written.value) {
                let message = format!("a tolerance is {}, not a number from 0", written.value);
                checker.problem(written.referenced, message);
            }
            written.value
        };
        // What is no float is equal or it is not, unless the file says otherwise.
        let (rtol, atol) = if element.is_float() { (RTOL, ATOL) } else { (0.0, 0.0) };
        let plan = OutputPlan {
            name: value.name.clone(),
            element,
            shape: None,
            rtol: tolerance(checker, entry.and_then(|entry| entry.rtol.as_ref()), rtol),
            atol: tolerance(checker, entry.and_then(|entry| entry.atol.as_ref()), atol),
            expected: entry.and_then(|entry| expected(checker, entry, &value.name, element, shape)),
        };
        outputs.push(Output { plan, shape: shape.map(<[Dim]>::to_vec) });
    }
    whole.then_some(outputs)
}

fn expected(
    checker: &mut Checker,
    entry: &OutputEntry,
    name: &str,
    element: ElementType,
    shape: Option<&[Dim]>,
) -> Option<Fill> {
    let written = match (&entry.expected, &entry.array) {
        (Some(written), _) => written,
        (None, Some(array)) => {
            checker.problem(array.referenced, "`array` names one of the arrays of a `.npz` file: `expected: FILE.npz`");
            return None;
        }
        (None, None) => return None,
    };
    if !is_array(&written.value) {
        let message = format!("`{}` is no array; name a `.npy` or a `.npz` file", written.value);
        checker.problem(written.referenced, message);
        return None;
    }
    let file = array_file(checker, written, entry.array.as_ref(), name);
    let Fill::File { path, array } = &file else { return None };
    let header = match Header::of(path, array.as_deref()) {
        Ok(header) => header,
        Err(error) => {
            checker.problem(written.referenced, error.chain());
            return None;
        }
    };
    if !header.holds(element) {
        let message = format!("`{}` holds {}, and the output `{name}` is of {element}", path.display(), header.word());
        checker.problem(written.referenced, message);
    }
    let differs = |(declared, found): (&Dim, &u64)| matches!(declared, Dim::Size(size) if size != found);
    if let Some(declared) = shape
        && (declared.len() != header.shape.len() || declared.iter().zip(&header.shape).any(differs))
    {
        let (declared, found) = (words(declared), &header.shape);
        let message = format!("the output `{name}` has the shape {declared} in the graph, and {found:?} in the file");
        checker.problem(written.referenced, message);
    }
    Some(file)
}
