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
use crate::package::{Dim, Port};
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
    /// Of the buffer, which may be longer than what the last run wrote.
    bytes: usize,
    dtype: Dtype,
    vocab: usize,
    /// Positions of each row in the buffer.
    positions: usize,
    /// Whether they are those that were wanted; otherwise they are all of the run's columns.
    selected: bool,
    /// Rows of the last position, where the buffer holds half precision or more than one position.
    last: Option<Vec<f32>>,
}

/// Gets a row, the index of a token among those whose logits were wanted, and the logits after it.
pub(super) type Visit<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<()> + 'a;

/// Where a batch was, to come back to.
#[derive(Debug)]
struct Mark {
    columns: usize,
    lengths: Vec<usize>,
    /// Copies of the caches, where going on overwrites them.
    copies: Vec<Vec<u8>>,
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
        let (vocab, dtype) = (model.manifest().shape.vocab_size as usize, model.ports.logits.dtype);
        let bytes = batch * vocab * dtype.size();
        let logits = Logits {
            buffer: bindings.allocate(bytes)?,
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
        self.prefill_wanting(model, prompts, features, &vec![1; prompts.len()])
    }

    /// The same with the logits of each row's last `tails` tokens ready afterwards ([`Decoder::tail_logits`]).
    ///
    /// # Errors
    /// As [`Decoder::prefill`].
    pub fn prefill_wanting(
        &mut self,
        model: &mut Model,
        prompts: &[Prompt],
        features: &Features,
        tails: &[usize],
    ) -> Result<()> {
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
        assert!(
            tails.len() == prompts.len() && tails.iter().zip(prompts).all(|(t, p)| (1..=p.tokens.len()).contains(t)),
            "logits of a prompt's own tokens"
        );
        self.columns = 0;
        self.inputs.write_prompts(&mut self.bindings, model, prompts, columns, features, tails)?;
        self.run(model, columns, true)
    }

    /// Appends one token to every row and runs the model. The logits of the new tokens are ready afterwards.
    ///
    /// # Errors
    /// A full cache, a failed run.
    pub fn step(&mut self, model: &mut Model, tokens: &[u32]) -> Result<()> {
        assert_eq!(tokens.len(), self.batch, "one token a sequence");
        let rows: Vec<&[u32]> = tokens.chunks_exact(1).collect();
        self.append(model, &rows, &vec![1; self.batch], true)
    }

    /// Appends several tokens to the one row of a batch of one. The logits of its last `tail` tokens are ready
    /// afterwards.
    ///
    /// # Errors
    /// A full cache, a failed run.
    pub fn extend(&mut self, model: &mut Model, tokens: &[u32], tail: usize) -> Result<()> {
        assert_eq!(self.batch, 1, "kernels append several tokens to one row only");
        self.append(model, &[tokens], &[tail], true)
    }

    /// Forgets all but the first tokens of the one row of a batch of one, whose cache is kept in place.
    pub(super) fn keep(&mut self, tokens: usize) {
        let in_place = self.cache.iter().all(|layer| layer.back.is_none());
        assert!(self.batch == 1 && in_place && tokens <= self.columns, "a cache that can be cut");
        self.columns = tokens;
        self.inputs.rewind(&[tokens]);
    }

    /// Runs what might follow each row, without keeping it in the cache; `visit` gets, for each row and each of its
    /// tokens, the logits after it. Rows may have different numbers of tokens, or none.
    ///
    /// # Errors
    /// A full cache, a failed run, what `visit` returns.
    pub(super) fn try_out(&mut self, model: &mut Model, rows: &[&[u32]], visit: &mut Visit) -> Result<()> {
        let longest = rows.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        if longest == 0 {
            return Ok(());
        }
        let mark = self.mark(model);
        let mut scratch = Vec::new();
        if self.batch == 1 || model.extends_batches() {
            let tails: Vec<usize> = rows.iter().map(|tokens| tokens.len()).collect();
            self.append(model, rows, &tails, false)?;
            for (row, tokens) in rows.iter().enumerate() {
                for index in 0..tokens.len() {
                    visit(row, index, self.tail_logits(row, index, &mut scratch))?;
                }
            }
            self.rewind(&mark);
            return Ok(());
        }
        for index in 0..longest {
            // A row that has ended is fed anything: what it leaves behind lies beyond the mark.
            let tokens: Vec<u32> = rows.iter().map(|tokens| tokens.get(index).copied().unwrap_or(0)).collect();
            self.step(model, &tokens)?;
            for (row, _) in rows.iter().enumerate().filter(|(_, tokens)| index < tokens.len()) {
                visit(row, index, self.tail_logits(row, 0, &mut scratch))?;
            }
        }
        self.rewind(&mark);
        Ok(())
    }

    /// Remembers where the batch is, for [`Decoder::try_out`] to come back to.
    fn mark(&self, model: &Model) -> Mark {
        let overwrites = model.cache_mode == CacheMode::Append && self.batch > 1 && !model.extends_batches();
        let layers = if overwrites { self.cache.as_slice() } else { &[] };
        let copies = layers.iter().map(|layer| self.bindings.read::<u8>(layer.front, self.layer_bytes(layer)).to_vec());
        Mark { columns: self.columns, lengths: self.inputs.lengths().to_vec(), copies: copies.collect() }
    }

    /// Goes back to where the batch was.
    fn rewind(&mut self, mark: &Mark) {
        for (layer, copy) in self.cache.iter().zip(&mark.copies) {
            self.bindings.write::<u8>(layer.front, copy.len()).copy_from_slice(copy);
        }
        self.columns = mark.columns;
        self.inputs.rewind(&mark.lengths);
    }

    /// Bytes of a cache tensor as far as it is filled.
    fn layer_bytes(&self, layer: &Layer) -> usize {
        self.batch * self.columns * layer.heads * layer.width * layer.past.dtype.size()
    }

    fn append(&mut self, model: &mut Model, rows: &[&[u32]], tails: &[usize], keep: bool) -> Result<()> {
        let new = rows.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        if self.columns + new > self.capacity {
            return Err(Error::new(format!("the cache of {} tokens is full", self.capacity)));
        }
        self.inputs.write_tokens(&mut self.bindings, model, rows, new, tails);
        self.run(model, new, keep)
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

    /// The logits of every row's last token: `[batch, vocabulary]`.
    pub fn logits(&self) -> ArrayView2<'_, f32> {
        let shape = (self.batch, self.logits.vocab);
        let all: &[f32] = match &self.logits.last {
            Some(converted) => converted,
            None => self.bindings.read(self.logits.buffer, shape.0 * shape.1),
        };
        ArrayView2::from_shape(shape, all).expect("logits are whole rows")
    }

    /// Runs `new` columns; without `keep`, what `append` mode writes is not taken for the past of the next run.
    fn run(&mut self, model: &mut Model, new: usize, keep: bool) -> Result<()> {
        let (batch, past, total) = (self.batch, self.columns, self.columns + new);
        self.inputs.bind(&mut self.bindings, model, new, total)?;
        let ports = &model.ports;
        let bindings = &mut self.bindings;
        let logits = &mut self.logits;
        logits.selected = model.computes_selected_logits();
        let positions = if logits.selected { self.inputs.wanted().width() } else { new };
        logits.positions = positions;
        let bytes = batch * positions * logits.vocab * logits.dtype.size();
        if bytes > logits.bytes {
            logits.buffer = bindings.allocate(bytes)?;
            logits.bytes = bytes;
        }
        bindings.bind_output(&ports.logits.name, logits.buffer, logits.dtype, &[batch, positions, logits.vocab])?;
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
                    if keep {
                        layer.back = Some(std::mem::replace(&mut layer.front, back));
                    }
                }
            }
        }
        bindings.run(&mut model.session)?;
        self.columns = total;
        self.convert_logits();
        Ok(())
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
