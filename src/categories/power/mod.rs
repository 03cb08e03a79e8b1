//! Power efficiency: the energy of a token, in prefill and in decode, and the power behind it.

pub mod blocks;
pub(super) mod report;
mod work;

use crate::categories::common::{self, Loaded};
use crate::categories::feeding::Turn;
use crate::categories::{Context, Measure, gpu};
use crate::cell::{Cell, PowerPlan};
use crate::error::{Error, Result};
use crate::probe::power::registry::{self, Choice};
use crate::probe::power::{Monitor, Place};
use crate::units;

use blocks::{Block, Work as _};
use report::{Phase, Report};
use work::{Decode, Parts, Prefill};

/// The category.
pub struct Power;

impl Measure for Power {
    fn measure(&self, context: &Context) -> Result<()> {
        let (cell, report) = (context.cell, context.report);
        let (plan, choices) = prepare(context)?;
        let Loaded { mut model, mut feeding } = common::load(context)?;
        let mut decoder = common::decoder(context, &model)?;
        report.phase("warmup")?;
        common::first_run(context, &mut model, &mut decoder, &feeding.turn(Turn::Unmeasured(0))?.0.prompts()?)?;
        let fresh = work::needs_fresh_prompts(cell);
        let mut turns = 0..;
        for _ in 0..cell.measurement.warmup.max(1) {
            let (model, decoder, feeding, turns) = (&mut model, &mut decoder, &mut feeding, &mut turns);
            let mut decode = Decode::new(Parts { context, model, decoder, feeding, turns, fresh });
            decode.prepare()?;
            decode.run()?;
        }
        report.fact("warmup_runs", u64::from(cell.measurement.warmup.max(1)))?;

        let with_decode = cell.workload.generate_tokens > 1;
        let phases: &[Phase] = if with_decode { &[Phase::PREFILL, Phase::DECODE] } else { &[Phase::PREFILL] };
        measure_blocks(context, &plan, choices, phases, &mut |phase, monitor| {
            let (model, decoder, feeding, turns) = (&mut model, &mut decoder, &mut feeding, &mut turns);
            let parts = Parts { context, model, decoder, feeding, turns, fresh };
            match phase {
                Phase::PREFILL => blocks::measure(monitor, &plan, &mut Prefill::new(parts)),
                _ => blocks::measure(monitor, &plan, &mut Decode::new(parts)),
            }
        })
    }
}

/// What the cell says of power, and the meters that may serve. Asked before the model is loaded: a machine without a
/// meter is to say so at once.
///
/// # Errors
/// No meter, and no wattage for an estimate.
pub fn prepare(context: &Context) -> Result<(PowerPlan, Vec<Choice>)> {
    context.report.phase("meters")?;
    let plan = context.cell.power.as_deref().cloned().unwrap_or_default();
    let choices = registry::choices(&plan, &place(context.cell, &plan))?;
    Ok((plan, choices))
}

/// Measures the plan's number of blocks of each phase in turns, and reports them.
///
/// # Errors
/// Meters that stand still or fail, too little time, a failed run.
pub fn measure_blocks(
    context: &Context,
    plan: &PowerPlan,
    choices: Vec<Choice>,
    phases: &[Phase],
    block: &mut dyn FnMut(Phase, &Monitor) -> Result<Block>,
) -> Result<()> {
    let report = context.report;
    report.phase("meters")?;
    let (monitor, remarks) = start(choices)?;
    for remark in remarks {
        report.warning(remark)?;
    }
    check_time(context.cell, plan, &monitor, phases.len() as u32)?;
    let mut figures = Report::new(context, &monitor);
    figures.meters(plan)?;
    let mut done = 0;
    for number in 0..plan.blocks {
        for phase in phases {
            report.progress("measure", done, u64::from(plan.blocks) * phases.len() as u64)?;
            figures.block(*phase, number, &block(*phase, &monitor)?)?;
            done += 1;
        }
    }
    figures.finish()
}

/// Where the cell's meters are.
fn place(cell: &Cell, plan: &PowerPlan) -> Place {
    Place { rails: plan.rails.clone(), gpu: gpu::number(&cell.backend), ..Place::here() }
}

/// The first choice whose counters move, and what is to be said of it and of those before.
fn start(choices: Vec<Choice>) -> Result<(Monitor, Vec<String>)> {
    let mut standing = Vec::new();
    for Choice { meters, mut remarks } in choices {
        match Monitor::start(meters, &mut remarks) {
            Ok(monitor) => {
                standing.append(&mut remarks);
                return Ok((monitor, standing));
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
