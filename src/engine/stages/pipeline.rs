//! The process that has the requests: stage 0, and the schedule.
//!
//! A batch is cut into groups that are under way at once: while a later stage has one of them, this one has another.
//! Prompts of all groups go first, then each group's next step as soon as its token is there, in the order in which
//! tokens come.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

use ndarray::ArrayView2;

use super::balance::{Cut, balance};
use super::job::{Job, Limits, StagePlan, Stages, Via};
use super::link::{Link, LinkUse};
use super::meeting;
use super::processes::{Connected, Event, Processes};
use super::stage::{Next, Stage, Times};
use super::wire::{Answer, Begin, Control, Run, VERSION};
use crate::cell::Backend;
use crate::engine::model::Model;
use crate::engine::plan::Plan;
use crate::engine::prompt::Prompt;
use crate::engine::serving::{Feed, Look, Sequence, Served, Wave};
use crate::error::{Context, Error, Result};
use crate::loader::held;
use crate::package::Package;
use crate::package::shards::ShardIndex;
use crate::runtime::Runtime;
use crate::runtime::providers::{self, Computes};

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
    /// A package that is no pack or a plan that a pipeline cannot follow (`unsupported`); what keeps a stage from loading.
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

    /// Generates exactly `generate` tokens after each prompt, each the most likely one; stop tokens are ignored.
    ///
    /// # Errors
    /// No prompts, or empty ones; prompts beyond the context; images; a stage that failed, ended or is silent; logits
    /// that are not finite. After an error the pipeline does nothing any more.
    pub fn serve(&mut self, prompts: &[Prompt], generate: usize, feed: &mut Feed) -> Result<Served> {
        let start = Instant::now();
        if generate == 0 {
            return Err(Error::new("a batch needs at least one new token"));
        }
        self.begin(prompts, generate)?;
        let nothing = Sequence { tokens: Vec::with_capacity(generate), first_seconds: 0.0, last_seconds: 0.0 };
        let mut sequences = vec![nothing; prompts.len()];
        let mut first = 0;
        let firsts: Vec<usize> = self.sizes.iter().map(|size| (first, first += size).0).collect();
        for group in 0..self.sizes.len() {
            let rows = prompts[firsts[group]..][..self.sizes[group]].iter().map(|prompt| prompt.tokens.clone());
            self.submit(&Run {
                group: group as u32,
                prompts: true,
                logits: false,
                rows: rows.collect(),
                tensors: vec![],
            })?;
        }
        let mut left = self.sizes.len() * generate;
        while left > 0 {
            let answer = self.answer()?;
            let now = start.elapsed().as_secs_f64();
            left -= 1;
            let first = firsts[answer.group as usize];
            let step = sequences[first].tokens.len();
            let mut rows = Vec::with_capacity(answer.tokens.len());
            for (number, token) in (first..).zip(&answer.tokens) {
                let sequence = &mut sequences[number];
                sequence.tokens.push(*token);
                sequence.last_seconds = now;
                if step == 0 {
                    sequence.first_seconds = now;
                }
                rows.push(vec![feed(number, step, *token)]);
            }
            if step + 1 < generate {
                self.submit(&Run { group: answer.group, prompts: false, logits: false, rows, tensors: vec![] })?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let count = sequences.len();
        let decoding: f64 = sequences.iter().map(|sequence| sequence.last_seconds - sequence.first_seconds).sum();
        // Groups begin to decode one after the other: together they are one wave, whose decode is theirs on the average.
        let wave = Wave {
            size: count,
            began: count,
            prefill_seconds: sequences.iter().map(|sequence| sequence.first_seconds).fold(0.0, f64::max),
            decode_seconds: decoding / count as f64,
            steps: generate - 1,
            prefill_read_bytes: 0,
            decode_read_bytes: 0,
        };
        Ok(Served { sequences, waves: vec![wave], seconds, traffic: None, search: None })
    }

    /// The same prompts with what is fed given; `look` gets the logits after each prompt (0 tokens fed) and after each
    /// token.
    ///
    /// # Errors
    /// As [`Pipeline::serve`], and what `look` returns; another number of lists than of prompts, lists of unequal lengths.
    pub fn forced(&mut self, prompts: &[Prompt], forced: &[Vec<u32>], look: &mut Look) -> Result<()> {
        let steps = forced.first().map_or(0, Vec::len);
        if forced.len() != prompts.len() || forced.iter().any(|tokens| tokens.len() != steps) {
            let (lists, prompts) = (forced.len(), prompts.len());
            return Err(Error::new(format!(
                "{lists} lists of tokens to feed after {prompts} prompts, which must be one each, all of the same length"
            )));
        }
        self.prefill(prompts, steps)?;
        for step in 0..=steps {
            if step > 0 {
                let tokens: Vec<u32> = forced.iter().map(|tokens| tokens[step - 1]).collect();
                self.step(&tokens)?;
            }
            for (number, logits) in self.logits.chunks_exact(self.vocab.max(1)).enumerate() {
                look(number, step, logits)?;
            }
        }
        Ok(())
    }

    /// Starts anew with these prompts, of which `steps` tokens at most will follow; the logits of each row's last token
    /// are ready afterwards.
    ///
    /// # Errors
    /// As [`Pipeline::serve`].
    pub fn prefill(&mut self, prompts: &[Prompt], steps: usize) -> Result<()> {
        self.begin(prompts, steps)?;
        let rows: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
        self.run_all(true, &rows)
    }

    /// Appends one token to every row. The logits of the new tokens are ready afterwards.
    ///
    /// # Errors
    /// As [`Pipeline::serve`]; another number of tokens than of rows.
    pub fn step(&mut self, tokens: &[u32]) -> Result<()> {
        let rows: Vec<Vec<u32>> = tokens.iter().map(|token| vec![*token]).collect();
        self.run_all(false, &rows)
    }

    /// The logits of every row's last token: `[batch, vocabulary]`.
    pub fn logits(&self) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((self.logits.len() / self.vocab.max(1), self.vocab), &self.logits)
            .expect("logits are whole rows")
    }

    fn run_all(&mut self, prompts: bool, rows: &[Vec<u32>]) -> Result<()> {
        let batch = self.sizes.iter().sum::<usize>();
        if rows.len() != batch {
            return Err(Error::new(format!("{} rows for a batch of {batch}", rows.len())));
        }
        let mut rows = rows;
        for group in 0..self.sizes.len() {
            let (own, others) = rows.split_at(self.sizes[group]);
            self.submit(&Run { group: group as u32, prompts, logits: true, rows: own.to_vec(), tensors: vec![] })?;
            rows = others;
        }
        self.logits.clear();
        for group in 0..self.sizes.len() {
            let answer = self.answer()?;
            // Links and stages keep the order.
            if answer.group as usize != group || answer.logits.len() != self.sizes[group] * self.vocab {
                self.broken = true;
                return Err(Error::environment("the last stage says something of another run than was asked"));
            }
            self.logits.extend_from_slice(&answer.logits);
        }
        Ok(())
    }

    /// Lets every stage allocate for these prompts and so many tokens after each.
    fn begin(&mut self, prompts: &[Prompt], more: usize) -> Result<()> {
        if self.broken {
            return Err(Error::environment("the pipeline broke before").hint("load it again"));
        }
        if prompts.is_empty() || prompts.iter().any(|prompt| prompt.tokens.is_empty()) {
            return Err(Error::new("a batch needs at least one prompt, and each prompt at least one token"));
        }
        if prompts.iter().any(|prompt| !prompt.images.is_empty()) {
            return Err(Error::unsupported("a pipeline of several processes takes no images"));
        }
        let context = self.context;
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        if longest + more > context {
            let message =
                format!("{} tokens (prompt and generated) exceed the model's context of {context}", longest + more);
            return Err(Error::new(message).hint("use a shorter prompt or generate fewer tokens"));
        }
        self.sizes = self.stages.group_sizes(prompts.len());
        let begin =
            Begin { sizes: self.sizes.iter().map(|size| *size as u32).collect(), capacity: (longest + more) as u32 };
        let begun = self.stage.as_mut().map_or(Ok(()), |stage| stage.begin(&begin));
        self.note(begun)?;
        let sent = if self.link.is_some() { self.send(begin.frame()) } else { Ok(()) };
        self.note(sent)
    }

    /// Takes a run through this stage and sends it to the next one.
    fn submit(&mut self, run: &Run) -> Result<()> {
        let next = self.stage.as_mut().map_or_else(|| Ok(Next::Pass(run.frame())), |stage| stage.run(run));
        let next = match next {
            Ok(Next::Done(answer)) => {
                self.own.push_back(answer);
                Ok(())
            }
            Ok(Next::Pass(frame)) => self.send(frame),
            Err(error) => Err(error),
        };
        self.note(next)
    }

    /// The next answer.
    fn answer(&mut self) -> Result<Answer> {
        if let Some(answer) = self.own.pop_front() {
            return Ok(answer);
        }
        let answer = self.wait_for_answer();
        self.note(answer)
    }

    fn wait_for_answer(&mut self) -> Result<Answer> {
        let processes = self.processes.as_mut().ok_or_else(|| Error::new("no run is under way; this is a bug"))?;
        let Event::Answer(body) = processes.wait()? else {
            return Err(Error::environment("a stage says something that nobody asked"));
        };
        let answer = Answer::parse(&body)?;
        if self.sizes.get(answer.group as usize) != Some(&answer.tokens.len()) {
            return Err(Error::environment("the last stage says something of another run than was asked"));
        }
        Ok(answer)
    }

    /// After an error nothing is where it should be.
    fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        self.broken |= result.is_err();
        result
    }

    /// Sends a frame to the next stage; where that fails, says why.
    fn send(&mut self, frame: Vec<u8>) -> Result<()> {
        let Some(link) = &self.link else { return Err(Error::new("a stage without a next one; this is a bug")) };
        link.send(frame).map_err(|error| match &mut self.processes {
            Some(processes) => processes.reason(error),
            None => error,
        })
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
