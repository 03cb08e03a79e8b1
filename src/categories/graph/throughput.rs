//! Throughput: how many runs, and items, the provider gets through in a closed loop.

use crate::categories::graph::{common, timing};
use crate::categories::{Context, Measure};
use crate::error::Result;

/// The category.
pub struct Throughput;

impl Measure for Throughput {
    fn measure(&self, context: &Context) -> Result<()> {
        let mut graph = common::load_and_run(context, false)?;
        let (report, items) = (context.report, common::plan(context)?.items);
        timing::measure(context, &mut || graph.run(), &mut |block, latencies| {
            let rate = latencies.len() as f64 / latencies.iter().sum::<f64>();
            report.samples("runs_per_second", block, vec![rate])?;
            match items {
                Some(items) => report.samples("items_per_second", block, vec![rate * items as f64]),
                None => Ok(()),
            }
        })?;
        common::identify(context, &graph)
    }
}
