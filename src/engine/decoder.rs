//! Prefill and decode of one batch, with the key/value cache in buffers of our own.
//!
//! All memory is allocated before the first run: the cache for its full capacity, and what `inputs.rs` writes. In
//! `in_place` mode one buffer is bound as past and present and nothing is copied; a step writes the new token ids,
//! extends the mask, and runs. In `append` mode two buffers take turns and the provider copies.

use ndarray::ArrayView2;

use crate::cell::Dtype;
use crate::engine::inputs::Inputs;
use crate::engine::model::Model;
use crate::engine::plan::CacheMode;
use crate::engine::prompt::Prompt;
use crate::engine::vision::Features;
use crate::error::{Error, Result};
use crate::package::{Dim, Padding, Port};
use crate::runtime::{Bindings, BufferId};

/// A batch in progress.
#[derive(Debug)]
pub struct Decoder {
    bindings: Bindings,
    batch: usize,
    capacity: usize,
    /// Columns in the cache, padding included.
    columns: usize,
    inputs: Inputs,
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
        let inputs = Inputs::new(&mut bindings, batch, capacity)?;
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
        Ok(Self { bindings, batch, capacity, columns: 0, inputs, logits, cache })
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
    /// last token are ready afterwards. `features` are those of the prompts' images ([`Model::see`]).
    ///
    /// # Errors
    /// Empty prompts, a batch of another size, a prompt beyond the capacity, features of other images, a failed run.
    pub fn prefill(&mut self, model: &mut Model, prompts: &[Prompt], features: &Features) -> Result<()> {
        if prompts.len() != self.batch {
            return Err(Error::new(format!("{} prompts for a batch of {}", prompts.len(), self.batch)));
        }
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
        self.columns = 0;
        self.inputs.write_prompts(&mut self.bindings, model, prompts, columns, features)?;
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
        self.inputs.write_tokens(&mut self.bindings, model, tokens);
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
        self.inputs.bind(&mut self.bindings, model, new, total)?;
        let ports = &model.ports;
        let bindings = &mut self.bindings;
        let vocab = model.manifest().shape.vocab_size as usize;
        let rows = if model.computes_selected_logits() { 1 } else { new };
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

    /// Gathers the last rows as f32 where the graph gives another type or every position.
    fn convert_logits(&mut self, model: &Model, rows: usize, vocab: usize) {
        let half_precision = model.ports.logits.dtype == Dtype::Float16;
        self.logits.last = None;
        if rows == 1 && !half_precision && self.logits.bytes == self.batch * vocab * size_of::<f32>() {
            return;
        }
        let mut last = Vec::with_capacity(self.batch * vocab);
        for row in 0..self.batch {
            let position = match model.padding {
                Padding::Right if rows > 1 => self.inputs.length(row) - 1,
                _ => rows - 1,
            };
            let range = (row * rows + position) * vocab..(row * rows + position + 1) * vocab;
            self.bindings.read_f32(self.logits.buffer, model.ports.logits.dtype, range, &mut last);
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
