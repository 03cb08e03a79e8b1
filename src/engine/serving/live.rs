//! A model as what the loop over a queue runs on.

use std::time::Instant;

use super::run::{Machine, Row};
use crate::engine::decoder::Decoder;
use crate::engine::model::Model;
use crate::engine::prompt::Prompt;
use crate::error::Result;
use crate::loader::held;
use crate::loader::spill::Traffic;

/// What is done when sequences have new logits: gets them, and the decoder; returns what is fed next.
pub(super) type Each<'a> = dyn FnMut(&[Row], &Decoder) -> Result<Vec<u32>> + 'a;

/// A decoder that has nothing to do, for the next sequences of the same number.
#[derive(Debug)]
pub(super) struct Kept {
    decoder: Decoder,
    size: usize,
    capacity: usize,
}

/// A queue of prompts and their model.
pub(super) struct Live<'a> {
    pub model: &'a mut Model,
    pub prompts: &'a [Prompt],
    /// Tokens of the longest sequence.
    pub capacity: usize,
    pub start: Instant,
    pub each: &'a mut Each<'a>,
    pub kept: Option<Kept>,
    pub traffic: Option<Traffic>,
}

pub(super) struct Batch {
    kept: Kept,
    /// What is fed next.
    fed: Vec<u32>,
    /// What had gone to disk of the decoder's before.
    went: Option<Traffic>,
}

impl Live<'_> {
    /// A decoder of that size: the last one, or a new one in its place.
    fn decoder(&mut self, size: usize) -> Result<Kept> {
        // Before the next one is allocated: two need not fit at once.
        match self.kept.take().filter(|kept| kept.size == size && kept.capacity >= self.capacity) {
            Some(kept) => Ok(kept),
            None => {
                let mut decoder = Decoder::new(self.model, size, self.capacity)?;
                decoder.touch_cache();
                Ok(Kept { decoder, size, capacity: self.capacity })
            }
        }
    }
}

impl Machine for Live<'_> {
    type Batch = Batch;

    fn begin(&mut self, rows: &[Row]) -> Result<Batch> {
        let (first, last) = (rows[0].sequence, rows[rows.len() - 1].sequence);
        let prompts = &self.prompts[first..=last];
        let mut kept = self.decoder(rows.len())?;
        let went = kept.decoder.traffic();
        let features = self.model.see(prompts)?;
        kept.decoder.prefill(self.model, prompts, &features)?;
        let fed = (self.each)(rows, &kept.decoder)?;
        Ok(Batch { kept, fed, went })
    }

    fn step(&mut self, batch: &mut Batch, rows: &[Row]) -> Result<()> {
        batch.kept.decoder.step(self.model, &batch.fed)?;
        let after: Vec<Row> = rows.iter().map(|row| Row { tokens: row.tokens + 1, ..*row }).collect();
        batch.fed = (self.each)(&after, &batch.kept.decoder)?;
        Ok(())
    }

    fn regroup(&mut self, from: Vec<Batch>, into: &[Vec<(usize, usize)>]) -> Result<Vec<Batch>> {
        let (decoders, fed): (Vec<Decoder>, Vec<Vec<u32>>) =
            from.into_iter().map(|batch| (batch.kept.decoder, batch.fed)).unzip();
        let made = Decoder::regroup(self.model, decoders, self.capacity, into)?;
        let batches = made.into_iter().zip(into).map(|(decoder, rows)| Batch {
            kept: Kept { decoder, size: rows.len(), capacity: self.capacity },
            fed: rows.iter().map(|(batch, row)| fed[*batch][*row]).collect(),
            went: None,
        });
        Ok(batches.collect())
    }

    fn regroups(&self) -> bool {
        self.model.regroups()
    }

    fn end(&mut self, batch: Batch) {
        if let (Some(was), Some(is)) = (batch.went, batch.kept.decoder.traffic()) {
            let sum = self.traffic.get_or_insert_default();
            sum.written += is.written - was.written;
            sum.read += is.read - was.read;
        }
        self.kept = Some(batch.kept);
    }

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn held_bytes(&self) -> Result<u64> {
        held::resident_bytes()
    }

    fn read_bytes(&self) -> u64 {
        self.model.pager_statistics().map_or(0, |statistics| statistics.bytes_read)
    }
}
