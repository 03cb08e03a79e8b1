//! How far an output is from what it should be.

use std::fmt;

use half::{bf16, f16};

use crate::cell::{ElementType, OutputPlan};
use crate::runtime::{Output, OutputElements};
use crate::units::significant;

/// The comparison of one output.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Difference {
    /// Elements compared.
    pub elements: u64,
    /// Elements beyond the tolerance; all of them where type or shape are others.
    pub mismatches: u64,
    /// Largest |found − expected| of numbers that are both finite.
    pub max_absolute: Option<f64>,
    /// Largest |found − expected| ÷ |expected|, where that is not 0.
    pub max_relative: Option<f64>,
    /// Cosine of the angle between both, over finite elements; of floats only.
    pub cosine: Option<f64>,
    /// The element that is furthest from its tolerance, of those that differ at all.
    pub worst: Option<Element>,
    /// What is not comparable.
    pub apart: Option<String>,
}

/// One element.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// Its place on each axis.
    pub index: Vec<u64>,
    /// What was found there.
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// |found − expected| ÷ tolerance; infinite where there is no tolerance.
    pub severity: f64,
}

impl fmt::Display for Element {
    /// `[3, 17] is 0.25 and should be 0.5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is {} and should be {}", self.index, self.found, self.expected)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(apart) = &self.apart {
            return f.write_str(apart);
        }
        write!(f, "{} of {} differ", self.mismatches, self.elements)?;
        for (name, value) in [("max abs", self.max_absolute), ("max rel", self.max_relative)] {
            if let Some(value) = value {
                write!(f, ", {name} {value:.3e}")?;
            }
        }
        match self.cosine {
            Some(cosine) => write!(f, ", cosine {cosine:.9}"),
            None => Ok(()),
        }
    }
}

/// An element as it is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Float(f64),
    /// Exact, whatever its size.
    Whole(i128),
}

impl Difference {
    /// Compares what was found with what is expected, within the plan's tolerances.
    pub fn of(found: &Output, expected: &Output, plan: &OutputPlan) -> Self {
        if found.element != expected.element || found.shape != expected.shape {
            let words = |output: &Output| format!("{} {:?}", output.element, output.shape);
            let elements = found.shape.iter().copied().fold(1, u64::saturating_mul).max(1);
            let apart = format!("it is {} and should be {}", words(found), words(expected));
            return Self { elements, mismatches: elements, apart: Some(apart), ..Self::default() };
        }
        match (&found.elements, &expected.elements) {
            (OutputElements::Texts(found_texts), OutputElements::Texts(texts)) => {
                Self::of_texts(&found.shape, found_texts, texts)
            }
            (OutputElements::Bytes(found_bytes), OutputElements::Bytes(bytes)) => {
                Self::of_numbers(found, found_bytes, bytes, plan)
            }
            _ => {
                Self { elements: 1, mismatches: 1, apart: Some("it is of another type".to_owned()), ..Self::default() }
            }
        }
    }

    /// Whether every element is within its tolerance.
    pub fn agrees(&self) -> bool {
        self.mismatches == 0
    }

    /// How bad the worst element is, for comparison among outputs.
    pub fn severity(&self) -> f64 {
        match (&self.apart, &self.worst) {
            (Some(_), _) => f64::INFINITY,
            (None, Some(worst)) => worst.severity,
            (None, None) => 0.0,
        }
    }

    /// What is wrong, in a sentence.
    pub fn complaint(&self, plan: &OutputPlan) -> String {
        let name = &plan.name;
        let element = self.apart.clone().or_else(|| self.worst.as_ref().map(Element::to_string));
        format!(
            "{} of {} elements of the output `{name}` are beyond rtol {} and atol {}; the worst: {name}{}",
            self.mismatches,
            self.elements,
            plan.rtol,
            plan.atol,
            element.map_or_else(String::new, |element| if self.apart.is_some() {
                format!(": {element}")
            } else {
                element
            })
        )
    }

    fn of_texts(shape: &[u64], found: &[String], expected: &[String]) -> Self {
        let mut difference = Self { elements: found.len() as u64, ..Self::default() };
        for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
            if found != expected {
                difference.mismatches += 1;
                difference.worst.get_or_insert_with(|| Element {
                    index: index(shape, place),
                    found: format!("{found:?}"),
                    expected: format!("{expected:?}"),
                    severity: f64::INFINITY,
                });
            }
        }
        difference
    }

    fn of_numbers(found: &Output, found_bytes: &[u8], expected: &[u8], plan: &OutputPlan) -> Self {
        let (element, width) = (found.element, found.element.size().max(1));
        let mut difference = Self { elements: (found_bytes.len() / width) as u64, ..Self::default() };
        let (mut dot, mut norm, mut expected_norm) = (0.0, 0.0, 0.0);
        let mut worst: Option<(usize, Number, Number, f64)> = None;
        for (place, (a, b)) in found_bytes.chunks_exact(width).zip(expected.chunks_exact(width)).enumerate() {
            let (a, b) = (number(element, a), number(element, b));
            let (apart, size) = distance(a, b);
            let tolerance = plan.atol + plan.rtol * size;
            let finite = apart.is_finite();
            let beyond = if finite { apart > tolerance } else { true };
            difference.mismatches += u64::from(beyond);
            if finite {
                let relative = (size > 0.0).then(|| apart / size);
                difference.max_absolute = Some(difference.max_absolute.map_or(apart, |most| most.max(apart)));
                if let Some(relative) = relative {
                    difference.max_relative = Some(difference.max_relative.map_or(relative, |most| most.max(relative)));
                }
            }
            if let (Number::Float(a), Number::Float(b)) = (a, b)
                && a.is_finite()
                && b.is_finite()
            {
                (dot, norm, expected_norm) = (dot + a * b, norm + a * a, expected_norm + b * b);
            }
            let severity = match () {
                () if !finite => f64::INFINITY,
                () if apart == 0.0 => continue,
                () if tolerance == 0.0 => f64::MAX,
                () => apart / tolerance,
            };
            if worst.is_none_or(|(.., most)| severity > most) {
                worst = Some((place, a, b, severity));
            }
        }
        if element.is_float() && difference.elements > 0 {
            difference.cosine = Some(match (norm > 0.0, expected_norm > 0.0) {
                (true, true) => dot / (norm.sqrt() * expected_norm.sqrt()),
                (false, false) => 1.0,
                _ => 0.0,
            })
            .filter(|cosine| cosine.is_finite());
        }
        difference.worst = worst.map(|(place, a, b, severity)| Element {
            index: index(&found.shape, place),
            found: words(element, a),
            expected: words(element, b),
            severity,
        });
        difference
    }
}

/// |a − b| and |b|. What is not finite is at no distance from its like, and at an infinite one from all else.
fn distance(a: Number, b: Number) -> (f64, f64) {
    match (a, b) {
        (Number::Whole(a), Number::Whole(b)) => (a.abs_diff(b) as f64, b.unsigned_abs() as f64),
        (Number::Float(a), Number::Float(b)) => match (a.is_finite(), b.is_finite()) {
            (true, true) => ((a - b).abs(), b.abs()),
            _ if a == b || (a.is_nan() && b.is_nan()) => (0.0, 0.0),
            _ => (f64::INFINITY, 0.0),
        },
        _ => (f64::INFINITY, 0.0),
    }
}

fn number(element: ElementType, bytes: &[u8]) -> Number {
    fn of<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().expect("as many bytes as the type has")
    }
    match element {
        ElementType::Float32 => Number::Float(f64::from(f32::from_le_bytes(of(bytes)))),
        ElementType::Float64 => Number::Float(f64::from_le_bytes(of(bytes))),
        ElementType::Float16 => Number::Float(f16::from_le_bytes(of(bytes)).to_f64()),
        ElementType::BFloat16 => Number::Float(bf16::from_le_bytes(of(bytes)).to_f64()),
        ElementType::Int8 => Number::Whole(i8::from_le_bytes(of(bytes)).into()),
        ElementType::Int16 => Number::Whole(i16::from_le_bytes(of(bytes)).into()),
        ElementType::Int32 => Number::Whole(i32::from_le_bytes(of(bytes)).into()),
        ElementType::Int64 => Number::Whole(i64::from_le_bytes(of(bytes)).into()),
        ElementType::UInt16 => Number::Whole(u16::from_le_bytes(of(bytes)).into()),
        ElementType::UInt32 => Number::Whole(u32::from_le_bytes(of(bytes)).into()),
        ElementType::UInt64 => Number::Whole(u64::from_le_bytes(of(bytes)).into()),
        // A truth value is true whatever bit is set.
        ElementType::Bool => Number::Whole(i128::from(bytes[0] != 0)),
        ElementType::UInt8 | ElementType::String => Number::Whole(bytes[0].into()),
    }
}

fn words(element: ElementType, number: Number) -> String {
    match number {
        Number::Whole(whole) if element == ElementType::Bool => (whole != 0).to_string(),
        Number::Whole(whole) => whole.to_string(),
        Number::Float(value) if value != 0.0 && !(1e-4..1e9).contains(&value.abs()) && value.is_finite() => {
            format!("{value:.6e}")
        }
        Number::Float(value) => significant(value, 7),
    }
}

/// Where an element stands on each axis.
fn index(shape: &[u64], place: usize) -> Vec<u64> {
    let mut index = vec![0; shape.len()];
    let mut rest = place as u64;
    for (slot, size) in index.iter_mut().zip(shape).rev() {
        *slot = rest % size.max(&1);
        rest /= size.max(&1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(shape: &[u64], values: &[f32]) -> Output {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let elements = OutputElements::Bytes(bytes);
        Output { name: "y".to_owned(), element: ElementType::Float32, shape: shape.to_vec(), elements }
    }

    fn plan(element: ElementType, rtol: f64, atol: f64) -> OutputPlan {
        OutputPlan { name: "y".to_owned(), element, shape: None, rtol, atol, expected: None }
    }

    fn compare(found: &[f32], expected: &[f32]) -> Difference {
        let shape = [2, found.len() as u64 / 2];
        Difference::of(&floats(&shape, found), &floats(&shape, expected), &plan(ElementType::Float32, 1e-3, 1e-5))
    }

    #[test]
    fn the_worst_is_furthest_beyond_its_own_tolerance() {
        // 1000.5 differs by more, and is within a thousandth of 1000.
        let difference = compare(&[1.0, 1000.5, 0.25, 3.0], &[1.0, 1000.0, 0.5, 3.0]);
        assert_eq!((difference.elements, difference.mismatches), (4, 1));
        assert_eq!((difference.max_absolute, difference.max_relative), (Some(0.5), Some(0.5)));
        let worst = difference.worst.as_ref().unwrap();
        assert_eq!(worst.to_string(), "[1, 0] is 0.2500000 and should be 0.5000000");
        assert!(difference.cosine.is_some_and(|cosine| cosine > 0.999 && cosine < 1.0));
        let complaint = difference.complaint(&plan(ElementType::Float32, 1e-3, 1e-5));
        assert!(complaint.starts_with("1 of 4 elements of the output `y`") && complaint.contains("y[1, 0] is"));
    }

    #[test]
    fn equal_outputs_have_no_worst_element() {
        let difference = compare(&[0.0, -1.0], &[0.0, -1.0]);
        assert_eq!((difference.mismatches, difference.max_absolute, difference.worst), (0, Some(0.0), None));
        assert_eq!(compare(&[0.0; 2], &[0.0; 2]).cosine, Some(1.0));
        assert_eq!(compare(&[0.0; 2], &[1.0; 2]).cosine, Some(0.0));
    }

    #[test]
    fn what_is_not_finite_agrees_with_its_like_alone() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert!(compare(&[nan, inf, -inf, 1.0], &[nan, inf, -inf, 1.0]).agrees());
        for (found, expected) in [(nan, 1.0), (1.0, nan), (inf, -inf), (inf, f32::MAX), (nan, inf)] {
            let difference = compare(&[found, 2.0], &[expected, 2.0]);
            assert_eq!(difference.mismatches, 1, "{found} {expected}");
            assert_eq!(difference.max_absolute, Some(0.0), "of finite elements");
            assert_eq!(difference.worst.as_ref().unwrap().severity, f64::INFINITY);
        }
        assert!(compare(&[nan, 2.0], &[1.0, 2.0]).worst.unwrap().to_string().contains("NaN"));
    }

    #[test]
    fn whole_numbers_and_texts_are_exact() {
        let whole = |values: &[u64]| Output {
            name: "y".to_owned(),
            element: ElementType::UInt64,
            shape: vec![values.len() as u64],
            elements: OutputElements::Bytes(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        };
        let exact = plan(ElementType::UInt64, 0.0, 0.0);
        // A difference that a double cannot see.
        let difference = Difference::of(&whole(&[u64::MAX, 5]), &whole(&[u64::MAX - 1, 5]), &exact);
        assert_eq!((difference.mismatches, difference.max_absolute, difference.cosine), (1, Some(1.0), None));
        let one = plan(ElementType::UInt64, 0.0, 1.0);
        assert!(Difference::of(&whole(&[7]), &whole(&[8]), &one).agrees(), "a tolerance that was asked for");
        let texts = |texts: &[&str]| Output {
            name: "y".to_owned(),
            element: ElementType::String,
            shape: vec![texts.len() as u64],
            elements: OutputElements::Texts(texts.iter().map(|text| (*text).to_owned()).collect()),
        };
        let difference = Difference::of(&texts(&["a", "b"]), &texts(&["a", "c"]), &plan(ElementType::String, 0.0, 0.0));
        assert_eq!(difference.worst.unwrap().to_string(), "[1] is \"b\" and should be \"c\"");
    }

    #[test]
    fn other_shapes_are_not_compared() {
        let difference = Difference::of(
            &floats(&[2], &[1.0, 2.0]),
            &floats(&[1, 2], &[1.0, 2.0]),
            &plan(ElementType::Float32, 1.0, 1.0),
        );
        assert_eq!(difference.mismatches, 2);
        assert_eq!(difference.apart.as_deref(), Some("it is float32 [2] and should be float32 [1, 2]"));
        let empty = Difference::of(&floats(&[0], &[]), &floats(&[0], &[]), &plan(ElementType::Float32, 0.0, 0.0));
        assert!(empty.agrees() && empty.cosine.is_none());
        assert_eq!(index(&[], 0), [0_u64; 0]);
    }
}
