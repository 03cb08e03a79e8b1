//! The size that an image gets, and the resizing itself, as Pillow does it.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::vision::{ImageSpec, RgbImage, for_lines};

/// Longest side over shortest: beyond it, Hugging Face's processor refuses an image.
const MOST_ELONGATED: f64 = 200.0;

/// Width and height that an image is resized to (`smart_resize` of transformers): multiples of
/// [`ImageSpec::factor`], between the pixel limits, the shape kept as well as that allows.
///
/// # Errors
/// An image without area, or more than 200 times as long as it is wide; settings that cannot be.
pub fn smart_resize(width: u32, height: u32, spec: &ImageSpec) -> Result<(u32, u32)> {
    spec.check()?;
    if width == 0 || height == 0 {
        return Err(Error::new(format!("an image of {width} × {height} pixels has no area"))
            .hint("give an image of one pixel or more"));
    }
    let (w, h) = (f64::from(width), f64::from(height));
    if w.max(h) / w.min(h) > MOST_ELONGATED {
        return Err(Error::new(format!(
            "an image of {width} × {height} pixels is more than 200 times as long as wide"
        ))
        .hint("crop it, or cut it into several images"));
    }
    let factor = spec.factor() as f64;
    let (least, most) = (spec.min_pixels as f64, spec.max_pixels as f64);
    // Python's `round` takes halves to the even neighbour.
    let round = |side: f64| (side / factor).round_ties_even() * factor;
    let (wide, high) = (round(w), round(h));
    let (wide, high) = if wide * high > most {
        let shrink = (h * w / most).sqrt();
        let side = |side: f64| factor.max((side / shrink / factor).floor() * factor);
        (side(w), side(h))
    } else if wide * high < least {
        let grow = (least / (h * w)).sqrt();
        let side = |side: f64| (side * grow / factor).ceil() * factor;
        (side(w), side(h))
    } else {
        (wide, high)
    };
    if wide.max(high) > f64::from(u32::MAX) {
        return Err(Error::new(format!("an image of {width} × {height} pixels becomes {wide} × {high}"))
            .hint("the model's pixel limits are out of reach: export the package again"));
    }
    Ok((wide as u32, high as u32))
}

/// Bits behind the point of a coefficient: eight are left for the pixel, two for the sign and what the filter's
/// negative lobes add.
const PRECISION: u32 = 32 - 8 - 2;

/// Resizes with the bicubic filter, widened when the image becomes smaller (antialiasing): equal to Pillow 13's
/// `Image.resize(size, BICUBIC)` in every byte. Rows and columns are resized one after the other, with bytes in between.
/// `docs/images.md` says why no crate does it.
///
/// # Panics
/// A target or an image without area.
pub fn resize(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    assert!(width > 0 && height > 0 && image.width() > 0 && image.height() > 0, "an image without area");
    let lost = i64::from(image.height()) - i64::from(height);
    // Pillow's order, which shows in the bytes: columns first where the height shrinks by more than twice as many
    // pixels as the width does. Before version 13 it was always rows first.
    if lost > 0 && lost > 2 * (i64::from(image.width()) - i64::from(width)) {
        resize_rows(&resize_columns(image, height), width).into_owned()
    } else {
        resize_columns(&resize_rows(image, width), height).into_owned()
    }
}

fn resize_rows(image: &RgbImage, width: u32) -> Cow<'_, RgbImage> {
    if width == image.width() {
        return Cow::Borrowed(image);
    }
    let taps = taps(image.width() as usize, width as usize);
    let mut resized = RgbImage::new(width, image.height());
    let row_bytes = 3 * image.width() as usize;
    for_lines(image.len() / 3, &mut resized, 3 * width as usize, |row, to| {
        let from = &image.as_raw()[row * row_bytes..][..row_bytes];
        for (pixel, tap) in to.chunks_exact_mut(3).zip(&taps) {
            let mut sums = [HALF; 3];
            let from = &from[3 * tap.inputs.start..3 * tap.inputs.end];
            for (levels, weight) in from.chunks_exact(3).zip(&tap.weights) {
                for (sum, level) in sums.iter_mut().zip(levels) {
                    *sum += i32::from(*level) * weight;
                }
            }
            for (level, sum) in pixel.iter_mut().zip(sums) {
                *level = to_byte(sum);
            }
        }
    });
    Cow::Owned(resized)
}

fn resize_columns(image: &RgbImage, height: u32) -> Cow<'_, RgbImage> {
    if height == image.height() {
        return Cow::Borrowed(image);
    }
    let bytes = 3 * image.width() as usize;
    let taps = taps(image.height() as usize, height as usize);
    let mut resized = RgbImage::new(image.width(), height);
    for_lines(image.len() / 3, &mut resized, bytes, |row, to| {
        let tap = &taps[row];
        let mut sums = vec![HALF; bytes];
        let from = image.as_raw()[bytes * tap.inputs.start..bytes * tap.inputs.end].chunks_exact(bytes);
        for (row, weight) in from.zip(&tap.weights) {
            for (sum, level) in sums.iter_mut().zip(row) {
                *sum += i32::from(*level) * weight;
            }
        }
        for (level, sum) in to.iter_mut().zip(sums) {
            *level = to_byte(sum);
        }
    });
    Cow::Owned(resized)
}

/// Sums begin with a half, so that shifting rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The pixels of a line that make one output pixel.
struct Tap {
    inputs: Range<usize>,
    weights: Vec<i32>,
}

fn taps(inputs: usize, outputs: usize) -> Vec<Tap> {
    let scale = inputs as f64 / outputs as f64;
    let widening = scale.max(1.0);
    let reach = SUPPORT * widening;
    let tap = |output: usize| {
        let centre = (output as f64 + 0.5) * scale;
        let start = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(inputs);
        let narrowing = 1.0 / widening;
        let weight = |input: usize| bicubic(((input as f64) - centre + 0.5) * narrowing);
        let weights: Vec<f64> = (start..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| (weight / sum * f64::from(1 << PRECISION)).round() as i32;
        Tap { inputs: start..end, weights: weights.iter().map(fixed).collect() }
    };
    (0..outputs).map(tap).collect()
}

/// Distance, in output pixels, from which the filter is zero.
const SUPPORT: f64 = 2.0;

/// Keys' cubic convolution with a = −1/2 ("Cubic convolution interpolation for digital image processing", 1981).
fn bicubic(distance: f64) -> f64 {
    const A: f64 = -0.5;
    let x = distance.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < SUPPORT {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vision::synthetic;

    fn spec(patch_size: usize, merge_size: usize, min_pixels: u64, max_pixels: u64) -> ImageSpec {
        let (mean, std) = ([0.5; 3], [0.5; 3]);
        ImageSpec { patch_size, temporal_patch_size: 2, merge_size, min_pixels, max_pixels, mean, std }
    }

    #[test]
    fn halves_are_rounded_to_the_even_neighbour() {
        let spec = spec(16, 2, 1, 1 << 40);
        assert_eq!(smart_resize(48, 80, &spec).unwrap(), (64, 64));
        assert_eq!(smart_resize(112, 144, &spec).unwrap(), (128, 128));
    }

    #[test]
    fn impossible_images_and_settings_are_refused() {
        let good = spec(16, 2, 65_536, 16_777_216);
        let message = |width, height, spec: &ImageSpec| {
            let error = smart_resize(width, height, spec).unwrap_err();
            format!("{}\nhint: {}", error.chain(), error.find_hint().expect("a remedy"))
        };
        let texts = [
            message(0, 7, &good),
            message(1, 201, &good),
            message(10, 10, &spec(0, 2, 1, 2)),
            message(10, 10, &spec(16, 2, 9, 8)),
            message(10, 10, &ImageSpec { std: [0.5, 0.0, 0.5], ..good.clone() }),
            message(10, 10, &spec(16, 2, u64::MAX, u64::MAX)),
        ];
        insta::assert_snapshot!(texts.join("\n\n"));
        smart_resize(1, 200, &good).unwrap();
    }

    #[test]
    fn a_flat_image_stays_flat() {
        let flat = RgbImage::from_pixel(37, 23, image::Rgb([3, 128, 255]));
        for (width, height) in [(64, 64), (8, 90), (90, 8), (1, 1), (37, 23)] {
            assert!(resize(&flat, width, height).pixels().all(|pixel| pixel.0 == [3, 128, 255]), "{width} × {height}");
        }
    }

    proptest! {
        #[test]
        fn sizes_keep_their_promises(
            width in 1_u32..20_000, height in 1_u32..20_000,
            patch in 1_usize..33, merge in 1_usize..5,
            min_pixels in 1_u64..200_000, more in 0_u64..20_000_000,
        ) {
            let spec = spec(patch, merge, min_pixels, min_pixels + more);
            let elongation = f64::from(width.max(height)) / f64::from(width.min(height));
            let Ok((wide, high)) = smart_resize(width, height, &spec) else {
                prop_assert!(elongation > 200.0);
                return Ok(());
            };
            let factor = spec.factor() as u32;
            prop_assert!(wide > 0 && high > 0 && wide % factor == 0 && high % factor == 0);
            let area = u64::from(wide) * u64::from(high);
            // One step of the grid is all by which a limit can be missed.
            let step = u64::from(factor) * u64::from(wide.max(high));
            prop_assert!(area <= spec.max_pixels.max(spec.min_pixels + 2 * step) || wide.min(high) == factor);
            prop_assert!(area + 3 * step >= spec.min_pixels);
            prop_assert_eq!(smart_resize(height, width, &spec).unwrap(), (high, wide));
            let grid = spec.grid(width, height).unwrap();
            prop_assert_eq!(grid.tokens(merge) as u64, area / u64::from(factor).pow(2));
        }

        #[test]
        fn mirrored_images_resize_to_mirrored_ones(
            width in 1_u32..60, height in 1_u32..60, wide in 1_u32..60, high in 1_u32..60, seed in any::<u64>(),
        ) {
            let image = synthetic(width, height, seed);
            let resized = resize(&image, wide, high);
            let mirrored = resize(&image::imageops::flip_horizontal(&image), wide, high);
            // Weights of a mirrored pixel may differ in their last bit, which shows where a level lies on the edge, twice.
            let mirrored = image::imageops::flip_horizontal(&mirrored);
            let apart = resized.as_raw().iter().zip(mirrored.as_raw()).map(|(one, other)| one.abs_diff(*other)).max();
            prop_assert!(apart <= Some(2), "{:?}", apart);
        }
    }
}
