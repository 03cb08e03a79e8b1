//! What every category of a graph does first and last.

use std::path::Path;
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::categories::Context;
use crate::cell::{Cell, GraphPlan};
use crate::digest;
use crate::engine::{Graph, Inputs};
use crate::error::{Context as _, Error, Result};
use crate::package::onnx::Signature;
use crate::probe::clock;

/// The cell's plan for its graph.
pub fn plan<'a>(context: &Context<'a>) -> Result<&'a GraphPlan> {
    context.cell.graph.as_deref().ok_or_else(|| Error::new("the cell has no plan for a graph; this is a bug"))
}

/// Loads the graph and reports load time and placement; nothing is bound yet.
pub fn load(context: &Context) -> Result<Graph> {
    let plan = plan(context)?;
    load_with(context, |file, cell| Graph::load(context.runtime, file, &cell.backend, cell.threads, plan))
}

/// The same in a way of one's own.
pub fn load_with(context: &Context, load: impl FnOnce(&Path, &Cell) -> Result<Graph>) -> Result<Graph> {
    let (cell, report) = (context.cell, context.report);
    report.phase("load")?;
    let start = Instant::now();
    let graph = load(&cell.model.package, cell)?;
    report.samples("load_seconds", context.process, vec![start.elapsed().as_secs_f64()])?;
    let (placement, provider) = (graph.placement(), graph.provider());
    report.fact("provider_nodes", placement.on(provider))?;
    report.fact("fallback_nodes", placement.elsewhere(provider))?;
    report.fact("node_placement", placement.describe(provider))?;
    report.fact("clock_resolution_seconds", clock::resolution_seconds())?;
    if cell.strict_placement && placement.elsewhere(provider) > 0 {
        let message = format!("{provider} does not run every node: {}", placement.describe(provider));
        return Err(Error::unsupported(message).hint("allow it with `strict_placement: false`"));
    }
    Ok(graph)
}

/// The graph, its inputs made and bound, and its cold first run behind it.
pub fn load_and_run(context: &Context, to_be_read: bool) -> Result<Graph> {
    let plan = plan(context)?;
    let mut graph = load(context)?;
    context.report.phase("inputs")?;
    let inputs = Inputs::make(plan)?;
    graph.bind(inputs, plan, to_be_read)?;
    context.report.phase("warmup")?;
    first_run(context, &mut graph)?;
    Ok(graph)
}

/// The cold first run.
pub fn first_run(context: &Context, graph: &mut Graph) -> Result<()> {
    let start = Instant::now();
    graph.first_run(plan(context)?)?;
    context.report.samples("first_run_seconds", context.process, vec![start.elapsed().as_secs_f64()])
}

/// Says which file was run on what. The last step: hashing reads the whole file, and the page cache is as it was found
/// until then.
pub fn identify(context: &Context, graph: &Graph) -> Result<()> {
    let (report, file) = (context.report, &context.cell.model.package);
    let signature = Signature::read(file)?;
    let mut hasher = Sha256::new();
    for path in signature.files(file) {
        let hash = digest::sha256_file(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        hasher.update(hash);
    }
    report.fact("package_hash", digest::hex(&hasher.finalize()))?;
    report.fact("package_bytes", signature.bytes(file))?;
    report.fact("parameters_total", signature.parameters)?;
    report.fact("graph_nodes", signature.nodes)?;
    report.fact("inputs_hash", graph.inputs_hash())
}
