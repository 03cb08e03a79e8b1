//! What an arm runs: a model in this process, or one whose stages are in several.

use crate::categories::{Context, common, disk};
use crate::engine::serving::{Feed, Look, Served, Server};
use crate::engine::stages::Pipeline;
use crate::engine::{Model, Prompt};
use crate::error::Result;
use crate::loader::pager::Statistics;
use crate::package::Package;
use crate::probe::clock;
use crate::probe::memory::Resident;

/// A loaded arm.
pub enum Running {
    /// In this process.
    Alone {
        /// The queue's server.
        server: Server,
        /// The model.
        model: Box<Model>,
    },
    /// In this process and others.
    Stages(Box<Pipeline>),
}

impl Running {
    /// Loads what the context's plan says.
    ///
    /// # Errors
    /// As [`common::load_model`] and [`Pipeline::load`].
    pub fn load(context: &Context, package: &Package) -> Result<Self> {
        let plan = context.plan();
        if plan.stages.is_none() {
            let model = common::load_model(context, package, &plan)?;
            disk::report_loader(&model, context.report)?;
            return Ok(Self::Alone { server: Server::new(&plan.waves), model: Box::new(model) });
        }
        context.report.phase("load")?;
        let start = std::time::Instant::now();
        let pipeline = Pipeline::load(context.runtime, package, &context.setup.backend, &plan)?;
        context.report.samples("load_seconds", context.process, vec![start.elapsed().as_secs_f64()])?;
        context.report.fact("clock_resolution_seconds", clock::resolution_seconds())?;
        Ok(Self::Stages(Box::new(pipeline)))
    }

    /// Serves a queue.
    ///
    /// # Errors
    /// As [`Server::serve`].
    pub fn serve(&mut self, prompts: &[Prompt], generate: usize, feed: &mut Feed) -> Result<Served> {
        match self {
            Self::Alone { server, model } => server.serve(model, prompts, generate, feed),
            Self::Stages(pipeline) => pipeline.serve(prompts, generate, feed),
        }
    }

    /// The same way with what is fed given.
    ///
    /// # Errors
    /// As [`Server::forced`].
    pub fn forced(&mut self, prompts: &[Prompt], forced: &[Vec<u32>], look: &mut Look) -> Result<()> {
        match self {
            Self::Alone { server, model } => server.forced(model, prompts, forced, look).map(|_| ()),
            Self::Stages(pipeline) => pipeline.forced(prompts, forced, look),
        }
    }

    /// What the loader of this process did.
    pub fn pager_statistics(&self) -> Option<Statistics> {
        match self {
            Self::Alone { model, .. } => model.pager_statistics(),
            Self::Stages(_) => None,
        }
    }

    /// Whether what waits on disk is encoded.
    pub fn encodes_what_waits(&self) -> bool {
        match self {
            Self::Alone { model, .. } => model.encodes_what_waits(),
            Self::Stages(_) => false,
        }
    }

    /// Memory of the arm's other processes: the sum of their peaks, and of what they hold now without a file behind it.
    /// One that is gone counts nothing.
    pub fn elsewhere(&self) -> (u64, u64) {
        let Self::Stages(pipeline) = self else { return (0, 0) };
        let of_processes = pipeline.processes().into_iter().filter_map(|process| Resident::of(process).ok());
        of_processes.fold((0, 0), |(peak, anonymous), other| (peak + other.peak, anonymous + other.anonymous))
    }
}
