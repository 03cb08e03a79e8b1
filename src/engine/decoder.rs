//! Prefill and decode of one batch: one group of sequences, or several that take turns at the model's parts.
//!
//! Several groups are how a model that does not fit in memory serves a large batch: a part's weights are read once and
//! applied to every group before the next part's are read.

use std::sync::{Arc, Mutex, PoisonError};

use ndarray::ArrayView2;

use crate::engine::group::{Group, Mark, Place, Visit};
use crate::engine::model::Model;
use crate::engine::prompt::Prompt;
use crate::engine::vision::Features;
use crate::error::{Error, Result};
use crate::loader::spill::{Spill, Traffic};

/// A batch in progress.
#[derive(Debug)]
pub struct Decoder {
    groups: Vec<Group>,
    batch: usize,
    vocab: usize,
    /// The last rows' logits of several groups, one after the other.
    gathered: Vec<f32>,
    /// Where what waits is.
    spill: Option<Arc<Mutex<Spill>>>,
    /// The most bytes of hidden states in memory after a turn.
    most_hidden: usize,
}

/// Where a batch was, to come back to.
#[derive(Debug)]
pub struct Checkpoint(Vec<Mark>);

impl Decoder {
    /// Allocates for `batch` sequences of at most `capacity` tokens (prompt and generated).
    ///
    /// # Errors
    /// A capacity beyond the model's context, memory that cannot be had.
    pub fn new(model: &Model, batch: usize, capacity: usize) -> Result<Self> {
        let size = model.micro_batch.unwrap_or(batch).clamp(1, batch.max(1));
        let mut groups = Vec::with_capacity(batch.div_ceil(size));
        let spill = model.spill(batch, capacity)?;
        let mut left = batch;
        loop {
            groups.push(Group::new(model, left.min(size), capacity, spill.as_ref())?);
            left -= left.min(size);
            if left == 0 {
                break;
            }
        }
        if let Some(spill) = spill.as_ref().filter(|_| groups.len() > 1) {
            groups.iter_mut().for_each(|group| group.offload_hidden(model, spill));
        }
        Ok(Self {
            groups,
            batch,
            vocab: model.manifest().shape.vocab_size as usize,
            gathered: Vec::new(),
            spill,
            most_hidden: 0,
        })
    }

    /// New decoders of the sequences of others, which are used up: each is a list of decoders and rows in them. Only where
    /// the model regroups.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub(super) fn regroup(
        model: &Model,
        from: Vec<Self>,
        capacity: usize,
        into: &[Vec<(usize, usize)>],
    ) -> Result<Vec<Self>> {
        assert!(model.regroups(), "caches that can be copied");
        let mut places: Vec<Vec<Place>> = Vec::with_capacity(from.len());
        let mut groups = Vec::new();
        for decoder in from {
            let mut rows = Vec::with_capacity(decoder.batch);
            for group in decoder.groups {
                rows.extend((0..group.batch()).map(|row| (groups.len(), row)));
                groups.push(group);
            }
            places.push(rows);
        }
        // Sequences go through a part together as in any decoder.
        let size = |batch: usize| model.micro_batch.unwrap_or(batch).clamp(1, batch.max(1));
        let parts = |rows: &Vec<(usize, usize)>| {
            let rows: Vec<Place> = rows.iter().map(|(decoder, row)| places[*decoder][*row]).collect();
            rows.chunks(size(rows.len())).map(<[Place]>::to_vec).collect::<Vec<_>>()
        };
        let parts: Vec<Vec<Vec<Place>>> = into.iter().map(parts).collect();
        let mut made = Group::regroup(model, groups, capacity, &parts.concat())?.into_iter();
        let vocab = model.manifest().shape.vocab_size as usize;
        let decoders = parts.iter().zip(into).map(|(parts, rows)| Self {
            groups: made.by_ref().take(parts.len()).collect(),
            batch: rows.len(),
            vocab,
            gathered: Vec::new(),
            spill: None,
            most_hidden: 0,
        });
        Ok(decoders.collect())
    }

    /// Writes every page of the cache once, so that later runs do not pay for page faults and its memory shows.
    pub fn touch_cache(&mut self) {
        self.groups.iter_mut().for_each(Group::touch_cache);
    }

    /// Bytes that went to disk and came back since the decoder was made; `None` where nothing of it waits on disk.
    pub fn traffic(&self) -> Option<Traffic> {
        self.spill.as_ref().map(|spill| spill.lock().unwrap_or_else(PoisonError::into_inner).traffic())
    }

    /// The most bytes of hidden states that were in memory between turns of groups, since the decoder was made.
    pub fn most_hidden_bytes(&self) -> usize {
        self.most_hidden
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
        let (mut prompts, mut tails, mut left) = (prompts, tails, features.clone());
        for group in &mut self.groups {
            let (own, later) = prompts.split_at(group.batch());
            let (own_tails, later_tails) = tails.split_at(group.batch());
            // The last group gets what is left: it sees when that is too much.
            let places = if later.is_empty() { left.rows() } else { model.image_tokens(own) };
            let own_features = left.take_rows(places);
            group.begin_prompts(model, own, &own_features, own_tails)?;
            (prompts, tails) = (later, later_tails);
        }
        self.run(model)
    }

    /// Appends one token to every row and runs the model. The logits of the new tokens are ready afterwards.
    ///
    /// # Errors
    /// A full cache, a failed run.
    pub fn step(&mut self, model: &mut Model, tokens: &[u32]) -> Result<()> {
        assert_eq!(tokens.len(), self.batch, "one token a sequence");
        let mut tokens = tokens;
        for group in &mut self.groups {
            let (own, others) = tokens.split_at(group.batch());
            let rows: Vec<&[u32]> = own.chunks_exact(1).collect();
            group.begin_tokens(model, &rows, &vec![1; rows.len()])?;
            tokens = others;
        }
        self.run(model)
    }

    /// Appends several tokens to the one row of a batch of one. The logits of its last `tail` tokens are ready
    /// afterwards.
    ///
    /// # Errors
    /// A full cache, a failed run.
    pub fn extend(&mut self, model: &mut Model, tokens: &[u32], tail: usize) -> Result<()> {
        assert_eq!(self.batch, 1, "kernels append several tokens to one row only");
        self.groups[0].begin_tokens(model, &[tokens], &[tail])?;
        self.run(model)
    }

    /// Remembers where the batch is; `None` where its caches wait on disk. Where steps make the caches anew (`append`
    /// mode), they are copied.
    ///
    /// # Errors
    /// A copy out of a device's memory that fails.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>> {
        let marks: Option<Vec<_>> = self.groups.iter().map(Group::checkpoint).collect::<Result<_>>()?;
        Ok(marks.map(Checkpoint))
    }

    /// Goes back to where the batch was; the logits stay those of the last run.
    ///
    /// # Errors
    /// A copy into a device's memory that fails.
    pub fn rewind(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.groups.iter_mut().zip(&checkpoint.0).try_for_each(|(group, mark)| group.rewind(mark))
    }

    /// Forgets all but the first tokens of the one row of a batch of one, whose cache is kept in place.
    pub(super) fn keep(&mut self, tokens: usize) {
        assert_eq!(self.batch, 1, "a cache that can be cut");
        self.groups[0].keep(tokens);
    }

    /// Runs what might follow each row, without keeping it in the cache; `visit` gets, for each row and each of its
    /// tokens, the logits after it. Rows may have different numbers of tokens, or none.
    ///
    /// # Errors
    /// A full cache, a failed run, what `visit` returns.
    pub(super) fn try_out(&mut self, model: &mut Model, rows: &[&[u32]], visit: &mut Visit) -> Result<()> {
        let mut first = 0;
        for group in &mut self.groups {
            let own = &rows[first..first + group.batch()];
            group.try_out(model, own, &mut |row, index, logits| visit(first + row, index, logits))?;
            first += own.len();
        }
        Ok(())
    }

    /// The logits of a row after one of the tokens that were wanted, from 0; `scratch` is used where they must be
    /// converted.
    pub fn tail_logits<'a>(&'a self, row: usize, index: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let mut row = row;
        for group in &self.groups {
            if row < group.batch() {
                return group.tail_logits(row, index, scratch);
            }
            row -= group.batch();
        }
        panic!("a row beyond the batch");
    }

    /// The values of a cache tensor, by the name of its past: sequences, heads, columns that are filled, width.
    ///
    /// # Errors
    /// A tensor that does not exist, waits on disk or is quantized, a copy out of a device's memory that fails.
    pub fn cached(&self, past: &str) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for group in &self.groups {
            values.extend(group.cached(past)?);
        }
        Ok(values)
    }

    /// The logits of every row's last token: `[batch, vocabulary]`.
    pub fn logits(&self) -> ArrayView2<'_, f32> {
        let all = match self.groups.as_slice() {
            [only] => only.last_logits(),
            _ => &self.gathered,
        };
        ArrayView2::from_shape((self.batch, self.vocab), all).expect("logits are whole rows")
    }

    /// Runs what the groups began: each part over every group before the next part.
    fn run(&mut self, model: &mut Model) -> Result<()> {
        let (parts, groups) = (model.parts.len(), self.groups.len());
        let mut weights = None;
        for turn in 0..parts * groups {
            let (part, group) = (turn / groups, turn % groups);
            if group == 0 {
                // The last part's go before this one's are wanted: their memory may be the same.
                drop(weights.take());
                weights = model.feed(part)?;
            }
            let next = turn + 1;
            if next < parts * groups {
                self.groups[next % groups].prefetch(model, next / groups);
            }
            self.groups[group].run_part(model, part, weights.as_ref())?;
            // What the group before sent out has left by the time that the one after comes in.
            self.groups[(group + groups - 1) % groups].settle()?;
            let hidden = self.groups.iter().map(Group::hidden_bytes).sum();
            self.most_hidden = self.most_hidden.max(hidden);
        }
        self.groups.iter_mut().for_each(|group| group.finish(true));
        self.gathered.clear();
        if self.groups.len() > 1 {
            self.groups.iter().for_each(|group| self.gathered.extend_from_slice(group.last_logits()));
        }
        model.keep_within_budget()
    }
}
