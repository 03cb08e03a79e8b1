//! What this machine can do at most: the denominators of utilisation.

use crate::cell::Precision;
use crate::error::{Error, Result};
use crate::probe;
use crate::protocol::Reporter;
use crate::runtime::{Runtime, products};
use crate::stats::Summary;

/// Products timed at each precision; the median counts.
const REPETITIONS: u32 = 7;

/// Measures memory bandwidth and the rate of matrix products at each precision, with that many threads.
///
/// # Errors
/// A library without a kernel for one of the precisions.
pub fn ceilings(runtime: &Runtime, threads: u32, report: &Reporter) -> Result<()> {
    report.phase("memory bandwidth")?;
    let bandwidth = probe::ceilings::memory_bandwidth(threads as usize);
    report.fact("ceiling_memory_bandwidth_bytes_per_second", median(&bandwidth)?)?;
    for &precision in Precision::ALL {
        report.phase(&format!("{precision} products"))?;
        let seconds = products::time_products(runtime, precision, threads, REPETITIONS)?;
        let name = format!("ceiling_{precision}_flops_per_second");
        report.fact(&name, products::FLOPS / median(&seconds)?)?;
    }
    Ok(())
}

fn median(samples: &[f64]) -> Result<f64> {
    Ok(Summary::of(samples).ok_or_else(|| Error::invalid("a ceiling was not measured"))?.median)
}
