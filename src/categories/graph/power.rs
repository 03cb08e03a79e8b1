//! Energy: blocks of runs, one after the other.

use crate::categories::graph::common;
use crate::categories::power::blocks;
use crate::categories::power::report::Phase;
use crate::categories::{Context, Measure, power};
use crate::error::Result;

/// The category.
pub struct Power;

impl Measure for Power {
    fn measure(&self, context: &Context) -> Result<()> {
        let (plan, choices) = power::prepare(context)?;
        let mut graph = common::load_and_run(context, false)?;
        let warmup = context.cell.measurement.warmup.max(1);
        for _ in 0..warmup {
            graph.run()?;
        }
        context.report.fact("warmup_runs", u64::from(warmup))?;
        power::measure_blocks(context, &plan, choices, &[Phase::GRAPH], &mut |_, monitor| {
            blocks::measure(monitor, &plan, &mut || graph.run().map(|()| 1))
        })?;
        common::identify(context, &graph)
    }
}
