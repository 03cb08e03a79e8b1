//! Latency: one run after the other, as one caller sees them.

use crate::categories::graph::{common, timing};
use crate::categories::{Context, Measure};
use crate::error::Result;

/// The category.
pub struct Speed;

impl Measure for Speed {
    fn measure(&self, context: &Context) -> Result<()> {
        let mut graph = common::load_and_run(context, false)?;
        timing::measure(context, &mut || graph.run(), &mut |block, latencies| {
            context.report.samples("latency_seconds", block, latencies)
        })?;
        common::identify(context, &graph)
    }
}
