//! What a run is given beside the cache: token ids, mask, positions, the rows of logits, image features.

use crate::engine::fixed::Fixed;
use crate::engine::model::Model;
use crate::engine::prompt::Prompt;
use crate::engine::vision::Features;
use crate::error::{Error, Result};
use crate::package::{Padding, Port};
use crate::runtime::{Bindings, BufferId};

/// Time, row and column of a token: M-RoPE's axes.
const MROPE_AXES: usize = 3;

/// Buffers for a batch, and how far its rows are.
#[derive(Debug)]
pub(super) struct Inputs {
    batch: usize,
    /// Column of each row's first token: padding on the left stands before it.
    starts: Vec<usize>,
    /// Tokens of each row, padding excluded.
    lengths: Vec<usize>,
    /// How far a row's next position is from its length: an image takes fewer positions than tokens.
    offsets: Vec<i64>,
    ids: BufferId,
    mask: BufferId,
    positions: BufferId,
    /// `[batch, positions]`, the positions of the run at hand whose logits are wanted.
    selected: BufferId,
    wanted: Wanted,
    features: FeatureBuffer,
}

/// The positions whose logits are wanted: of each row the last ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// How many, of each row.
    pub tails: Vec<usize>,
    /// The first of them among the run's columns, of each row.
    pub first: Vec<usize>,
}

impl Wanted {
    /// The most that a row wants; rows that want less repeat their last position.
    pub fn width(&self) -> usize {
        self.tails.iter().copied().max().unwrap_or(0)
    }
}

/// Image features of the run at hand; none of most.
#[derive(Debug)]
struct FeatureBuffer {
    id: BufferId,
    bytes: usize,
    rows: usize,
}

impl Inputs {
    /// Allocates for `batch` rows of at most `capacity` tokens.
    pub fn new(bindings: &mut Bindings, batch: usize, capacity: usize) -> Result<Self> {
        let cells = batch * capacity * size_of::<i64>();
        Ok(Self {
            batch,
            starts: Vec::new(),
            lengths: Vec::new(),
            offsets: Vec::new(),
            ids: bindings.allocate(cells)?,
            mask: bindings.allocate(cells)?,
            positions: bindings.allocate(MROPE_AXES * cells)?,
            selected: bindings.allocate(cells)?,
            wanted: Wanted::default(),
            features: FeatureBuffer { id: bindings.allocate(0)?, bytes: 0, rows: 0 },
        })
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// How far a row is that has no padding before it: its tokens, and how far its next position is from them.
    pub fn progress(&self, row: usize) -> (usize, i64) {
        assert_eq!(self.starts[row], 0, "a row that begins at the first column");
        (self.lengths[row], self.offsets[row])
    }

    /// Goes on with rows of other batches.
    pub fn go_on(&mut self, rows: impl Iterator<Item = (usize, i64)>) {
        (self.lengths, self.offsets) = rows.unzip();
        assert_eq!(self.lengths.len(), self.batch, "as many rows as were allocated for");
        self.starts = vec![0; self.batch];
    }

    /// Takes the rows back to lengths that they had before.
    pub fn rewind(&mut self, lengths: &[usize]) {
        self.lengths.copy_from_slice(lengths);
    }

    /// The positions of the last run whose logits were wanted.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Writes whole prompts, padded to `columns`; the logits of each row's last `tails` tokens are wanted.
    pub fn write_prompts(
        &mut self,
        bindings: &mut Bindings,
        model: &Model,
        prompts: &[Prompt],
        columns: usize,
        features: &Features,
        tails: &[usize],
    ) -> Result<()> {
        let padding = model.padding;
        self.lengths = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
        self.starts =
            self.lengths.iter().map(|length| if padding == Padding::Left { columns - length } else { 0 }).collect();

        let tokens = &model.manifest().tokens;
        let pad = tokens.pad.or(tokens.eos.first().copied()).unwrap_or(0);
        let ids = bindings.write::<i64>(self.ids, self.batch * columns);
        ids.fill(i64::from(pad));
        for ((row, prompt), start) in ids.chunks_exact_mut(columns).zip(prompts).zip(&self.starts) {
            for (slot, id) in row[*start..].iter_mut().zip(&prompt.tokens) {
                *slot = i64::from(*id);
            }
        }
        let ends: Vec<usize> = self.starts.iter().zip(&self.lengths).map(|(start, length)| start + length).collect();
        self.want(bindings, &ends, tails);
        self.write_prompt_positions(bindings, model, prompts, columns)?;
        self.write_features(bindings, model, prompts, features)
    }

    /// Wants the logits of the last `tails` columns before `ends`, of each row.
    fn want(&mut self, bindings: &mut Bindings, ends: &[usize], tails: &[usize]) {
        let first = ends.iter().zip(tails).map(|(end, tail)| end - tail).collect();
        self.wanted = Wanted { tails: tails.to_vec(), first };
        let width = self.wanted.width();
        let slots = bindings.write::<i64>(self.selected, self.batch * width);
        for ((row, end), tail) in slots.chunks_exact_mut(width).zip(ends).zip(tails) {
            for (index, slot) in row.iter_mut().enumerate() {
                *slot = (end - tail + index.min(tail.saturating_sub(1))) as i64;
            }
        }
    }

    fn write_prompt_positions(
        &mut self,
        bindings: &mut Bindings,
        model: &Model,
        prompts: &[Prompt],
        columns: usize,
    ) -> Result<()> {
        let positions = bindings.write::<i64>(self.positions, position_axes(model) * self.batch * columns);
        // Padding gets position 1, as Hugging Face's masked positions do; it is never attended to.
        positions.fill(1);
        self.offsets = vec![0; self.batch];
        for (row, (prompt, &start)) in prompts.iter().zip(&self.starts).enumerate() {
            let length = prompt.tokens.len();
            let mut slots = positions
                .chunks_exact_mut(columns)
                .skip(row)
                .step_by(self.batch)
                .map(|row| &mut row[start..][..length]);
            match &model.manifest().image {
                Some(image) if model.ports.mrope => {
                    let found = prompt.positions(image)?;
                    for (slots, axis) in slots.zip(&found.values) {
                        slots.copy_from_slice(axis);
                    }
                    self.offsets[row] = found.delta();
                }
                _ => {
                    for (position, slot) in slots.next().into_iter().flatten().enumerate() {
                        *slot = position as i64;
                    }
                }
            }
        }
        Ok(())
    }

    /// The graph takes the rows that it has image tokens for, and would not notice more of them.
    fn write_features(
        &mut self,
        bindings: &mut Bindings,
        model: &Model,
        prompts: &[Prompt],
        features: &Features,
    ) -> Result<()> {
        let (Some(port), Some(image)) = (&model.ports.image_features, &model.manifest().image) else { return Ok(()) };
        let tokens = prompts.iter().flat_map(|prompt| &prompt.tokens);
        let places = tokens.filter(|token| **token == image.image_token).count();
        if places != features.rows() {
            let message = format!(
                "the prompts have places for {places} rows of image features, and {} are given",
                features.rows()
            );
            return Err(Error::new(message).hint("give one image for each of the prompt's places"));
        }
        self.features.rows = features.rows();
        let count = features.values.len();
        let bytes = count * port.dtype.size();
        if bytes > self.features.bytes {
            self.features.id = bindings.allocate(bytes)?;
            self.features.bytes = bytes;
        }
        bindings.write_f32(self.features.id, port.dtype, &features.values);
        Ok(())
    }

    /// Writes `new` more tokens a row, fewer where a row has fewer; the logits of each row's last `tails` are wanted.
    pub fn write_tokens(
        &mut self,
        bindings: &mut Bindings,
        model: &Model,
        rows: &[&[u32]],
        new: usize,
        tails: &[usize],
    ) {
        let ids = bindings.write::<i64>(self.ids, self.batch * new);
        ids.fill(0);
        for (slots, tokens) in ids.chunks_exact_mut(new).zip(rows) {
            for (slot, token) in slots.iter_mut().zip(*tokens) {
                *slot = i64::from(*token);
            }
        }
        let positions = bindings.write::<i64>(self.positions, position_axes(model) * self.batch * new);
        for axis in positions.chunks_exact_mut(self.batch * new) {
            for ((slots, length), offset) in axis.chunks_exact_mut(new).zip(&self.lengths).zip(&self.offsets) {
                for (index, slot) in slots.iter_mut().enumerate() {
                    *slot = (length + index) as i64 + offset;
                }
            }
        }
        self.lengths.iter_mut().zip(rows).for_each(|(length, tokens)| *length += tokens.len());
        let ends: Vec<usize> = rows.iter().map(|tokens| tokens.len()).collect();
        self.want(bindings, &ends, tails);
        self.features.rows = 0;
    }

    /// Writes what depends on the number of columns in the cache and in the run: the mask.
    pub fn prepare(&self, bindings: &mut Bindings, model: &Model, total: usize) {
        if model.ports.attention_mask.is_some() {
            self.write_mask(bindings, total);
        }
    }

    /// Binds what a part of the model takes, for a run of `new` columns and a mask over `total`; in a fixed step where
    /// it was copied to.
    pub fn bind(
        &self,
        bindings: &mut Bindings,
        model: &Model,
        place: usize,
        (new, total): (usize, usize),
        fixed: Option<&Fixed>,
    ) -> Result<()> {
        let (ports, batch) = (&model.ports, self.batch);
        let part = &model.parts[place];
        let mut bind = |port: &Port, id: BufferId, dims: &[usize]| match part.inputs.contains(&port.name) {
            true => {
                let id = fixed.map_or(id, |fixed| fixed.place(id));
                bindings.bind_input(place, &port.name, id, port.dtype, dims)
            }
            false => Ok(()),
        };
        bind(&ports.input_ids, self.ids, &[batch, new])?;
        if let Some(port) = &ports.attention_mask {
            bind(port, self.mask, &[batch, total])?;
        }
        if let Some(port) = &ports.position_ids {
            let dims = [MROPE_AXES, batch, new];
            bind(port, self.positions, &dims[usize::from(!ports.mrope)..])?;
        }
        if let Some(port) = &ports.logits_positions {
            bind(port, self.selected, &[batch, self.wanted.width()])?;
        }
        if let (Some(port), Some(image)) = (&ports.image_features, &model.manifest().image) {
            bind(port, self.features.id, &[self.features.rows, image.feature_width as usize])?;
        }
        Ok(())
    }

    /// The buffers of a step of one token a row, with a mask over `capacity` columns, and their bytes.
    pub fn of_step(&self, model: &Model, capacity: usize) -> Vec<(BufferId, usize)> {
        let one = self.batch * size_of::<i64>();
        vec![
            (self.ids, one),
            (self.mask, capacity * one),
            (self.positions, position_axes(model) * one),
            (self.selected, one),
        ]
    }

    /// Ones where a row has tokens; the kernels of right padding count them.
    fn write_mask(&self, bindings: &mut Bindings, total: usize) {
        let mask = bindings.write::<i64>(self.mask, self.batch * total);
        mask.fill(0);
        for ((row, &start), &length) in mask.chunks_exact_mut(total).zip(&self.starts).zip(&self.lengths) {
            row[start..start + length].fill(1);
        }
    }
}

/// Positions that the graph takes of a token.
fn position_axes(model: &Model) -> usize {
    if model.ports.mrope { MROPE_AXES } else { 1 }
}
