//! The process that has the requests: stage 0, and the schedule.
//!
//! A batch is cut into groups that are under way at once: while a later stage has one of them, this one has another.
//! Prompts of all groups go first, then each group's next step as soon as its token is there, in the order in which
//! tokens come (`pipeline/serving.rs`).

use std::collections::VecDeque;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

use super::balance::{Cut, balance};
use super::job::{Job, Limits, StagePlan, Stages, Via};
use super::link::{Link, LinkUse};
use super::meeting;
use super::processes::{Connected, Event, Processes};
use super::stage::{Stage, Times};
use super::wire::{Answer, Control, VERSION};
use crate::cell::Backend;
use crate::engine::model::Model;
use crate::engine::plan::Plan;
use crate::error::{Context, Error, Result};
use crate::loader::held;
use crate::package::Package;
use crate::package::shards::ShardIndex;
use crate::runtime::Runtime;
use crate::runtime::providers::{self, Computes};

mod serving;

/// What one stage is, once it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StageFacts {
    /// Seconds that loading took.
    pub load_seconds: f64,
    /// Bytes that its process holds then.
    pub resident_bytes: u64,
}

/// A model in stages.
#[derive(Debug)]
pub struct Pipeline {
    // In this order: a link ends before the processes that it leads to.
    link: Option<Link>,
    processes: Option<Processes>,
    /// That of this process.
    stage: Option<Stage>,
    /// By how much the places of stages are behind their numbers: 1 where this process has none.
    apart: u32,
    /// Answers of a pipeline of one stage.
    own: VecDeque<Answer>,
    stages: Stages,
    cut: Cut,
    facts: Vec<StageFacts>,
    vocab: usize,
    context: usize,
    /// Sequences of each group.
    sizes: Vec<usize>,
    logits: Vec<f32>,
    broken: bool,
}

impl Pipeline {
    /// Starts the stages of the plan, this process being the first, and loads each of them its segments.
    ///
    /// # Errors
    /// A package that is no pack or a plan that a pipeline cannot follow (`unsupported`); what keeps a stage from
    /// loading.
    pub fn load(runtime: &Runtime, package: &Package, backend: &Backend, plan: &Plan) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        Self::load_with(runtime, package, backend, plan, &program)
    }

    /// The same with the program that other stages' processes run.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_with(
        runtime: &Runtime,
        package: &Package,
        backend: &Backend,
        plan: &Plan,
        program: &Path,
    ) -> Result<Self> {
        Self::start(runtime, package, backend, plan, program, true)
    }

    /// The same with all of the stages in other processes: this one only has the requests.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_apart(
        runtime: &Runtime,
        package: &Package,
        backend: &Backend,
        plan: &Plan,
        program: &Path,
    ) -> Result<Self> {
        Self::start(runtime, package, backend, plan, program, false)
    }

    fn start(
        runtime: &Runtime,
        package: &Package,
        backend: &Backend,
        plan: &Plan,
        program: &Path,
        here: bool,
    ) -> Result<Self> {
        let stages = plan.stages.clone().ok_or_else(|| Error::new("a plan without stages; this is a bug"))?;
        let index = check(package, backend, &stages)?;
        let routed = package.manifest.shape.experts_per_token.unwrap_or(1);
        let cut = cut(&index, &stages, routed)?;
        let own = StagePlan::of(plan, &stages)?;
        let limits = Limits {
            // In a namespace the kernel limits the bandwidth.
            bandwidth: stages.bandwidth.filter(|_| stages.via == Via::Shaper),
            latency: stages.latency,
        };
        let secret = meeting::secret();
        let nowhere = std::net::Ipv4Addr::LOCALHOST;
        // The place of whoever has the requests is 0.
        let apart = u32::from(!here);
        let jobs = cut.iter().zip(apart..).skip(usize::from(here)).map(|(segments, stage)| Job {
            version: VERSION,
            library: runtime.library().to_owned(),
            package: package.root.clone(),
            backend: backend.clone(),
            plan: own.clone(),
            stage,
            count: stages.count + apart,
            segments: segments.clone(),
            // Known once everybody listens.
            head: (nowhere, 0).into(),
            listen: nowhere.into(),
            secret: secret.clone(),
            limits,
        });
        let jobs: Vec<Job> = jobs.collect();
        let (mut link, mut processes) = (None, None);
        if !jobs.is_empty() {
            let Connected { processes: started, next } = Processes::start(program, &stages, jobs)?;
            let sender = started.sender();
            let broken = move |error| drop(sender.send(Event::Ended(1, Some(error))));
            link = Some(Link::open(next, limits, broken)?);
            processes = Some(started);
        }
        let mut facts = vec![StageFacts::default(); stages.count as usize];
        let mut stage = None;
        if here {
            let loading = Instant::now();
            stage = Some(Stage::load(runtime, package, backend, &own.plan(), &cut[0])?);
            let load_seconds = loading.elapsed().as_secs_f64();
            facts[0] = StageFacts { load_seconds, resident_bytes: held::resident_bytes()? };
        }
        let mut pipeline = Self {
            link,
            processes,
            stage,
            own: VecDeque::new(),
            facts,
            apart,
            context: package.manifest.shape.context_length as usize,
            stages,
            cut,
            vocab: package.manifest.shape.vocab_size as usize,
            sizes: Vec::new(),
            logits: Vec::new(),
            broken: false,
        };
        pipeline.wait_until_loaded()?;
        Ok(pipeline)
    }

    fn wait_until_loaded(&mut self) -> Result<()> {
        let Some(processes) = &mut self.processes else { return Ok(()) };
        for _ in 0..processes.ids().len() {
            match processes.wait()? {
                Event::Said(place, Control::Loaded { seconds, resident_bytes }) => {
                    if let Some(facts) = self.facts.get_mut((place - self.apart) as usize) {
                        *facts = StageFacts { load_seconds: seconds, resident_bytes };
                    }
                }
                _ => return Err(Error::environment("a stage says something else than that it is loaded")),
            }
        }
        Ok(())
    }

    /// What runs took in each stage, and what each sent, since this was last asked (what was sent: since the start).
    ///
    /// # Errors
    /// A stage that has gone.
    pub fn times(&mut self) -> Result<Vec<(Times, LinkUse)>> {
        let sent = self.link.as_ref().map(|link| *link.used().lock().unwrap_or_else(PoisonError::into_inner));
        let mut all = vec![(Vec::new(), LinkUse::default()); self.stages.count as usize];
        if let Some(stage) = &mut self.stage {
            all[0] = (stage.take_times(), sent.unwrap_or_default());
        }
        let asked = match &mut self.processes {
            None => Ok(()),
            Some(processes) => ask(processes, &mut all, self.apart),
        };
        self.note(asked)?;
        Ok(all)
    }

    /// What each stage is.
    pub fn facts(&self) -> &[StageFacts] {
        &self.facts
    }

    /// Segments of each stage.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// This process's part of the model.
    pub fn model(&self) -> Option<&Model> {
        self.stage.as_ref().map(Stage::model)
    }

    /// Lets so many groups be under way at once from the next batch on.
    pub fn set_micro_batches(&mut self, count: u32) {
        self.stages.micro_batches = count;
    }

    /// Numbers of the other stages' processes.
    pub fn processes(&self) -> Vec<u32> {
        self.processes.as_ref().map(Processes::ids).unwrap_or_default()
    }
}

fn ask(processes: &mut Processes, all: &mut [(Times, LinkUse)], apart: u32) -> Result<()> {
    processes.say(&Control::Ask)?;
    for _ in 0..processes.ids().len() {
        match processes.wait()? {
            Event::Said(place, Control::Report { times, sent }) if ((place - apart) as usize) < all.len() => {
                all[(place - apart) as usize] = (times, sent);
            }
            _ => return Err(Error::environment("a stage says something else than what runs took")),
        }
    }
    Ok(())
}

/// What a pipeline cannot do is refused before anything is started.
fn check(package: &Package, backend: &Backend, stages: &Stages) -> Result<ShardIndex> {
    let Some(index) = package.shards()? else {
        return Err(Error::unsupported(format!(
            "`{}` is no pack: its graph runs in one piece",
            package.root.display()
        ))
        .hint("make one with `ortbench pack`"));
    };
    let refuse = |what: &str| Err(Error::unsupported(format!("a model in stages {what}")));
    if providers::of(backend.provider).computes() != Computes::Host {
        return refuse("computes in the host's memory, and not on a device");
    }
    if stages.count == 0 || stages.count as usize > index.segments.len() {
        let segments = index.segments.len();
        return refuse(&format!("has at least one and at most as many as the pack has segments ({segments})"));
    }
    if stages.via == Via::Namespace && stages.count > 2 {
        return refuse("has two of them at most where the link is a network namespace's");
    }
    Ok(index)
}

/// Which segments each stage has.
fn cut(index: &ShardIndex, stages: &Stages, routed: u64) -> Result<Cut> {
    let (segments, count) = (index.segments.len(), stages.count as usize);
    let Some(borders) = &stages.borders else {
        let costs: Vec<f64> = index.step_bytes(routed).into_iter().map(|bytes| bytes as f64).collect();
        return balance(&costs, count).ok_or_else(|| Error::new("fewer segments than stages; this is a bug"));
    };
    let ends = borders.iter().copied().chain([segments]);
    let starts = std::iter::once(0).chain(borders.iter().copied());
    let cut: Cut = starts.zip(ends).map(|(start, end)| start..end).collect();
    if cut.len() != count || cut.iter().any(std::ops::Range::is_empty) {
        return Err(Error::new(format!(
            "borders {borders:?} do not cut {segments} segments into {count} stages of at least one each"
        )));
    }
    Ok(cut)
}
