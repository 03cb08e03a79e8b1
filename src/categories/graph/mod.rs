//! What is measured of any ONNX graph: the same categories with a run of the graph where a language model has a request.

mod accuracy;
mod common;
mod memory;
mod operators;
mod power;
mod speed;
mod throughput;
mod timing;

use super::Measure;
use crate::cell::Category;

/// The category behind a name, of a graph.
pub fn of(category: Category) -> &'static dyn Measure {
    match category {
        Category::Speed => &speed::Speed,
        Category::Throughput => &throughput::Throughput,
        Category::Memory => &memory::Memory,
        Category::Accuracy => &accuracy::Accuracy,
        Category::Power => &power::Power,
        Category::Operators => &operators::Operators,
        Category::OptimizationImpact => &super::NotOfThisKind("packages"),
    }
}
