//! Power efficiency: the energy of a token, in prefill and in decode, and the power behind it.

pub mod blocks;
pub mod report;
mod work;

use crate::categories::common::{self, Loaded};
use crate::categories::feeding::Turn;
use crate::categories::{Context, Measure};
use crate::cell::{Cell, PowerPlan, ProviderKind};
use crate::error::{Error, Result};
use crate::probe::power::registry::{self, Choice};
use crate::probe::power::{Monitor, Place};
use crate::units;

use blocks::Work as _;
use report::{Report, Units};
use work::{Decode, Prefill};

/// The category.
pub struct Power;

impl Measure for Power {
    fn measure(&self, context: &Context) -> Result<()> {
        let (cell, report) = (context.cell, context.report);
        let plan = cell.power.as_deref().cloned().unwrap_or_default();
        report.phase("meters")?;
        // Before the model is loaded: a machine without a meter is to say so at once.
        let choices = meters(cell, &plan)?;
        let Loaded { mut model, mut feeding } = common::load(context)?;
        let mut decoder = common::decoder(context, &model)?;
        report.phase("warmup")?;
        common::first_run(context, &mut model, &mut decoder, &feeding.turn(Turn::Unmeasured(0))?.0.prompts()?)?;
        let fresh = work::needs_fresh_prompts(cell);
        let mut turns = 0..;
        for _ in 0..cell.measurement.warmup.max(1) {
            let mut decode = Decode::new(context, &mut model, &mut decoder, &mut feeding, &mut turns, fresh);
            decode.prepare()?;
            decode.run()?;
        }
        report.fact("warmup_runs", u64::from(cell.measurement.warmup.max(1)))?;

        report.phase("meters")?;
        let with_decode = cell.workload.generate_tokens > 1;
        let phases = if with_decode { 2 } else { 1 };
        let monitor = start(context, choices, &plan, phases)?;
        let mut figures = Report::new(context, &monitor, TOKENS);
        figures.meters(&plan)?;
        for number in 0..plan.blocks {
            let progress = |done: u32| {
                report.progress("measure", u64::from(number * phases + done), u64::from(plan.blocks * phases))
            };
            progress(0)?;
            let mut prefill = Prefill::new(context, &mut model, &mut decoder, &mut feeding, &mut turns, fresh);
            figures.block("prefill", number, &blocks::measure(&monitor, &plan, &mut prefill)?)?;
            if with_decode {
                progress(1)?;
                let mut decode = Decode::new(context, &mut model, &mut decoder, &mut feeding, &mut turns, fresh);
                figures.block("decode", number, &blocks::measure(&monitor, &plan, &mut decode)?)?;
            }
        }
        figures.finish()
    }
}

/// What a language model's blocks are counted in.
const TOKENS: Units = Units { one: "token", many: "tokens" };

/// The meters that may serve a cell, the best first.
///
/// # Errors
/// Unsupported, where there are none.
pub fn meters(cell: &Cell, plan: &PowerPlan) -> Result<Vec<Choice>> {
    registry::choices(plan, &place(cell, plan))
}

/// Where the cell's meters are.
fn place(cell: &Cell, plan: &PowerPlan) -> Place {
    let gpu = matches!(cell.backend.provider, ProviderKind::Cuda | ProviderKind::TensorRt).then(|| {
        let device = cell.backend.options.get("device_id");
        device.and_then(|device| device.parse().ok()).unwrap_or(0)
    });
    Place { rails: plan.rails.clone(), gpu, ..Place::here() }
}

/// Takes the first choice whose counters move into use, and says what is to be said of it and of those before. `phases`
/// is the number of kinds of blocks that are to be measured.
///
/// # Errors
/// Unsupported where no counter moves; invalid where the meter is too slow for the plan or for the cell's timeout.
pub fn start(context: &Context, choices: Vec<Choice>, plan: &PowerPlan, phases: u32) -> Result<Monitor> {
    let mut standing = Vec::new();
    for Choice { meters, mut remarks } in choices {
        match Monitor::start(meters, &mut remarks) {
            Ok(monitor) => {
                for remark in standing.into_iter().chain(remarks) {
                    context.report.warning(remark)?;
                }
                check_time(context.cell, plan, &monitor, phases)?;
                return Ok(monitor);
            }
            Err(why) => standing.push(format!("a meter does not serve: {}", why.reason)),
        }
    }
    Err(Error::unsupported(standing.join("; ")).hint(
        "counters that stand still are a virtual machine's that gets none: measure on the machine itself, or state a \
         wattage for figures that are marked as estimates: `power: {estimate_watts_per_cpu: 15}`",
    ))
}

/// A cell that cannot end in time need not begin.
fn check_time(cell: &Cell, plan: &PowerPlan, monitor: &Monitor, phases: u32) -> Result<()> {
    let (block, idle) = blocks::durations(plan, monitor.calibration().update_seconds)?;
    let idle = if monitor.is_estimate() { 0.0 } else { idle };
    let needed = f64::from(plan.blocks) * f64::from(phases) * (block + idle);
    let timeout = cell.measurement.timeout_seconds;
    if needed <= timeout {
        return Ok(());
    }
    let message = format!(
        "{} blocks with this meter take {}, and the cell's timeout is {}",
        plan.blocks,
        units::seconds(needed),
        units::seconds(timeout)
    );
    Err(Error::invalid(message).hint("raise `timeout_seconds`, or ask for fewer `blocks` or less `idle_seconds`"))
}
