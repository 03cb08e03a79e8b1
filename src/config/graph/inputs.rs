//! What a graph is fed.

use serde_yaml::{Location, Spanned};

use super::super::check::Checker;
use super::super::file::{InputEntry, ModelEntry};
use super::{Input, MAX_DIMENSION, array_file, is_array, tensor};
use crate::cell::{ElementType, Fill, InputPlan};
use crate::package::Dim;
use crate::package::npy::Header;
use crate::package::onnx::{GraphValue, Signature};
use crate::yaml::suggest;

/// Fills that are words.
const WORDS: [&str; 4] = ["random", "zeros", "ones", "range"];

/// Whole numbers up to this one are exact in the matrix file's numbers.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Every input that is fed: those without a value of their own, and those that the entry names. `None` where one of them
/// has a mistake, which the checker knows.
pub(super) fn check(checker: &mut Checker, entry: &ModelEntry, signature: &Signature) -> Option<Vec<Input>> {
    let written = entry.inputs.as_ref().map(|inputs| inputs.value.0.as_slice()).unwrap_or_default();
    let all = || signature.inputs.iter().chain(&signature.optional);
    let mut whole = true;
    for (name, _) in written {
        if !all().any(|input| input.name == name.value) {
            let names: Vec<_> = all().map(|input| input.name.as_str()).collect();
            let message = format!("the graph has no input `{}`{}", name.value, suggest(&name.value, &names));
            checker.problem(name.referenced, message);
            whole = false;
        }
    }
    let mut inputs = Vec::new();
    for (place, value) in all().enumerate() {
        let entry_of = written.iter().find(|(name, _)| name.value == value.name).map(|(_, entry)| entry);
        if place >= signature.inputs.len() && entry_of.is_none() {
            continue;
        }
        match input(checker, value, entry_of, entry.name.referenced) {
            Some(input) => inputs.push(input),
            None => whole = false,
        }
    }
    whole.then_some(inputs)
}

fn input(
    checker: &mut Checker,
    value: &GraphValue,
    entry: Option<&Spanned<InputEntry>>,
    model: Location,
) -> Option<Input> {
    let at = entry.map_or(model, |entry| entry.referenced);
    let name = &value.name;
    let (element, declared) = match tensor(value, "input") {
        Ok(found) => found,
        Err(problem) => {
            checker.problem(at, problem);
            return None;
        }
    };
    let entry = entry.map(|entry| &entry.value);
    let fill = match entry {
        Some(entry) => fill(checker, name, element, entry, at)?,
        None => default_fill(element),
    };
    let mut shape = declared.map(<[Dim]>::to_vec);
    if let Some(written) = entry.and_then(|entry| entry.shape.as_ref()) {
        let dims = written_shape(checker, written)?;
        shape = Some(agreed(checker, name, shape, dims, written.referenced)?);
    }
    if let Fill::File { path, array } = &fill {
        let at = entry.and_then(|entry| entry.fill.as_ref()).map_or(at, |fill| fill.referenced);
        let header = match Header::of(path, array.as_deref()) {
            Ok(header) => header,
            Err(error) => {
                checker.problem(at, error.chain());
                return None;
            }
        };
        if !header.holds(element) {
            let message =
                format!("`{}` holds {}, and the input `{name}` is of {element}", path.display(), header.word());
            checker.problem(at, message);
            return None;
        }
        let dims = header.shape.iter().map(|size| Dim::Size(*size)).collect();
        shape = Some(agreed(checker, name, shape, dims, at)?);
    }
    let Some(shape) = shape else {
        checker.problem(at, format!("the graph says no shape of the input `{name}`: give it a `shape`"));
        return None;
    };
    if let Some(place) = shape.iter().position(|dim| *dim == Dim::Symbol(String::new())) {
        let message = format!(
            "dimension {place} of the input `{name}` has neither size nor name in the graph: give the input a `shape`"
        );
        checker.problem(at, message);
        return None;
    }
    Some(Input { name: name.clone(), element, shape, fill, at })
}

/// Sizes and names as written.
fn written_shape(checker: &mut Checker, written: &Spanned<Vec<Spanned<String>>>) -> Option<Vec<Dim>> {
    let mut dims = Vec::new();
    for dim in &written.value {
        let text = &dim.value;
        dims.push(match text.parse() {
            Ok(size @ 0..=MAX_DIMENSION) => Dim::Size(size),
            Err(_) if text.starts_with(|c: char| c.is_alphabetic() || c == '_') => Dim::Symbol(text.clone()),
            _ => {
                let message = format!(
                    "`{text}` is no dimension; it is a whole number from 0 to {MAX_DIMENSION}, or the name of a free \
                     one whose size stands on the axis `dimensions`"
                );
                checker.problem(dim.referenced, message);
                return None;
            }
        });
    }
    Some(dims)
}

/// A shape that the graph's own one allows.
fn agreed(
    checker: &mut Checker,
    name: &str,
    declared: Option<Vec<Dim>>,
    wanted: Vec<Dim>,
    at: Location,
) -> Option<Vec<Dim>> {
    let Some(declared) = declared else { return Some(wanted) };
    let fits = |(declared, wanted): (&Dim, &Dim)| match (declared, wanted) {
        (Dim::Size(declared), Dim::Size(wanted)) => declared == wanted,
        // A name for what the graph fixes would be a size of two minds.
        (Dim::Size(_), Dim::Symbol(_)) => false,
        (Dim::Symbol(_), _) => true,
    };
    if declared.len() == wanted.len() && declared.iter().zip(&wanted).all(fits) {
        return Some(wanted);
    }
    let message =
        format!("the input `{name}` has the shape {} in the graph, and {} here", words(&declared), words(&wanted));
    checker.problem(at, message);
    None
}

/// A shape as people write it.
pub(super) fn words(shape: &[Dim]) -> String {
    let word = |dim: &Dim| match dim {
        Dim::Size(size) => size.to_string(),
        Dim::Symbol(name) if name.is_empty() => "?".to_owned(),
        Dim::Symbol(name) => name.clone(),
    };
    format!("[{}]", shape.iter().map(word).collect::<Vec<_>>().join(", "))
}

fn default_fill(element: ElementType) -> Fill {
    match element {
        element if element.is_float() => Fill::Random { seed: 0, low: 0.0, high: 1.0 },
        ElementType::String => Fill::Text(String::new()),
        _ => Fill::Constant(0.0),
    }
}

fn fill(checker: &mut Checker, name: &str, element: ElementType, entry: &InputEntry, at: Location) -> Option<Fill> {
    let kind = entry.fill.as_ref().map(|fill| fill.value.as_str());
    let drawn = kind == Some("random") || kind.is_none() && element.is_float();
    for (key, place) in [
        ("low", entry.low.as_ref().map(|low| low.referenced)),
        ("high", entry.high.as_ref().map(|high| high.referenced)),
        ("seed", entry.seed.as_ref().map(|seed| seed.referenced)),
    ] {
        if let Some(place) = place.filter(|_| !drawn) {
            checker.problem(place, format!("`{key}` is for `fill: random`"));
            return None;
        }
    }
    if let Some(array) = entry.array.as_ref().filter(|_| !kind.is_some_and(is_array)) {
        checker.problem(array.referenced, "`array` names one of the arrays of a `.npz` file: `fill: FILE.npz`");
        return None;
    }
    if let Some(text) = &entry.text {
        if element != ElementType::String || kind.is_some() {
            let message = format!("`text` is what an input of strings is filled with, and `{name}` is of {element}");
            checker.problem(text.referenced, message);
            return None;
        }
        return Some(Fill::Text(text.value.clone()));
    }
    let Some(written) = &entry.fill else {
        return if drawn { random(checker, name, element, entry, at) } else { Some(default_fill(element)) };
    };
    if is_array(&written.value) {
        return Some(array_file(checker, written, entry.array.as_ref(), name));
    }
    let wrong = |checker: &mut Checker, message: String| {
        checker.problem(written.referenced, message);
        None
    };
    let number = match written.value.as_str() {
        "zeros" | "false" => 0.0,
        "ones" | "true" => 1.0,
        "random" => return random(checker, name, element, entry, written.referenced),
        "range" if matches!(element, ElementType::Bool | ElementType::String) => {
            return wrong(checker, format!("the input `{name}` is of {element}, which has no 0, 1, 2, …"));
        }
        "range" => return Some(Fill::Range),
        text => match text.parse::<f64>() {
            Ok(number) => number,
            Err(_) => {
                let message =
                    format!("unknown fill `{text}`{} (or a number, a `.npy` or a `.npz` file)", suggest(text, &WORDS));
                return wrong(checker, message);
            }
        },
    };
    if element == ElementType::String {
        return match number == 0.0 {
            true => Some(default_fill(element)),
            false => wrong(checker, format!("the input `{name}` is of strings; `text: …` says which")),
        };
    }
    match holds(element, number) {
        true => Some(Fill::Constant(number)),
        false => wrong(checker, format!("the input `{name}` is of {element}, which has no {}", written.value)),
    }
}

fn random(checker: &mut Checker, name: &str, element: ElementType, entry: &InputEntry, at: Location) -> Option<Fill> {
    if element == ElementType::String {
        checker.problem(at, format!("the input `{name}` is of strings, and none are drawn; `text: …` says which"));
        return None;
    }
    let whole = element.whole_numbers().is_some();
    let (low, high) = (entry.low.as_ref(), entry.high.as_ref());
    if whole && high.is_none() {
        let message = format!("random values of the input `{name}`, which is of {element}, need a `high`, the largest");
        checker.problem(at, message);
        return None;
    }
    for bound in low.into_iter().chain(high) {
        if !holds(element, bound.value) {
            let message = format!("the input `{name}` is of {element}, which has no {}", bound.value);
            checker.problem(bound.referenced, message);
            return None;
        }
    }
    let (low, top) = (low.map_or(0.0, |low| low.value), high.map_or(1.0, |high| high.value));
    if low > top || (low == top && element.is_float()) {
        let at = entry.high.as_ref().or(entry.low.as_ref()).map_or(at, |bound| bound.referenced);
        checker.problem(at, format!("`low` is {low} and `high` is {top}, so that there is nothing to draw from"));
        return None;
    }
    Some(Fill::Random { seed: entry.seed.as_ref().map_or(0, |seed| seed.value), low, high: top })
}

/// Whether a number of the matrix file is one of the type's.
fn holds(element: ElementType, number: f64) -> bool {
    if element == ElementType::Bool {
        return number == 0.0 || number == 1.0;
    }
    match element.whole_numbers() {
        None => true,
        Some((low, high)) => number.fract() == 0.0 && number.abs() <= EXACT && (low..=high).contains(&(number as i128)),
    }
}

/// Whether memory can be asked for, and a range fits its type.
pub(super) fn check_size(input: &InputPlan) -> Result<(), String> {
    let (name, elements) = (&input.name, input.elements());
    let text = || format!("the input `{name}` of the shape {:?}", input.shape);
    // Strings take no memory of the tensor's own width, and a pointer each.
    if elements.saturating_mul(input.element.size().max(24) as u64) > isize::MAX as u64 {
        return Err(format!("{} has more elements than any memory", text()));
    }
    let largest = match (&input.fill, input.element.whole_numbers()) {
        (Fill::Range, Some((_, high))) => high,
        _ => return Ok(()),
    };
    if i128::from(elements) - 1 > largest {
        return Err(format!("{} has {elements} elements, and {} counts to {largest} only", text(), input.element));
    }
    Ok(())
}
