//! Pixels as a vision graph takes them: normalised, cut into patches, in the order in which patches are merged.

use ndarray::Array2;

use crate::error::Result;
use crate::vision::resize::{resize, smart_resize};
use crate::vision::{Grid, ImageSpec, RgbImage, for_lines};

/// One image, ready for the vision graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// `pixel_values`: `[patches, 3 · temporal_patch_size · patch_size²]`. A row holds channels, in them the image
    /// repeated in time, in them the rows of the patch. The `merge_size`² patches of a token follow one another.
    pub values: Array2<f32>,
    /// `image_grid_thw`.
    pub grid: Grid,
}

/// Resizes, normalises and cuts an image into patches.
///
/// # Errors
/// As [`smart_resize`].
pub fn preprocess(image: &RgbImage, spec: &ImageSpec) -> Result<Patches> {
    let (width, height) = smart_resize(image.width(), image.height(), spec)?;
    let resized = (image.dimensions() != (width, height)).then(|| resize(image, width, height));
    Ok(cut(resized.as_ref().unwrap_or(image), spec))
}

/// Cuts an image whose sides are multiples of the factor.
fn cut(image: &RgbImage, spec: &ImageSpec) -> Patches {
    let patch = spec.patch_size;
    let merge = spec.merge_size;
    let row_bytes = 3 * image.width() as usize;
    let grid = Grid { time: 1, height: image.height() as usize / patch, width: image.width() as usize / patch };
    let levels = levels(spec);
    let mut values = Array2::zeros((grid.patches(), spec.patch_width()));
    let (band, band_bytes) = (grid.width * merge * spec.patch_width(), merge * patch * row_bytes);
    for_lines(image.len() / 3, values.as_slice_mut().expect("made in standard order"), band, |number, to| {
        let from = &image.as_raw()[number * band_bytes..][..band_bytes];
        for (number, to) in to.chunks_exact_mut(spec.patch_width()).enumerate() {
            let (token, inside) = (number / (merge * merge), number % (merge * merge));
            let (row, column) = (inside / merge, token * merge + inside % merge);
            let from = &from[row * patch * row_bytes + 3 * column * patch..];
            for (channel, to) in to.chunks_exact_mut(spec.patch_width() / 3).enumerate() {
                let (first, repeated) = to.split_at_mut(patch * patch);
                for (to, from) in first.chunks_exact_mut(patch).zip(from.chunks(row_bytes)) {
                    for (value, pixel) in to.iter_mut().zip(from.chunks_exact(3)) {
                        *value = levels[channel][usize::from(pixel[channel])];
                    }
                }
                repeated.chunks_exact_mut(patch * patch).for_each(|frame| frame.copy_from_slice(first));
            }
        }
    });
    Patches { values, grid }
}

/// What each level of each channel becomes, in the precisions in which transformers computes it.
fn levels(spec: &ImageSpec) -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| {
        std::array::from_fn(|level| ((level as f64 * (1.0 / 255.0)) as f32 - spec.mean[channel]) / spec.std[channel])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vision::synthetic;

    /// Where transformers' reshape and transpose put a pixel: the row and the column of `pixel_values`.
    fn place(spec: &ImageSpec, grid: Grid, channel: usize, frame: usize, y: usize, x: usize) -> [usize; 2] {
        let (patch, merge) = (spec.patch_size, spec.merge_size);
        let (row, column) = (y / patch, x / patch);
        let token = (row / merge) * (grid.width / merge) + column / merge;
        let inside = (row % merge) * merge + column % merge;
        let pixel = (y % patch) * patch + x % patch;
        [token * merge * merge + inside, (channel * spec.temporal_patch_size + frame) * patch * patch + pixel]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_pixel_is_found_again(
            patch_size in 1_usize..7, merge_size in 1_usize..4, temporal_patch_size in 1_usize..4,
            rows in 1_u32..4, columns in 1_u32..4, seed in any::<u64>(),
        ) {
            let spec = ImageSpec {
                patch_size, merge_size, temporal_patch_size,
                min_pixels: 1, max_pixels: 1 << 30, mean: [0.1, 0.2, 0.3], std: [0.5, 1.0, 2.0],
            };
            let factor = spec.factor() as u32;
            let image = synthetic(columns * factor, rows * factor, seed);
            let patches = preprocess(&image, &spec).unwrap();
            prop_assert_eq!(patches.values.nrows(), patches.grid.patches());
            let mut used = Array2::from_elem(patches.values.raw_dim(), false);
            for (x, y, pixel) in image.enumerate_pixels() {
                for (channel, frame) in (0..3).flat_map(|channel| (0..temporal_patch_size).map(move |t| (channel, t))) {
                    let place = place(&spec, patches.grid, channel, frame, y as usize, x as usize);
                    let level = patches.values[place] * spec.std[channel] + spec.mean[channel];
                    prop_assert!((level * 255.0 - f32::from(pixel.0[channel])).abs() < 1e-3);
                    prop_assert!(!std::mem::replace(&mut used[place], true), "two pixels at {:?}", place);
                }
            }
            prop_assert!(used.iter().all(|used| *used));
        }
    }
}
