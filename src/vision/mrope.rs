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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMAGE: u32 = 9;

    fn grid(height: usize, width: usize) -> Grid {
        Grid { time: 1, height, width }
    }

    #[test]
    fn counts_that_differ_name_both() {
        let grids = [grid(2, 2), grid(4, 2)];
        let message = |result: Error| format!("{}\nhint: {}", result.chain(), result.find_hint().expect("a remedy"));
        let texts = [
            message(expand_image_tokens(&[1, IMAGE, 2], &grids, IMAGE, 2).unwrap_err()),
            message(expand_image_tokens(&[1, IMAGE, 2], &[], IMAGE, 2).unwrap_err()),
            message(positions(&[1, 2], &grids, IMAGE, 2).unwrap_err()),
            message(positions(&[IMAGE, 1, IMAGE, IMAGE, IMAGE], &grids, IMAGE, 2).unwrap_err()),
            message(positions(&[IMAGE, 1, IMAGE], &grids, IMAGE, 2).unwrap_err()),
        ];
        insta::assert_snapshot!(texts.join("\n\n"));
    }

    #[test]
    fn nothing_has_no_positions() {
        let none = positions(&[], &[], IMAGE, 2).unwrap();
        assert_eq!((none.next, none.delta()), (0, 0));
    }

    proptest! {
        /// Prompts of text and images in any order, images side by side included.
        #[test]
        fn positions_count_on(
            parts in prop::collection::vec(prop::option::of((1_usize..6, 1_usize..6)), 0..12), merge in 1_usize..4,
        ) {
            let prompt: Vec<u32> = parts.iter().map(|part| if part.is_some() { IMAGE } else { 1 }).collect();
            let grids: Vec<Grid> = parts.iter().flatten().map(|(h, w)| grid(h * merge, w * merge)).collect();
            let ids = expand_image_tokens(&prompt, &grids, IMAGE, merge).unwrap();
            let made = positions(&ids, &grids, IMAGE, merge).unwrap();

            let tokens = |part: &Option<(usize, usize)>| part.map_or(1, |(h, w)| h * w);
            prop_assert_eq!(ids.len(), parts.iter().map(tokens).sum::<usize>());
            let mut at = 0;
            let mut next = 0;
            for part in &parts {
                let (rows, columns) = part.unwrap_or((1, 1));
                for offset in 0..rows * columns {
                    let here = [0, offset / columns, offset % columns].map(|offset| next + offset as i64);
                    prop_assert_eq!([0, 1, 2].map(|axis: usize| made.values[axis][at + offset]), here);
                }
                at += rows * columns;
                next += rows.max(columns) as i64;
            }
            prop_assert!(made.values.iter().all(|axis| axis.len() == ids.len()));
            prop_assert_eq!(made.next, next);
            prop_assert_eq!(made.delta(), next - ids.len() as i64);
        }
    }
}
