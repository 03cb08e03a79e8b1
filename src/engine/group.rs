//! Sequences that run together, with their key/value cache in buffers of our own.
//!
//! All memory is allocated before the first run: the cache for its full capacity, and what `inputs.rs` writes. Where a
//! provider computes in a device's memory, the cache is there and stays there (`kept.rs`). In `in_place` mode one buffer is bound as past and present and nothing is copied; a step writes the new token ids,
//! extends the mask, and runs. In `append` mode two buffers take turns and the provider copies.
//!
//! A run is begun, goes through the model's parts, and is finished: `decoder.rs` lets several groups take turns.

use std::sync::{Arc, Mutex};

use crate::cell::Dtype;
use crate::engine::fixed::Fixed;
use crate::engine::hidden::Hidden;
use crate::engine::inputs::Inputs;
use crate::engine::kept::Kept;
use crate::engine::model::Model;
use crate::engine::offload::{Extent, Offload, Size, aligned_capacity};
use crate::engine::plan::CacheMode;
use crate::engine::prompt::Prompt;
use crate::engine::vision::Features;
use crate::error::{Error, Result};
use crate::loader::spill::Spill;
use crate::package::{Dim, Port};
use crate::runtime::{Bindings, BufferId, PartWeights, RunSettings};

mod cached;
mod handing;
mod regrouping;
mod trying;
mod waiting;

use handing::Received;
pub(super) use regrouping::Place;
pub(super) use trying::{Mark, Visit};

/// A batch in progress, or a part of one.
#[derive(Debug)]
pub(super) struct Group {
    /// The disk's share of the cache, where it waits there. Declared first: transfers under way end before the
    /// buffers go.
    offload: Option<Offload>,
    /// What parts make for later ones, where that waits there too.
    hidden: Option<Hidden>,
    /// Where what other processes made for these parts is.
    received: Received,
    bindings: Bindings,
    /// Whose memory the cache and the logits are in.
    kept: Kept,
    /// Where steps of one token a row have their inputs and logits, where those are of fixed shapes.
    fixed: Option<Fixed>,
    /// Whether the run at hand is such a step.
    steps: bool,
    batch: usize,
    capacity: usize,
    /// Columns in the cache, padding included.
    columns: usize,
    inputs: Inputs,
    logits: Logits,
    cache: Vec<Layer>,
    /// Columns of the run at hand.
    new: usize,
    /// The first column that it writes: of right-padded rows the shortest one's end.
    written_from: usize,
}

#[derive(Debug)]
struct Logits {
    buffer: BufferId,
    /// Of the buffer, which may be longer than what the last run wrote.
    bytes: usize,
    dtype: Dtype,
    /// 0 where other processes compute them.
    vocab: usize,
    /// Positions of each row in the buffer.
    positions: usize,
    /// Whether they are those that were wanted; otherwise they are all of the run's columns.
    selected: bool,
    /// Rows of the last position, where the buffer holds half precision or more than one position.
    last: Option<Vec<f32>>,
}

#[derive(Debug)]
struct Layer {
    past: Port,
    present: Port,
    heads: usize,
    width: usize,
    front: BufferId,
    /// The other buffer of `append` mode.
    back: Option<BufferId>,
}

impl Layer {
    /// How the tensor lies in memory with that many columns, before or after a run.
    fn extent(&self, batch: usize, capacity: usize, columns: usize, after: bool) -> Extent {
        Extent {
            buffer: if after { self.back.unwrap_or(self.front) } else { self.front },
            rows: batch * self.heads,
            column: self.width * self.past.dtype.size(),
            stride: if self.back.is_some() { columns } else { capacity },
        }
    }
}

impl Group {
    /// Allocates for `batch` sequences of at most `capacity` tokens (prompt and generated).
    ///
    /// # Errors
    /// A capacity beyond the model's context, memory that cannot be had.
    pub fn new(model: &Model, batch: usize, capacity: usize, spill: Option<&Arc<Mutex<Spill>>>) -> Result<Self> {
        let context = model.manifest().shape.context_length as usize;
        if batch == 0 || capacity == 0 {
            return Err(Error::new("a batch needs at least one sequence of at least one token"));
        }
        if capacity > context {
            return Err(Error::new(format!(
                "{capacity} tokens (prompt and generated) exceed the model's context of {context}"
            ))
            .hint("use a shorter prompt or generate fewer tokens"));
        }
        let mut capacity = capacity;
        if spill.is_some() && model.cache_mode == CacheMode::InPlace {
            for (past, _) in &model.ports.cache {
                let (_, width) = cache_dims(past)?;
                capacity = aligned_capacity(capacity, width * past.dtype.size());
            }
        }
        let mut bindings = Bindings::of_parts(model.parts.iter().map(|part| &part.session))?;
        let kept = Kept::of(model, &mut bindings)?;
        let cells = |batch: usize, capacity: usize| batch * capacity;
        let inputs = Inputs::new(&mut bindings, batch, capacity)?;
        let vocab = if model.has_logits() { model.manifest().shape.vocab_size as usize } else { 0 };
        let dtype = model.ports.logits.dtype;
        let bytes = batch * vocab * dtype.size();
        let logits = Logits {
            buffer: kept.allocate_answer(&mut bindings, bytes)?,
            bytes,
            dtype,
            vocab,
            positions: 1,
            selected: false,
            last: None,
        };
        let mut cache = Vec::with_capacity(model.ports.cache.len());
        for (past, present) in &model.ports.cache {
            let (heads, width) = cache_dims(past)?;
            let bytes = cells(batch, capacity) * heads * width * past.dtype.size();
            let front = kept.allocate(&mut bindings, bytes)?;
            let back = match model.cache_mode {
                CacheMode::InPlace => None,
                CacheMode::Append => Some(kept.allocate(&mut bindings, bytes)?),
            };
            cache.push(Layer { past: past.clone(), present: present.clone(), heads, width, front, back });
        }
        let size = |layer: &Layer| Size {
            rows: batch * layer.heads,
            column: layer.width * layer.past.dtype.size(),
            capacity,
            coding: model.coding(layer.past.dtype, layer.width),
        };
        let offload = match spill {
            None => None,
            Some(spill) => Some(Offload::new(spill, cache.iter().map(size))?),
        };
        let fixed = match model.fixed_steps {
            true => {
                let step = inputs.of_step(model, capacity);
                Some(Fixed::new(&kept, &mut bindings, &step, logits.bytes, model.captures)?)
            }
            false => None,
        };
        Ok(Self {
            bindings,
            kept,
            fixed,
            steps: false,
            batch,
            capacity,
            columns: 0,
            inputs,
            logits,
            cache,
            new: 0,
            written_from: 0,
            offload,
            hidden: None,
            received: Received::default(),
        })
    }

    /// Writes every page of the cache once, so that later runs do not pay for page faults and its memory shows.
    pub fn touch_cache(&mut self) {
        // Memory of a device is written when it is allocated.
        if self.offload.is_some() || self.kept.on_device() {
            return;
        }
        for layer in &self.cache {
            let bytes = self.batch * self.capacity * layer.heads * layer.width * layer.past.dtype.size();
            for id in [Some(layer.front), layer.back].into_iter().flatten() {
                // Zero has the same bits in every type; of 4 bits, what stands beyond the tokens is never read.
                self.bindings.write::<u8>(id, bytes).fill(0);
            }
        }
    }

    /// Begins a run over these prompts, one a sequence, starting anew; the logits of each row's last `tails` tokens
    /// are wanted. `features` are those of the prompts' images.
    ///
    /// # Errors
    /// Empty prompts, a prompt beyond the capacity, features of other images.
    pub fn begin_prompts(
        &mut self,
        model: &Model,
        prompts: &[Prompt],
        features: &Features,
        tails: &[usize],
    ) -> Result<()> {
        let columns = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        if prompts.iter().any(|prompt| prompt.tokens.is_empty()) {
            return Err(Error::new("an empty prompt has no next token").hint("give at least one token"));
        }
        if columns > self.capacity {
            return Err(Error::new(format!(
                "a prompt of {columns} tokens exceeds the {} that the cache was allocated for",
                self.capacity
            )));
        }
        assert!(
            tails.len() == prompts.len() && tails.iter().zip(prompts).all(|(t, p)| (1..=p.tokens.len()).contains(t)),
            "logits of a prompt's own tokens"
        );
        self.forget(0);
        self.written_from = 0;
        self.steps = false;
        self.inputs.write_prompts(&mut self.bindings, model, prompts, columns, features, tails)?;
        self.begin(model, columns)
    }

    /// Begins a run that appends tokens to the rows.
    ///
    /// # Errors
    /// A full cache.
    pub fn begin_tokens(&mut self, model: &Model, rows: &[&[u32]], tails: &[usize]) -> Result<()> {
        let new = rows.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        if self.columns + new > self.capacity {
            return Err(Error::new(format!("the cache of {} tokens is full", self.capacity)));
        }
        self.written_from = self.inputs.lengths().iter().copied().min().unwrap_or(0).min(self.columns);
        self.inputs.write_tokens(&mut self.bindings, model, rows, new, tails);
        let one_each = rows.iter().all(|tokens| tokens.len() == 1) && tails.iter().all(|tail| *tail == 1);
        self.steps = self.fixed.is_some() && one_each;
        self.begin(model, new)
    }

    /// Forgets all but the first tokens of the one row of a batch of one, whose cache is kept in place.
    pub(super) fn keep(&mut self, tokens: usize) {
        let in_place = self.cache.iter().all(|layer| layer.back.is_none());
        assert!(self.batch == 1 && in_place && tokens <= self.columns, "a cache that can be cut");
        self.forget(tokens);
        self.inputs.rewind(&[tokens]);
    }

    /// The logits of a row after one of the tokens that were wanted, from 0; `scratch` is used where they must be
    /// converted.
    pub fn tail_logits<'a>(&'a self, row: usize, index: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let (logits, wanted) = (&self.logits, self.inputs.wanted());
        assert!(index < wanted.tails[row], "logits that were not wanted");
        let position = if logits.selected { index } else { wanted.first[row] + index };
        let start = (row * logits.positions + position) * logits.vocab;
        let range = start..start + logits.vocab;
        if logits.dtype == Dtype::Float32 {
            return &self.bindings.read::<f32>(logits.buffer, range.end)[range];
        }
        scratch.clear();
        self.bindings.read_f32(logits.buffer, logits.dtype, range, scratch);
        scratch
    }

    /// The logits of every row's last token, one row after the other.
    pub fn last_logits(&self) -> &[f32] {
        match &self.logits.last {
            Some(converted) => converted,
            None => self.bindings.read(self.logits.buffer, self.batch * self.logits.vocab),
        }
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Prepares a run of `new` columns.
    fn begin(&mut self, model: &Model, new: usize) -> Result<()> {
        self.new = new;
        // Of a run that broke off.
        if let Some(hidden) = &mut self.hidden {
            hidden.clear(&mut self.bindings);
        }
        self.bindings.drop_all_handed();
        let total = if self.steps { self.capacity } else { self.columns + new };
        self.inputs.prepare(&mut self.bindings, model, total);
        let logits = &mut self.logits;
        logits.selected = model.computes_selected_logits();
        logits.positions = if logits.selected { self.inputs.wanted().width() } else { new };
        let bytes = self.batch * logits.positions * logits.vocab * logits.dtype.size();
        if bytes > logits.bytes {
            logits.buffer = self.kept.allocate_answer(&mut self.bindings, bytes)?;
            logits.bytes = bytes;
        }
        Ok(())
    }

    /// Runs one part of the model over the columns at hand; parts run in their order. `weights` are those that its
    /// graph takes as inputs.
    pub fn run_part(&mut self, model: &mut Model, place: usize, weights: Option<&Arc<PartWeights>>) -> Result<()> {
        self.bring_in(model, place)?;
        let run = self.bind_and_run(model, place, weights);
        if weights.is_some() && !model.keeps_fed() {
            self.bindings.unbind_weights(place);
        }
        run?;
        for name in &model.parts[place].taken_last {
            self.bindings.drop_handed(name);
            if let Some(hidden) = &mut self.hidden {
                hidden.forget(name, &mut self.bindings)?;
            }
        }
        self.send_out(model, place);
        self.hidden.as_mut().map_or(Ok(()), |hidden| hidden.send_out(&mut self.bindings))
    }

    fn bind_and_run(&mut self, model: &mut Model, place: usize, weights: Option<&Arc<PartWeights>>) -> Result<()> {
        let (batch, past, total) = (self.batch, self.columns, self.columns + self.new);
        let part = &model.parts[place];
        let bindings = &mut self.bindings;
        let fixed = self.fixed.as_ref().filter(|_| self.steps);
        if let Some(fixed) = fixed {
            fixed.send(&self.kept, bindings)?;
        }
        let columns = if self.steps { self.capacity } else { total };
        self.inputs.bind(bindings, model, place, (self.new, columns), fixed)?;
        if part.has_logits {
            let logits = &self.logits;
            let dims = [batch, logits.positions, logits.vocab];
            let buffer = fixed.map_or(logits.buffer, |fixed| fixed.logits);
            bindings.bind_output(place, &model.ports.logits.name, buffer, logits.dtype, &dims)?;
        }
        for layer in part.caches.iter().map(|place| &self.cache[*place]) {
            let dims = |columns| [batch, layer.heads, columns, layer.width];
            let (present, shapes) = match layer.back {
                None => (layer.front, [dims(self.capacity); 2]),
                Some(back) => (back, [dims(past), dims(total)]),
            };
            bindings.bind_input(place, &layer.past.name, layer.front, layer.past.dtype, &shapes[0])?;
            bindings.bind_output(place, &layer.present.name, present, layer.present.dtype, &shapes[1])?;
        }
        for name in &part.takes {
            bindings.take(place, name)?;
        }
        for name in &part.makes {
            bindings.make(place, name)?;
        }
        if let Some(weights) = weights {
            bindings.bind_weights(place, weights)?;
        }
        let graph = self.fixed.as_ref().and_then(|fixed| fixed.graph(self.steps));
        let settings = RunSettings { graph, shrinks: model.shrinks && self.new > 1 };
        bindings.run_part_as(place, &mut model.parts[place].session, settings)?;
        fixed.map_or(Ok(()), |fixed| fixed.fetch(&self.kept, bindings, self.logits.buffer))
    }

    /// Keeps the first columns only.
    fn forget(&mut self, columns: usize) {
        self.columns = columns;
        if let Some(offload) = &mut self.offload {
            offload.cut(columns);
        }
    }

    /// Ends a run whose parts have all run. Without `keep`, what `append` mode wrote is not taken for the past of the
    /// next run.
    pub fn finish(&mut self, keep: bool) {
        if keep {
            for layer in &mut self.cache {
                if let Some(back) = &mut layer.back {
                    std::mem::swap(&mut layer.front, back);
                }
            }
        }
        self.columns += self.new;
        self.convert_logits();
    }

    /// Gathers the last rows as f32 where there is one a row and the graph gives another type or every position.
    fn convert_logits(&mut self) {
        self.logits.last = None;
        let one_each = self.inputs.wanted().tails.iter().all(|tail| *tail == 1);
        if !one_each || (self.logits.positions == 1 && self.logits.dtype == Dtype::Float32) {
            return;
        }
        let (mut last, mut scratch) = (Vec::with_capacity(self.batch * self.logits.vocab), Vec::new());
        for row in 0..self.batch {
            last.extend_from_slice(self.tail_logits(row, 0, &mut scratch));
        }
        self.logits.last = Some(last);
    }
}

/// Heads and width of a cache tensor `[batch, heads, past, width]`.
fn cache_dims(port: &Port) -> Result<(usize, usize)> {
    match port.dims.as_slice() {
        [_, Dim::Size(heads), _, Dim::Size(width)] if *heads > 0 && *width > 0 => {
            Ok((*heads as usize, *width as usize))
        }
        _ => Err(Error::new(format!("the cache tensor `{}` is not [batch, heads, past, width]", port.name))),
    }
}
