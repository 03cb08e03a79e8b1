//! Accuracy of a graph: its outputs against a reference cell's, or against those that the matrix names.

mod difference;
mod stored;

use std::path::Path;

use crate::categories::graph::common;
use crate::categories::{Context, Measure};
use crate::cell::{CellId, ElementType, Fill, OutputPlan};
use crate::error::{Error, Result};
use crate::package::npy::{self, Elements};
use crate::runtime::{Output, OutputElements};
use difference::Difference;
use stored::Stored;

/// The category.
pub struct Accuracy;

/// Outputs of which the row tells the figures one by one; the others are in its maxima.
const TOLD: usize = 8;

impl Measure for Accuracy {
    fn measure(&self, context: &Context) -> Result<()> {
        let plan = common::plan(context)?;
        let reference = context.cell.accuracy.as_ref().and_then(|plan| plan.reference.as_ref());
        let mut graph = common::load_and_run(context, true)?;
        // The first run may have been one of tuning; what is compared is an ordinary one.
        graph.run()?;
        context.report.phase("compare")?;
        let outputs = graph.outputs()?;
        let theirs = match (reference, context.reference) {
            (Some(reference), Some(folder)) if *reference != context.cell.id => {
                Some(answers(reference, folder, graph.inputs_hash())?)
            }
            _ => None,
        };
        let mut compared = Vec::new();
        for (output, plan) in outputs.iter().zip(&plan.outputs) {
            let expected = match (&plan.expected, &theirs) {
                (Some(file), _) => Some(read(file, plan)?),
                (None, Some(theirs)) => theirs.output(&plan.name)?,
                (None, None) => None,
            };
            compared.extend(expected.map(|expected| (plan, Difference::of(output, &expected, plan))));
        }
        if theirs.is_some() && compared.is_empty() {
            return Err(Error::unsupported("the reference has no output of the same name")
                .hint("name a reference whose graph has the same outputs"));
        }
        report(context, reference, &compared)?;
        common::identify(context, &graph)?;
        match (reference, context.reference) {
            // Last: the file says that all of it is there.
            (Some(reference), Some(folder)) if *reference == context.cell.id => {
                Stored::write(folder, reference, graph.inputs_hash(), &outputs)
            }
            _ => Ok(()),
        }
    }
}

fn answers(reference: &CellId, folder: &Path, inputs_hash: &str) -> Result<Stored> {
    let stored = Stored::read(folder)?
        .ok_or_else(|| Error::unsupported(format!("the reference `{reference}` has no outputs to compare with")))?;
    if stored.inputs_hash() == inputs_hash {
        return Ok(stored);
    }
    Err(Error::unsupported(format!("the reference `{reference}` was fed other inputs"))
        .hint("give both models the same `inputs`; a file that changed during the run needs a new one"))
}

/// An expected output from a file.
fn read(file: &Fill, plan: &OutputPlan) -> Result<Output> {
    let Fill::File { path, array } = file else {
        return Err(Error::new(format!("the output `{}` is expected to be no array of a file", plan.name)));
    };
    let array = npy::read(path, array.as_deref())?;
    let count = array.shape.iter().copied().fold(1, u64::saturating_mul);
    let elements = match array.elements {
        Elements::Texts(texts) => OutputElements::Texts(texts),
        Elements::Bytes(bytes) => OutputElements::Bytes(bytes),
    };
    let fits = match &elements {
        OutputElements::Texts(texts) => plan.element == ElementType::String && texts.len() as u64 == count,
        OutputElements::Bytes(bytes) => bytes.len() as u64 == count.saturating_mul(plan.element.size() as u64),
    };
    if !fits {
        return Err(Error::new(format!("`{}` does not hold {} any more", path.display(), plan.element))
            .hint("the file was changed after the run began; start a new run"));
    }
    Ok(Output { name: plan.name.clone(), element: plan.element, shape: array.shape, elements })
}

/// The row's figures: the worst of all outputs, and where it is.
fn report(context: &Context, reference: Option<&CellId>, compared: &[(&OutputPlan, Difference)]) -> Result<()> {
    let report = context.report;
    if let Some(reference) = reference {
        report.fact("reference_cell", reference.0.as_str())?;
    }
    if compared.is_empty() {
        return Ok(());
    }
    let sum = |count: fn(&Difference) -> u64| compared.iter().map(|(_, difference)| count(difference)).sum::<u64>();
    report.fact("outputs_compared", compared.len() as u64)?;
    report.fact("output_elements", sum(|difference| difference.elements))?;
    report.fact("output_mismatches", sum(|difference| difference.mismatches))?;
    let largest = |figure: fn(&Difference) -> Option<f64>| {
        compared.iter().filter_map(|(_, difference)| figure(difference)).max_by(f64::total_cmp)
    };
    if let Some(value) = largest(|difference| difference.max_absolute) {
        report.fact("output_max_absolute_difference", value)?;
    }
    if let Some(value) = largest(|difference| difference.max_relative) {
        report.fact("output_max_relative_difference", value)?;
    }
    if let Some(value) = largest(|difference| difference.cosine.map(|cosine| -cosine)) {
        report.fact("output_min_cosine", -value)?;
    }
    let worst = compared.iter().max_by(|(_, a), (_, b)| a.severity().total_cmp(&b.severity()));
    if let Some((plan, difference)) = worst
        && let Some(element) = &difference.worst
    {
        report.fact("worst_output", plan.name.as_str())?;
        report.fact("worst_element", element.to_string())?;
    }
    let words = compared.iter().take(TOLD).map(|(plan, difference)| format!("{}: {difference}", plan.name));
    let more = compared.len().checked_sub(TOLD).filter(|more| *more > 0).map(|more| format!("and {more} more"));
    report.fact("output_differences", words.chain(more).collect::<Vec<_>>().join("; "))?;
    let fails = compared
        .iter()
        .filter(|(_, difference)| !difference.agrees())
        .max_by(|(_, a), (_, b)| a.severity().total_cmp(&b.severity()));
    report.fact("accuracy_gate", if fails.is_some() { "fail" } else { "pass" })?;
    match fails {
        Some((plan, difference)) => report.fact("accuracy_gate_detail", difference.complaint(plan)),
        None => Ok(()),
    }
}
