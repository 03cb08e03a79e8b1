//! Memory usage of a graph: one value a process, so the orchestrator repeats the process.

use std::time::Instant;

use crate::categories::graph::common;
use crate::categories::resident::Observing;
use crate::categories::{Context, Measure};
use crate::engine::Inputs;
use crate::error::Result;
use crate::probe::memory::Resident;

/// The category.
pub struct Memory;

/// Seconds of runs under the sampling thread: some twenty readings.
const STEADY_SECONDS: f64 = 0.2;

impl Measure for Memory {
    fn measure(&self, context: &Context) -> Result<()> {
        let (plan, report) = (common::plan(context)?, context.report);
        // Inputs are the caller's: they belong to the baseline, not to the graph.
        let inputs = Inputs::make(plan)?;
        let observing = Observing::start(context)?;
        let mut graph = common::load(context)?;
        let loaded = Resident::now()?;

        report.phase("first run")?;
        observing.enter("first run");
        graph.bind(inputs, plan, false)?;
        common::first_run(context, &mut graph)?;

        report.phase("steady")?;
        observing.enter("steady");
        let steady = Instant::now();
        while steady.elapsed().as_secs_f64() < STEADY_SECONDS {
            graph.run()?;
        }
        let seen = observing.finish(context)?;

        seen.report_peaks(&loaded)?;
        seen.peak_of("first_run_peak_anonymous_bytes", Some("first run"), |r| r.anonymous)?;
        seen.median_of("steady_anonymous_bytes", "steady", |r| r.anonymous)?;
        seen.median_of("steady_file_backed_bytes", "steady", |r| r.file_backed)?;
        seen.report_proportional("steady_pss_bytes")?;
        seen.report_counters()?;
        common::identify(context, &graph)
    }
}
