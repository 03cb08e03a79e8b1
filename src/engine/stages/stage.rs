//! What every stage does with a run: its parts over one group, and the time that each took.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};

use super::wire::{Answer, Begin, Run, Tensor};
use crate::cell::Backend;
use crate::engine::group::Group;
use crate::engine::model::Model;
use crate::engine::plan::Plan;
use crate::engine::prompt::Prompt;
use crate::engine::sampling::argmax;
use crate::engine::vision::Features;
use crate::error::{Error, Result};
use crate::package::Package;
use crate::runtime::{HandedTensor, Runtime};

/// What kind of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Whole prompts.
    Prefill,
    /// One token a sequence.
    Step,
}

/// What runs of one kind and of so many sequences took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The kind.
    pub phase: Phase,
    /// Sequences.
    pub sequences: usize,
    /// Runs.
    pub runs: u64,
    /// Seconds of each part, of all runs together.
    pub parts: Vec<f64>,
    /// Seconds beside the parts: what comes and goes, inputs, the choice of tokens.
    pub around: f64,
    /// Bytes that each part leaves behind for later ones, of one run.
    pub handed: Vec<u64>,
}

impl Timing {
    /// Seconds of each part, of one run.
    pub fn part_seconds(&self) -> Vec<f64> {
        self.parts.iter().map(|seconds| seconds / self.runs.max(1) as f64).collect()
    }

    /// Seconds beside the parts, of one run.
    pub fn around_seconds(&self) -> f64 {
        self.around / self.runs.max(1) as f64
    }
}

/// What runs took, by kind and number of sequences.
pub type Times = Vec<Timing>;

/// Some of a model's segments, and the groups that go through them.
#[derive(Debug)]
pub(super) struct Stage {
    model: Model,
    groups: Vec<Group>,
    sizes: Vec<u32>,
    capacity: u32,
    /// What crosses the border before this stage, and the one after it.
    takes: Vec<String>,
    makes: Vec<String>,
    /// What crosses the border after each of its segments.
    borders: Vec<Vec<String>>,
    times: BTreeMap<(Phase, usize), Timing>,
}

/// What a run leads to.
#[derive(Debug)]
pub(super) enum Next {
    /// A frame for the next stage.
    Pass(Vec<u8>),
    /// The logits are there.
    Done(Answer),
}

impl Stage {
    /// Loads these segments of the pack.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(
        runtime: &Runtime,
        package: &Package,
        backend: &Backend,
        plan: &Plan,
        segments: &Range<usize>,
    ) -> Result<Self> {
        let index = package.shards()?.ok_or_else(|| Error::new("only packs run in stages; this is a bug"))?;
        let model = Model::load_segments(runtime, package, backend, plan, Some(segments))?;
        let last = segments.end == index.segments.len();
        if model.has_logits() != last {
            return Err(Error::unsupported("the pack makes its logits before its last segment"));
        }
        Ok(Self {
            model,
            groups: Vec::new(),
            sizes: Vec::new(),
            capacity: 0,
            takes: index.crossing(segments.start),
            makes: index.crossing(segments.end),
            borders: segments.clone().map(|segment| index.crossing(segment + 1)).collect(),
            times: BTreeMap::new(),
        })
    }

    /// What was loaded.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Allocates for the groups of a batch, where they are not those of the last one.
    ///
    /// # Errors
    /// A capacity beyond the model's context, memory that cannot be had.
    pub fn begin(&mut self, begin: &Begin) -> Result<()> {
        if self.sizes == begin.sizes && self.capacity >= begin.capacity {
            return Ok(());
        }
        // Before the next ones are allocated: both need not fit at once.
        self.groups.clear();
        let (model, capacity) = (&self.model, begin.capacity as usize);
        let groups = begin.sizes.iter().map(|size| Group::new(model, *size as usize, capacity, None));
        self.groups = groups.collect::<Result<_>>()?;
        self.groups.iter_mut().for_each(Group::touch_cache);
        (self.sizes, self.capacity) = (begin.sizes.clone(), begin.capacity);
        Ok(())
    }

    /// Takes a run through this stage's parts.
    ///
    /// # Errors
    /// A run of no group or of other rows, tensors that are missing or do not fit, a full cache, a failed run, logits
    /// that are not finite.
    pub fn run(&mut self, run: &Run) -> Result<Next> {
        let start = Instant::now();
        let lacks = || Error::new(format!("a run of group {}, which there is not", run.group));
        let group = self.groups.get_mut(run.group as usize).ok_or_else(lacks)?;
        let model = &mut self.model;
        let rows = run.rows.len();
        let vocab = model.manifest().shape.vocab_size;
        let known = |token: &u32| u64::from(*token) < vocab;
        if rows != group.batch() || run.rows.iter().any(|row| row.is_empty() || !row.iter().all(known)) {
            return Err(Error::new("a run of other rows than its group has"));
        }
        if run.prompts {
            let prompts: Vec<Prompt> = run.rows.iter().cloned().map(Prompt::text).collect();
            group.begin_prompts(model, &prompts, &Features::default(), &vec![1; rows])?;
        } else {
            let tokens: Vec<&[u32]> = run.rows.iter().map(Vec::as_slice).collect();
            group.begin_tokens(model, &tokens, &vec![1; rows])?;
        }
        for name in &self.takes {
            let tensor = run.tensors.iter().find(|tensor| tensor.name == *name);
            let tensor = tensor.ok_or_else(|| Error::new(format!("a run without `{name}`, which this stage takes")))?;
            let tensor = HandedTensor { element: tensor.element, dims: tensor.dims.clone(), bytes: tensor.bytes };
            group.hand_in(name, &tensor)?;
        }
        let phase = if run.prompts { Phase::Prefill } else { Phase::Step };
        let parts = model.parts.len();
        let timing = self.times.entry((phase, rows)).or_insert_with(|| Timing {
            phase,
            sequences: rows,
            runs: 0,
            parts: vec![0.0; parts],
            around: 0.0,
            handed: vec![0; parts],
        });
        let mut computing = 0.0;
        for part in 0..parts {
            let started = Instant::now();
            let weights = model.feed(part)?;
            group.run_part(model, part, weights.as_ref())?;
            let seconds = started.elapsed().as_secs_f64();
            timing.parts[part] += seconds;
            computing += seconds;
            timing.handed[part] = group.handed_bytes(&self.borders[part])?;
        }
        group.finish(true);
        let next = if model.has_logits() {
            let vocab = model.manifest().shape.vocab_size as usize;
            let all = group.last_logits();
            let tokens = all.chunks_exact(vocab).map(|row| argmax(ArrayView1::from(row)));
            let tokens = tokens.collect::<Result<_>>()?;
            Next::Done(Answer { group: run.group, tokens, logits: if run.logits { all.to_vec() } else { Vec::new() } })
        } else {
            let tensors = self.makes.iter().map(|name| {
                let HandedTensor { element, dims, bytes } = group.handed_over(name)?;
                Ok(Tensor { name: name.clone(), element, dims, bytes })
            });
            let tensors = tensors.collect::<Result<_>>()?;
            Next::Pass(Run { tensors, rows: run.rows.clone(), ..*run }.frame())
        };
        model.keep_within_budget()?;
        timing.runs += 1;
        timing.around += start.elapsed().as_secs_f64() - computing;
        Ok(next)
    }

    /// What runs took since the stage was loaded, or since this was last asked.
    pub fn take_times(&mut self) -> Times {
        std::mem::take(&mut self.times).into_values().collect()
    }
}
