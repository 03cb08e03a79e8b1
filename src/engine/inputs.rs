//! What a run is given beside the cache: token ids, mask, positions, the rows of logits, image features.

use crate::engine::model::Model;
use crate::engine::prompt::Prompt;
use crate::engine::vision::Features;
use crate::error::{Error, Result};
use crate::package::Padding;
use crate::runtime::{Bindings, BufferId};

/// Time, row and column of a token: M-RoPE's axes.
const MROPE_AXES: usize = 3;

/// Buffers for a batch, and how far its rows are.
#[derive(Debug)]
pub(super) struct Inputs {
    batch: usize,
    /// Tokens of each row, padding excluded.
    lengths: Vec<usize>,
    /// How far a row's next position is from its length: an image takes fewer positions than tokens.
    offsets: Vec<i64>,
    ids: BufferId,
    mask: BufferId,
    positions: BufferId,
    selected: BufferId,
    features: FeatureBuffer,
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
            lengths: Vec::new(),
            offsets: Vec::new(),
            ids: bindings.allocate(cells)?,
            mask: bindings.allocate(cells)?,
            positions: bindings.allocate(MROPE_AXES * cells)?,
            selected: bindings.allocate(batch * size_of::<i64>())?,
            features: FeatureBuffer { id: bindings.allocate(0)?, bytes: 0, rows: 0 },
        })
    }

    /// Tokens of a row.
    pub fn length(&self, row: usize) -> usize {
        self.lengths[row]
    }

    /// Writes whole prompts, padded to `columns`.
    pub fn write_prompts(
        &mut self,
        bindings: &mut Bindings,
        model: &Model,
        prompts: &[Prompt],
        columns: usize,
        features: &Features,
    ) -> Result<()> {
        let padding = model.padding;
        self.lengths = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
        let starts: Vec<usize> =
            self.lengths.iter().map(|length| if padding == Padding::Left { columns - length } else { 0 }).collect();

        let tokens = &model.manifest().tokens;
        let pad = tokens.pad.or(tokens.eos.first().copied()).unwrap_or(0);
        let ids = bindings.write::<i64>(self.ids, self.batch * columns);
        ids.fill(i64::from(pad));
        for ((row, prompt), start) in ids.chunks_exact_mut(columns).zip(prompts).zip(&starts) {
            for (slot, id) in row[*start..].iter_mut().zip(&prompt.tokens) {
                *slot = i64::from(*id);
            }
        }
        let selected = bindings.write::<i64>(self.selected, self.batch);
        for ((slot, start), length) in selected.iter_mut().zip(&starts).zip(&self.lengths) {
            *slot = (start + length) as i64 - 1;
        }
        self.write_prompt_positions(bindings, model, prompts, columns, &starts)?;
        self.write_features(bindings, model, prompts, features)
    }

    fn write_prompt_positions(
        &mut self,
        bindings: &mut Bindings,
        model: &Model,
        prompts: &[Prompt],
        columns: usize,
        starts: &[usize],
    ) -> Result<()> {
        let positions = bindings.write::<i64>(self.positions, position_axes(model) * self.batch * columns);
        // Padding gets position 1, as Hugging Face's masked positions do; it is never attended to.
        positions.fill(1);
        self.offsets = vec![0; self.batch];
        for (row, (prompt, &start)) in prompts.iter().zip(starts).enumerate() {
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

    /// Writes one more token a row.
    pub fn write_tokens(&mut self, bindings: &mut Bindings, model: &Model, tokens: &[u32]) {
        for (slot, token) in bindings.write::<i64>(self.ids, self.batch).iter_mut().zip(tokens) {
            *slot = i64::from(*token);
        }
        for axis in
            bindings.write::<i64>(self.positions, position_axes(model) * self.batch).chunks_exact_mut(self.batch)
        {
            for ((slot, length), offset) in axis.iter_mut().zip(&self.lengths).zip(&self.offsets) {
                *slot = *length as i64 + offset;
            }
        }
        self.lengths.iter_mut().for_each(|length| *length += 1);
        bindings.write::<i64>(self.selected, self.batch).fill(0);
        self.features.rows = 0;
    }

    /// Writes the mask over `total` columns and binds everything for a run of `new` ones.
    pub fn bind(&self, bindings: &mut Bindings, model: &Model, new: usize, total: usize) -> Result<()> {
        let (ports, batch) = (&model.ports, self.batch);
        bindings.bind_input(&ports.input_ids.name, self.ids, ports.input_ids.dtype, &[batch, new])?;
        if let Some(port) = &ports.attention_mask {
            self.write_mask(bindings, model.padding, total);
            bindings.bind_input(&port.name, self.mask, port.dtype, &[batch, total])?;
        }
        if let Some(port) = &ports.position_ids {
            let dims = [MROPE_AXES, batch, new];
            bindings.bind_input(&port.name, self.positions, port.dtype, &dims[usize::from(!ports.mrope)..])?;
        }
        if let Some(port) = &ports.logits_positions {
            bindings.bind_input(&port.name, self.selected, port.dtype, &[batch, 1])?;
        }
        if let (Some(port), Some(image)) = (&ports.image_features, &model.manifest().image) {
            let dims = [self.features.rows, image.feature_width as usize];
            bindings.bind_input(&port.name, self.features.id, port.dtype, &dims)?;
        }
        Ok(())
    }

    /// Right: each row's ones, then zeros; the kernel counts the ones. Left: zeros, then ones.
    fn write_mask(&self, bindings: &mut Bindings, padding: Padding, total: usize) {
        let mask = bindings.write::<i64>(self.mask, self.batch * total);
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
}

/// Positions that the graph takes of a token.
fn position_axes(model: &Model) -> usize {
    if model.ports.mrope { MROPE_AXES } else { 1 }
}
