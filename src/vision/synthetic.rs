//! Images of any size from a seed, for measurements that ask for an image of a given size.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::vision::RgbImage;

/// Levels by which a pixel may differ from the gradient below it.
const NOISE: i32 = 12;

/// A slanted gradient in each channel with noise on it: neither flat, nor pure noise, the same for the same seed.
pub fn synthetic(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let slopes: [(f32, f32, f32); 3] =
        std::array::from_fn(|_| (random.random_range(-1.0..1.0), random.random_range(-1.0..1.0), random.random()));
    let mut image = RgbImage::new(width, height);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let (across, down) = (x as f32 / width as f32, y as f32 / height as f32);
        for (channel, (right, below, offset)) in pixel.0.iter_mut().zip(slopes) {
            // A triangle wave: it turns back at black and at white, and never jumps.
            let wave = (right * across + below * down + offset).rem_euclid(2.0);
            let level = (if wave > 1.0 { 2.0 - wave } else { wave } * 255.0) as i32;
            *channel = (level + random.random_range(-NOISE..=NOISE)).clamp(0, 255) as u8;
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_image() {
        let image = synthetic(40, 30, 7);
        assert_eq!(image, synthetic(40, 30, 7));
        assert_ne!(image, synthetic(40, 30, 8));
        assert_eq!(image.dimensions(), (40, 30));
        let (least, most) = (image.as_raw().iter().min().unwrap(), image.as_raw().iter().max().unwrap());
        assert!(most - least > 50, "from {least} to {most}");
        assert_eq!(synthetic(0, 5, 1).as_raw().len(), 0);
    }
}
