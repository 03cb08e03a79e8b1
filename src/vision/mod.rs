//! Images, from a file to what a vision graph and a decoder with M-RoPE take, as Hugging Face's processor makes it.
//!
//! [`open`] gives 8-bit RGB, [`preprocess`] patches and their grid, [`expand_image_tokens`] and [`positions`] what the
//! prompt becomes. `docs/images.md` says what is done with an image, and how closely it agrees.

mod decode;
mod mrope;
mod orientation;
mod patches;
mod png;
mod resize;
mod synthetic;
mod whole;

pub use decode::open;
pub use image::RgbImage;
pub use mrope::{Positions, expand_image_tokens, positions};
pub use patches::{Patches, preprocess};
pub use resize::{resize, smart_resize};
pub use synthetic::synthetic;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// How a model takes images: the part of the manifest's `image` that speaks of pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSpec {
    /// A patch is a square with sides of this many pixels.
    pub patch_size: usize,
    /// A still image is repeated this often in time.
    pub temporal_patch_size: usize,
    /// A square with sides of this many patches makes one token.
    pub merge_size: usize,
    /// An image of fewer pixels is enlarged.
    pub min_pixels: u64,
    /// An image of more pixels is made smaller.
    pub max_pixels: u64,
    /// Subtracted from red, green and blue after scaling to 0 … 1.
    pub mean: [f32; 3],
    /// What is left is divided by it.
    pub std: [f32; 3],
}

impl ImageSpec {
    /// Sides of a resized image are multiples of this many pixels.
    pub fn factor(&self) -> u64 {
        self.patch_size as u64 * self.merge_size as u64
    }

    /// Numbers in one row of patches.
    pub fn patch_width(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// The grid that an image of this size gets, before anything is decoded.
    ///
    /// # Errors
    /// A specification that cannot be; an image without area or too long for its width.
    pub fn grid(&self, width: u32, height: u32) -> Result<Grid> {
        let (width, height) = smart_resize(width, height, self)?;
        let patch = self.patch_size as u32;
        Ok(Grid { time: 1, height: (height / patch) as usize, width: (width / patch) as usize })
    }

    /// Checks what a manifest may get wrong.
    ///
    /// # Errors
    /// A size of zero, pixel limits that exclude every image, a deviation that cannot be divided by.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| {
            Err(Error::new(format!("the model's image settings cannot be: {what}")).hint("export the package again"))
        };
        let sizes = [self.patch_size, self.temporal_patch_size, self.merge_size];
        if sizes.iter().any(|size| !(1..=1024).contains(size)) {
            return wrong(format!("patch, temporal patch and merge size {sizes:?} are not all from 1 to 1024"));
        }
        if self.min_pixels == 0 || self.min_pixels > self.max_pixels {
            return wrong(format!("between {} and {} pixels", self.min_pixels, self.max_pixels));
        }
        if self.mean.iter().any(|mean| !mean.is_finite()) || self.std.iter().any(|std| !(std.is_finite() && *std > 0.0))
        {
            return wrong(format!("mean {:?}, standard deviation {:?}", self.mean, self.std));
        }
        Ok(())
    }
}

/// An image of fewer pixels is worked on in the calling thread, within milliseconds. The threads of an ONNX Runtime
/// session spin for a while after each run, and other threads that are woken for a small task wait for them to give way:
/// 12 ms instead of 0.15 ms for 64 × 96 pixels on two cores.
const WORTH_THREADS: usize = 1 << 20;

/// Does something to each line of `length` numbers, on several threads where the image has pixels enough.
fn for_lines<T: Send>(pixels: usize, lines: &mut [T], length: usize, work: impl Fn(usize, &mut [T]) + Send + Sync) {
    if pixels < WORTH_THREADS {
        lines.chunks_exact_mut(length).enumerate().for_each(|(number, line)| work(number, line));
    } else {
        lines.par_chunks_exact_mut(length).enumerate().for_each(|(number, line)| work(number, line));
    }
}

/// Patches of an image in time, height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// 1 for a still image.
    pub time: usize,
    /// Rows of patches.
    pub height: usize,
    /// Patches in a row.
    pub width: usize,
}

impl Grid {
    /// Rows of `pixel_values`.
    pub fn patches(self) -> usize {
        self.time * self.height * self.width
    }

    /// Tokens that the image becomes in the prompt, and rows of its features.
    pub fn tokens(self, merge_size: usize) -> usize {
        self.patches() / (merge_size * merge_size)
    }

    /// As `image_grid_thw` holds it.
    pub fn thw(self) -> [i64; 3] {
        [self.time as i64, self.height as i64, self.width as i64]
    }
}

#[cfg(test)]
mod tests;
