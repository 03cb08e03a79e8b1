//! Where images stand in a prompt: one token a merged patch, and positions in time, height and width (M-RoPE).

use crate::error::{Error, Result};
use crate::vision::Grid;

/// Positions of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// For each token its position in time, in height and in width.
    pub values: [Vec<i64>; 3],
    /// Position of the next token, the same on all three axes; the ones after it count on from there.
    pub next: i64,
}

impl Positions {
    /// What is added to a later token's index in the sequence: `rope_deltas` of transformers, zero or less.
    pub fn delta(&self) -> i64 {
        self.next - self.values[0].len() as i64
    }
}

/// Repeats each single `image_token` of a rendered prompt as often as its image has tokens.
///
/// # Errors
/// The prompt has room for more or fewer images than `grids` lists.
pub fn expand_image_tokens(ids: &[u32], grids: &[Grid], image_token: u32, merge_size: usize) -> Result<Vec<u32>> {
    let places = ids.iter().filter(|id| **id == image_token).count();
    if places != grids.len() {
        return Err(count_error(places, grids.len()));
    }
    let mut counts = grids.iter().map(|grid| grid.tokens(merge_size));
    let mut expanded = Vec::with_capacity(ids.len() + counts.clone().sum::<usize>());
    for &id in ids {
        let count = if id == image_token { counts.next().unwrap_or(0) } else { 1 };
        expanded.extend(std::iter::repeat_n(id, count));
    }
    Ok(expanded)
}

/// M-RoPE positions of a sequence whose image tokens are expanded, as transformers' `Qwen3VLModel.get_rope_index`.
///
/// Text counts on, alike on the three axes. An image begins at the next position: its tokens share that one in time,
/// and count rows in height and columns in width from it. What follows begins behind the longer side.
///
/// # Errors
/// More or fewer images than `grids` lists; an image whose tokens do not follow one another in the right number.
pub fn positions(ids: &[u32], grids: &[Grid], image_token: u32, merge_size: usize) -> Result<Positions> {
    let mut values = std::array::from_fn(|_| Vec::with_capacity(ids.len()));
    let mut next = 0;
    let mut at = 0;
    let mut used = 0;
    while at < ids.len() {
        if ids[at] != image_token {
            values.iter_mut().for_each(|axis| axis.push(next));
            next += 1;
            at += 1;
            continue;
        }
        let run = ids[at..].iter().take_while(|id| **id == image_token).count();
        let Some(grid) = grids.get(used) else {
            return Err(count_error(used + 1, grids.len()));
        };
        let tokens = grid.tokens(merge_size);
        if tokens == 0 || run < tokens {
            return Err(Error::new(format!(
                "image {} becomes {tokens} tokens, and {run} stand at token {at} of the prompt",
                used + 1
            ))
            .hint("write one image token for each image into the prompt: it is repeated as often as needed"));
        }
        image_positions(&mut values, next, *grid, merge_size);
        next += (grid.height.max(grid.width) / merge_size) as i64;
        at += tokens;
        used += 1;
    }
    if used != grids.len() {
        return Err(count_error(used, grids.len()));
    }
    Ok(Positions { values, next })
}

fn image_positions(values: &mut [Vec<i64>; 3], start: i64, grid: Grid, merge_size: usize) {
    let (rows, columns) = ((grid.height / merge_size) as i64, (grid.width / merge_size) as i64);
    for time in 0..grid.time as i64 {
        for row in 0..rows {
            for column in 0..columns {
                for (axis, offset) in values.iter_mut().zip([time, row, column]) {
                    axis.push(start + offset);
                }
            }
        }
    }
}

fn count_error(places: usize, images: usize) -> Error {
    Error::new(format!("the prompt has a place for {places} image(s), and {images} image(s) are given"))
        .hint("give one image for each place, in the order of the prompt")
}
