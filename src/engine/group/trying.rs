//! Going back to where a batch was: what might follow each sequence is tried out without keeping it (candidates of a
//! question, and their logits), or the same steps are made again.

use super::{Group, Layer};
use crate::engine::model::Model;
use crate::engine::plan::CacheMode;
use crate::error::{Error, Result};

/// Gets a row, the index of a token among those whose logits were wanted, and the logits after it.
pub(in crate::engine) type Visit<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<()> + 'a;

/// Where a batch was, to come back to.
#[derive(Debug)]
pub(in crate::engine) struct Mark {
    columns: usize,
    lengths: Vec<usize>,
    /// Copies of the caches, where going on overwrites them.
    copies: Vec<Vec<u8>>,
}

impl Group {
    /// Runs what might follow each row, without keeping it in the cache; `visit` gets, for each row and each of its
    /// tokens, the logits after it. Rows may have different numbers of tokens, or none.
    ///
    /// # Errors
    /// A full cache, a failed run, what `visit` returns.
    pub(in crate::engine) fn try_out(&mut self, model: &mut Model, rows: &[&[u32]], visit: &mut Visit) -> Result<()> {
        let longest = rows.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        if longest == 0 {
            return Ok(());
        }
        if self.offload.is_some() && self.overwrites(model) {
            return Err(Error::unsupported(
                "what may follow several sequences cannot be tried out while their caches wait on disk",
            )
            .hint("keep the caches in memory, or use a graph of the `plain` flavour"));
        }
        let mark = self.mark(model)?;
        let mut scratch = Vec::new();
        if self.batch == 1 || model.extends_batches() {
            let tails: Vec<usize> = rows.iter().map(|tokens| tokens.len()).collect();
            self.append(model, rows, &tails, false)?;
            for (row, tokens) in rows.iter().enumerate() {
                for index in 0..tokens.len() {
                    visit(row, index, self.tail_logits(row, index, &mut scratch))?;
                }
            }
            return self.rewind(&mark);
        }
        for index in 0..longest {
            // A row that has ended is fed anything: what it leaves behind lies beyond the mark.
            let tokens: Vec<u32> = rows.iter().map(|tokens| tokens.get(index).copied().unwrap_or(0)).collect();
            let fed: Vec<&[u32]> = tokens.chunks_exact(1).collect();
            self.append(model, &fed, &vec![1; self.batch], true)?;
            for (row, _) in rows.iter().enumerate().filter(|(_, tokens)| index < tokens.len()) {
                visit(row, index, self.tail_logits(row, 0, &mut scratch))?;
            }
        }
        self.rewind(&mark)
    }

    /// Whether tokens that are tried out one by one overwrite the caches before them.
    fn overwrites(&self, model: &Model) -> bool {
        model.cache_mode == CacheMode::Append && self.batch > 1 && !model.extends_batches()
    }

    /// Remembers where the batch is, for [`Group::try_out`] to come back to.
    fn mark(&self, model: &Model) -> Result<Mark> {
        self.mark_with(self.overwrites(model))
    }

    /// Remembers where the batch is, to come back to after steps that are kept; `None` where its cache waits on disk.
    pub(in crate::engine) fn checkpoint(&self) -> Result<Option<Mark>> {
        if self.offload.is_some() {
            return Ok(None);
        }
        self.mark_with(self.cache.iter().any(|layer| layer.back.is_some())).map(Some)
    }

    fn mark_with(&self, copies: bool) -> Result<Mark> {
        let layers = if copies { self.cache.as_slice() } else { &[] };
        let copies = layers.iter().map(|layer| self.kept.save(&self.bindings, layer.front, self.layer_bytes(layer)));
        let copies = copies.collect::<Result<_>>()?;
        Ok(Mark { columns: self.columns, lengths: self.inputs.lengths().to_vec(), copies })
    }

    /// Goes back to where the batch was.
    pub(in crate::engine) fn rewind(&mut self, mark: &Mark) -> Result<()> {
        for (layer, copy) in self.cache.iter().zip(&mark.copies) {
            self.kept.restore(&mut self.bindings, layer.front, copy)?;
        }
        self.forget(mark.columns);
        self.inputs.rewind(&mark.lengths);
        Ok(())
    }

    /// Bytes of a cache tensor as far as it is filled.
    fn layer_bytes(&self, layer: &Layer) -> usize {
        self.batch * self.columns * layer.heads * layer.width * layer.past.dtype.size()
    }

    fn append(&mut self, model: &mut Model, rows: &[&[u32]], tails: &[usize], keep: bool) -> Result<()> {
        self.begin_tokens(model, rows, tails)?;
        for part in 0..model.parts.len() {
            let weights = model.feed(part)?;
            if part + 1 < model.parts.len() {
                self.prefetch(model, part + 1);
            }
            self.run_part(model, part, weights.as_ref())?;
        }
        self.finish(keep);
        model.keep_within_budget()
    }
}
