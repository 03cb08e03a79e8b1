//! Prefill and decode of one batch, with the key/value cache in buffers of our own.
//!
//! All memory is allocated before the first run: the cache for its full capacity, and the step's small tensors. In
//! `in_place` mode one buffer is bound as past and present and nothing is copied; a step writes the new token ids,
//! extends the mask, and runs. In `append` mode two buffers take turns and the provider copies.

use ndarray::ArrayView2;

use crate::cell::Dtype;
use crate::engine::model::Model;
use crate::engine::plan::CacheMode;
use crate::error::{Error, Result};
use crate::package::{Dim, Padding, Port};
use crate::runtime::{Bindings, BufferId};

/// A batch in progress.
#[derive(Debug)]
pub struct Decoder {
    bindings: Bindings,
    batch: usize,
    capacity: usize,
    /// Tokens of each row, padding excluded.
    lengths: Vec<usize>,
    /// Columns in the cache, padding included.
    columns: usize,
    ids: BufferId,
    mask: BufferId,
    positions: BufferId,
    selected: BufferId,
    logits: Logits,
    cache: Vec<Layer>,
}

#[derive(Debug)]
struct Logits {
    buffer: BufferId,
    bytes: usize,
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

impl Decoder {
    /// Allocates for `batch` sequences of at most `capacity` tokens (prompt and generated).
    ///
    /// # Errors
    /// A capacity beyond the model's context, memory that cannot be had.
    pub fn new(model: &Model, batch: usize, capacity: usize) -> Result<Self> {
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
        let mut bindings = Bindings::new(&model.session)?;
        let cells = batch * capacity;
        let ids = bindings.allocate(cells * size_of::<i64>())?;
        let mask = bindings.allocate(cells * size_of::<i64>())?;
        let positions = bindings.allocate(cells * size_of::<i64>())?;
        let selected = bindings.allocate(batch * size_of::<i64>())?;
        let bytes = batch * model.manifest().shape.vocab_size as usize * model.ports.logits.dtype.size();
        let logits = Logits { buffer: bindings.allocate(bytes)?, bytes, last: None };
        let mut cache = Vec::with_capacity(model.ports.cache.len());
        for (past, present) in &model.ports.cache {
            let (heads, width) = cache_dims(past)?;
            let bytes = cells * heads * width * past.dtype.size();
            let front = bindings.allocate(bytes)?;
            let back = match model.cache_mode {
                CacheMode::InPlace => None,
                CacheMode::Append => Some(bindings.allocate(bytes)?),
            };
            cache.push(Layer { past: past.clone(), present: present.clone(), heads, width, front, back });
        }
        Ok(Self {
            bindings,
            batch,
            capacity,
            lengths: Vec::new(),
            columns: 0,
            ids,
            mask,
            positions,
            selected,
            logits,
            cache,
        })
    }

    /// Writes every page of the cache once, so that later runs do not pay for page faults and its memory shows.
    pub fn touch_cache(&mut self) {
        for layer in &self.cache {
            let bytes = self.batch * self.capacity * layer.heads * layer.width * layer.past.dtype.size();
            for id in [Some(layer.front), layer.back].into_iter().flatten() {
                // Half-precision elements divide every size, and zero has the same bits in every type.
                self.bindings.write::<half::f16>(id, bytes / 2).fill(half::f16::ZERO);
            }
        }
    }

    /// Starts anew with these prompts, one a sequence, and runs the model over all of them. The logits of each row's
    /// last token are ready afterwards.
    ///
    /// # Errors
    /// Empty prompts, a batch of another size, a prompt beyond the capacity, a failed run.
    pub fn prefill(&mut self, model: &mut Model, prompts: &[Vec<u32>]) -> Result<()> {
        if prompts.len() != self.batch {
            return Err(Error::new(format!("{} prompts for a batch of {}", prompts.len(), self.batch)));
        }
        let columns = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if prompts.iter().any(Vec::is_empty) {
            return Err(Error::new("an empty prompt has no next token").hint("give at least one token"));
        }
        if columns > self.capacity {
            return Err(Error::new(format!(
                "a prompt of {columns} tokens exceeds the {} that the cache was allocated for",
                self.capacity
            )));
        }
        let pad = model.manifest().tokens.pad.or(model.manifest().tokens.eos.first().copied()).unwrap_or(0);
        self.lengths = prompts.iter().map(Vec::len).collect();
        self.columns = 0;
        let padding = model.padding;
        let ids = self.bindings.write::<i64>(self.ids, self.batch * columns);
        for (row, prompt) in ids.chunks_exact_mut(columns).zip(prompts) {
            row.fill(i64::from(pad));
            let start = if padding == Padding::Left { columns - prompt.len() } else { 0 };
            for (slot, id) in row[start..].iter_mut().zip(prompt) {
                *slot = i64::from(*id);
            }
        }
        let positions = self.bindings.write::<i64>(self.positions, self.batch * columns);
        for (row, length) in positions.chunks_exact_mut(columns).zip(&self.lengths) {
            let start = if padding == Padding::Left { columns - length } else { 0 };
            for (column, slot) in row.iter_mut().enumerate() {
                // Padding gets position 1, as Hugging Face's masked positions do; it is never attended to.
                *slot = if (start..start + length).contains(&column) { (column - start) as i64 } else { 1 };
            }
        }
        let selected = self.bindings.write::<i64>(self.selected, self.batch);
        for (slot, length) in selected.iter_mut().zip(&self.lengths) {
            *slot = if padding == Padding::Left { columns as i64 - 1 } else { *length as i64 - 1 };
        }
        self.run(model, columns)
    }

    /// Appends one token to every row and runs the model. The logits of the new tokens are ready afterwards.
    ///
    /// # Errors
    /// A full cache, a failed run.
    pub fn step(&mut self, model: &mut Model, tokens: &[u32]) -> Result<()> {
        assert_eq!(tokens.len(), self.batch, "one token a sequence");
        if self.columns >= self.capacity {
            return Err(Error::new(format!("the cache of {} tokens is full", self.capacity)));
        }
        for (slot, token) in self.bindings.write::<i64>(self.ids, self.batch).iter_mut().zip(tokens) {
            *slot = i64::from(*token);
        }
        for (slot, length) in self.bindings.write::<i64>(self.positions, self.batch).iter_mut().zip(&mut self.lengths) {
            *slot = *length as i64;
            *length += 1;
        }
        self.bindings.write::<i64>(self.selected, self.batch).fill(0);
        self.run(model, 1)
    }

    /// The logits of every row's last token: `[batch, vocabulary]`.
    pub fn logits(&self) -> ArrayView2<'_, f32> {
        let all: &[f32] = match &self.logits.last {
            Some(converted) => converted,
            None => self.bindings.read(self.logits.buffer, self.logits.bytes / size_of::<f32>()),
        };
        let shape = (self.batch, all.len() / self.batch);
        ArrayView2::from_shape(shape, all).expect("logits are whole rows")
    }

    fn run(&mut self, model: &mut Model, new: usize) -> Result<()> {
        let (batch, past, total) = (self.batch, self.columns, self.columns + new);
        self.write_mask(model.padding, total);
        let ports = &model.ports;
        let bindings = &mut self.bindings;
        bindings.bind_input(&ports.input_ids.name, self.ids, ports.input_ids.dtype, &[batch, new])?;
        if let Some(port) = &ports.attention_mask {
            bindings.bind_input(&port.name, self.mask, port.dtype, &[batch, total])?;
        }
        if let Some(port) = &ports.position_ids {
            bindings.bind_input(&port.name, self.positions, port.dtype, &[batch, new])?;
        }
        let vocab = model.manifest().shape.vocab_size as usize;
        let rows = if let Some(port) = &ports.logits_positions {
            bindings.bind_input(&port.name, self.selected, port.dtype, &[batch, 1])?;
            1
        } else {
            new
        };
        let bytes = batch * rows * vocab * ports.logits.dtype.size();
        if bytes > self.logits.bytes {
            self.logits.buffer = bindings.allocate(bytes)?;
            self.logits.bytes = bytes;
        }
        bindings.bind_output(&ports.logits.name, self.logits.buffer, ports.logits.dtype, &[batch, rows, vocab])?;
        for layer in &mut self.cache {
            let dims = |columns| [batch, layer.heads, columns, layer.width];
            match layer.back {
                None => {
                    let shape = dims(self.capacity);
                    bindings.bind_input(&layer.past.name, layer.front, layer.past.dtype, &shape)?;
                    bindings.bind_output(&layer.present.name, layer.front, layer.present.dtype, &shape)?;
                }
                Some(back) => {
                    bindings.bind_input(&layer.past.name, layer.front, layer.past.dtype, &dims(past))?;
                    bindings.bind_output(&layer.present.name, back, layer.present.dtype, &dims(total))?;
                    layer.back = Some(std::mem::replace(&mut layer.front, back));
                }
            }
        }
        bindings.run(&mut model.session)?;
        self.columns = total;
        self.convert_logits(model, rows, vocab);
        Ok(())
    }

    /// Right: each row's ones, then zeros; the kernel counts the ones. Left: zeros, then ones.
    fn write_mask(&mut self, padding: Padding, total: usize) {
        let mask = self.bindings.write::<i64>(self.mask, self.batch * total);
        for (row, &length) in mask.chunks_exact_mut(total).zip(&self.lengths) {
            match padding {
                Padding::Right => {
                    row[..length].fill(1);
                    row[length..].fill(0);
                }
                Padding::Left => {
                    row[..total - length].fill(0);
                    row[total - length..].fill(1);
                }
            }
        }
    }

    /// Gathers the last rows as f32 where the graph gives another type or every position.
    fn convert_logits(&mut self, model: &Model, rows: usize, vocab: usize) {
        let half_precision = model.ports.logits.dtype == Dtype::Float16;
        self.logits.last = None;
        if rows == 1 && !half_precision && self.logits.bytes == self.batch * vocab * size_of::<f32>() {
            return;
        }
        let mut last = Vec::with_capacity(self.batch * vocab);
        let count = self.batch * rows * vocab;
        for row in 0..self.batch {
            let position = match model.padding {
                Padding::Right if rows > 1 => self.lengths[row] - 1,
                _ => rows - 1,
            };
            let range = (row * rows + position) * vocab..(row * rows + position + 1) * vocab;
            if half_precision {
                let all = self.bindings.read::<half::f16>(self.logits.buffer, count);
                last.extend(all[range].iter().map(|value| value.to_f32()));
            } else {
                last.extend_from_slice(&self.bindings.read::<f32>(self.logits.buffer, count)[range]);
            }
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
