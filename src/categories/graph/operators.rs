//! Which nodes take how long, by ONNX Runtime's own profile: in a process of its own, since profiling costs time.

use std::time::Instant;

use crate::categories::graph::common;
use crate::categories::{Context, Measure};
use crate::engine::{Graph, Inputs, Profile};
use crate::error::{Context as _, Result};

/// The category.
pub struct Operators;

/// Runs that are looked at.
const RUNS: usize = 10;

/// No more are made once this has passed.
const SECONDS: f64 = 10.0;

/// Nodes that are told of; the others are in the totals of their operators.
const NODES: usize = 500;

/// Operators in the row's own summary.
const OPERATORS: usize = 5;

impl Measure for Operators {
    fn measure(&self, context: &Context) -> Result<()> {
        let (plan, report) = (common::plan(context)?, context.report);
        // Beside the results rather than in memory: a profile of many nodes is long. It goes with the folder.
        let folder = tempfile::tempdir().context("cannot make a folder for the profile")?;
        let prefix = folder.path().join("profile");
        let mut graph = common::load_with(context, |file, cell| {
            Graph::load_profiled(context.runtime, file, &cell.backend, cell.threads, plan, &prefix)
        })?;
        report.phase("profile")?;
        graph.bind(Inputs::make(plan)?, plan, false)?;
        common::first_run(context, &mut graph)?;
        // One that is not counted: the first one after the cold run still warms up.
        graph.run()?;
        let (start, mut runs) = (Instant::now(), 0);
        while runs < RUNS && (runs == 0 || start.elapsed().as_secs_f64() < SECONDS) {
            graph.run()?;
            runs += 1;
        }
        let path = graph.end_profile()?;
        let profile = Profile::read(&path, runs)?;
        report.fact("profiled_runs", profile.runs)?;
        let summary = profile.summary(OPERATORS);
        if !summary.is_empty() {
            report.fact("top_operators", summary)?;
        }
        profile.nodes.iter().take(NODES).try_for_each(|node| report.operator(node.clone()))?;
        if let Some(more) = profile.nodes.len().checked_sub(NODES).filter(|more| *more > 0) {
            report.warning(format!("{more} further nodes are not in operators.csv"))?;
        }
        report.fact("warmup_runs", 2_u64)?;
        common::identify(context, &graph)
    }
}
