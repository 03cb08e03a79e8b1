//! What every category does first: open the package, load the model, and say what was loaded.

use std::time::Instant;

use crate::categories::feeding::Feeding;
use crate::categories::{Context, disk};
use crate::cell::MeasurementPlan;
use crate::engine::sampling::argmax;
use crate::engine::{Decoder, Model, Plan, Prompt, Prompter};
use crate::error::{Error, Result};
use crate::package::Package;
use crate::probe::clock;

/// A loaded model and what it is fed.
pub struct Loaded {
    pub model: Model,
    pub feeding: Feeding,
}

/// Opens the package and checks that it is what the cell names.
pub fn open_package(context: &Context) -> Result<Package> {
    let cell = context.cell;
    let package = Package::open(context.package)?;
    package.expect(cell.precision, context.setup.flavour)?;
    let manifest = &package.manifest;
    let report = context.report;
    report.fact("package_hash", package.hash.as_str())?;
    report.fact("package_weights", manifest.model.weights.name())?;
    report.fact("parameters_total", manifest.parameters.total)?;
    report.fact("parameters_active_per_token", manifest.parameters.active_per_token)?;
    report.fact("package_bytes", package.bytes())?;
    report.fact("weights_bytes_per_step", manifest.bytes_read_per_token.weights)?;
    report.fact("cache_bytes_per_token", manifest.cache.bytes_per_token)?;
    Ok(package)
}

/// Loads the model and reports load time and placement.
pub fn load_model(context: &Context, package: &Package, plan: &Plan) -> Result<Model> {
    let (cell, report) = (context.cell, context.report);
    report.phase("load")?;
    let start = Instant::now();
    let model = Model::load(context.runtime, package, &context.setup.backend, plan)?;
    report.samples("load_seconds", context.process, vec![start.elapsed().as_secs_f64()])?;
    let (placement, provider) = (model.placement(), model.provider());
    report.fact("provider_nodes", placement.on(provider))?;
    report.fact("fallback_nodes", placement.elsewhere(provider))?;
    report.fact("node_placement", placement.describe(provider))?;
    if let Some(engines) = model.engines() {
        report.fact("engine_cache", engines.origin)?;
        engines.build_seconds.map_or(Ok(()), |seconds| report.fact("engine_build_seconds", seconds))?;
    }
    report.fact("cache_mode", model.cache_mode().name())?;
    report.fact("cache_computed_bytes", model.cache_bytes(cell.workload.batch as usize, capacity(context)))?;
    report.fact("clock_resolution_seconds", clock::resolution_seconds())?;
    if cell.strict_placement && placement.elsewhere(provider) > 0 {
        let message = format!("{provider} does not run every node: {}", placement.describe(provider));
        return Err(Error::unsupported(message).hint("allow it with `strict_placement: false`"));
    }
    Ok(model)
}

/// Package, model, and what it is fed; the first turn is the unmeasured one.
pub fn load(context: &Context) -> Result<Loaded> {
    let package = open_package(context)?;
    let model = load_model(context, &package, &context.plan())?;
    disk::report_loader(&model, context.report)?;
    let feeding = Feeding::of(package, &context.cell.workload)?;
    feeding.report(context.report)?;
    Ok(Loaded { model, feeding })
}

/// Tokens that the cache must hold: the prompt and every generated token that is fed back.
pub fn capacity(context: &Context) -> usize {
    (context.cell.workload.prompt_tokens + context.cell.workload.generate_tokens) as usize
}

/// A decoder of the cell's size, its cache already in memory.
pub fn decoder(context: &Context, model: &Model) -> Result<Decoder> {
    let mut decoder = Decoder::new(model, context.cell.workload.batch as usize, capacity(context))?;
    decoder.touch_cache();
    Ok(decoder)
}

/// The cold first run of the process over whole prompts, their images included.
pub fn first_run(context: &Context, model: &mut Model, decoder: &mut Decoder, prompts: &[Prompt]) -> Result<()> {
    let start = Instant::now();
    let features = model.see(prompts)?;
    decoder.prefill(model, prompts, &features)?;
    context.report.samples("first_run_seconds", context.process, vec![start.elapsed().as_secs_f64()])
}

/// The cold first run over the workload's prompts, in a decoder of their own.
pub fn first_prefill(context: &Context, package: &Package, model: &mut Model) -> Result<()> {
    let prompter = Prompter::open(package, &context.cell.workload)?;
    let mut decoder = Decoder::new(model, context.cell.workload.batch as usize, capacity(context))?;
    first_run(context, model, &mut decoder, &prompter.prompts()?)
}

/// The most likely token of every row; logits that are not finite end the cell.
pub fn choose(decoder: &Decoder) -> Result<Vec<u32>> {
    decoder.logits().rows().into_iter().map(argmax).collect()
}

/// Goes on until both the repetitions and the measured seconds of the plan are reached.
pub struct Repetitions<'a> {
    plan: &'a MeasurementPlan,
    done: u32,
    measured_seconds: f64,
}

impl<'a> Repetitions<'a> {
    pub fn new(plan: &'a MeasurementPlan) -> Self {
        Self { plan, done: 0, measured_seconds: 0.0 }
    }

    /// The next repetition's number, or `None` when there is enough.
    pub fn next(&mut self) -> Option<u32> {
        let enough = self.done >= self.plan.repetitions && self.measured_seconds >= self.plan.min_seconds;
        (!enough).then_some(self.done)
    }

    /// Counts a finished repetition.
    pub fn add(&mut self, seconds: f64) {
        self.done += 1;
        self.measured_seconds += seconds;
    }

    /// How far along, for progress: repetitions done and expected.
    pub fn progress(&self) -> (u64, u64) {
        let mean = self.measured_seconds / f64::from(self.done.max(1));
        let by_time = if mean > 0.0 { (self.plan.min_seconds / mean).ceil() as u64 } else { 0 };
        (u64::from(self.done), by_time.max(u64::from(self.plan.repetitions)))
    }
}

/// Refuses timings that the clock cannot resolve: below a hundred of its steps the step itself is in the figure.
pub fn check_resolution(context: &Context, smallest: f64) -> Result<()> {
    let resolution = clock::resolution_seconds();
    context.report.fact("smallest_timing_seconds", smallest)?;
    if smallest < 100.0 * resolution {
        return Err(Error::invalid(format!(
            "a timing of {} is below 100 steps of the clock ({})",
            crate::units::seconds(smallest),
            crate::units::seconds(resolution)
        ))
        .hint("give the cell more work: a longer prompt, a larger batch"));
    }
    Ok(())
}
