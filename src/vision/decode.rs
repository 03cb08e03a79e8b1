//! An image file becomes 8-bit RGB, as transformers' `load_image` and `convert_to_rgb` make it with Pillow.
//!
//! Nothing is decoded before the header's size has been held against the memory that there is.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits};
use image::{Pixel, RgbImage, RgbaImage};

use crate::error::{Context, Error, Result};
use crate::units;
use crate::vision::{orientation, png, whole};

const FORMATS: &str = "PNG, JPEG, WebP, BMP and GIF are read";

/// Reads an image file; decoding takes at most about `budget_bytes` of memory.
///
/// Alpha is dropped (one colour called transparent becomes white), palettes and grey are expanded, and the orientation
/// that a camera noted is applied.
///
/// # Errors
/// A file that cannot be read, is no image, is damaged or cut off, has no area, moves (several frames), or would take
/// more memory than the budget.
pub fn open(path: &Path, budget_bytes: u64) -> Result<RgbImage> {
    let bytes = read(path, budget_bytes).with_context(|| format!("cannot read the image `{}`", path.display()))?;
    decode(&bytes, budget_bytes).with_context(|| format!("cannot use the image `{}`", path.display()))
}

fn read(path: &Path, budget_bytes: u64) -> Result<Vec<u8>> {
    let remedy = "name an image file that can be read";
    let metadata = path.metadata().map_err(|error| Error::new("it cannot be opened").hint(remedy).because(error))?;
    if !metadata.is_file() {
        return Err(Error::new("it is not a regular file").hint(remedy));
    }
    let file = File::open(path).map_err(|error| Error::new("it cannot be opened").hint(remedy).because(error))?;
    let mut bytes = Vec::new();
    file.take(budget_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Error::new("reading fails").hint("copy the file anew").because(error))?;
    if bytes.len() as u64 > budget_bytes {
        return Err(too_large("the file is", metadata.len(), budget_bytes));
    }
    Ok(bytes)
}

pub(super) fn decode(bytes: &[u8], budget_bytes: u64) -> Result<RgbImage> {
    if bytes.is_empty() {
        return Err(Error::new("the file is empty").hint("copy the file anew"));
    }
    let format =
        image::guess_format(bytes).map_err(|_| Error::new("it is not an image of a known format").hint(FORMATS))?;
    let budget = Budget { total: budget_bytes, left: budget_bytes.saturating_sub(bytes.len() as u64) };
    let limits = budget.limits();
    let input = Cursor::new(bytes);
    let whole = match format {
        ImageFormat::Jpeg => whole::jpeg(bytes),
        ImageFormat::WebP => whole::webp(bytes),
        _ => true,
    };
    if !whole {
        return Err(cut_off());
    }
    match format {
        ImageFormat::Png => {
            if png::is_animated(bytes) {
                return Err(animated());
            }
            let mut image = still(PngDecoder::with_limits(input, limits).map_err(damaged)?, &budget)?;
            if let Some(key) = png::colour_key(bytes) {
                png::whiten(&mut image, key);
            }
            Ok(image)
        }
        ImageFormat::Jpeg => still(JpegDecoder::new(input).map_err(damaged)?, &budget),
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(input).map_err(damaged)?;
            if decoder.has_animation() { only_frame(decoder, &budget).map(opaque) } else { still(decoder, &budget) }
        }
        ImageFormat::Gif => {
            let mut frame = only_frame(GifDecoder::new(input).map_err(damaged)?, &budget)?;
            // As a PNG's colour key: transformers lays it on white.
            frame.pixels_mut().filter(|pixel| pixel.0[3] == 0).for_each(|pixel| pixel.0 = [255; 4]);
            Ok(opaque(frame))
        }
        ImageFormat::Bmp => still(BmpDecoder::new(input).map_err(damaged)?, &budget),
        other => Err(Error::new(format!("{} is not read", other.to_mime_type())).hint(FORMATS)),
    }
}

/// Bytes a pixel that decoding an animation holds at a time: canvas, frame and result in four channels, RGB.
const ANIMATED: u64 = 4 * 4 + 3;
/// Bytes a pixel beside a still image as stored: the decoder's own (coefficients of a progressive JPEG), RGB.
const STILL: u64 = 6 + 3;

struct Budget {
    total: u64,
    left: u64,
}

impl Budget {
    fn limits(&self) -> Limits {
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(self.left);
        limits
    }

    /// Looks at the header's size, before any pixel.
    fn check(&self, decoder: &impl ImageDecoder, bytes_a_pixel: u64) -> Result<()> {
        let (width, height) = decoder.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::new(format!("an image of {width} × {height} pixels has no area"))
                .hint("give an image of one pixel or more"));
        }
        let needed = (u64::from(width) * u64::from(height)).saturating_mul(bytes_a_pixel);
        if needed > self.left {
            return Err(too_large(&format!("decoding {width} × {height} pixels takes"), needed, self.total));
        }
        Ok(())
    }
}

fn too_large(what: &str, bytes: u64, budget: u64) -> Error {
    Error::new(format!("{what} {}, and there are {} for an image", units::bytes(bytes), units::bytes(budget)))
        .hint("make the image smaller: the model shrinks it anyway")
}

fn still(mut decoder: impl ImageDecoder, budget: &Budget) -> Result<RgbImage> {
    budget.check(&decoder, u64::from(decoder.color_type().bytes_per_pixel()) + STILL)?;
    decoder.set_limits(budget.limits()).map_err(damaged)?;
    let orientation = orientation::of(&mut decoder);
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let mut image = DynamicImage::ImageRgb8(to_rgb(image));
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn only_frame<'a>(mut decoder: impl ImageDecoder + AnimationDecoder<'a>, budget: &Budget) -> Result<RgbaImage> {
    budget.check(&decoder, ANIMATED)?;
    // A frame may claim to be larger than the image.
    decoder.set_limits(budget.limits()).map_err(damaged)?;
    let mut frames = decoder.into_frames();
    let empty = || Error::new("it holds no picture").hint("copy the file anew, or save it again with another program");
    let frame = frames.next().ok_or_else(empty)?.map_err(damaged)?;
    if frames.next().transpose().map_err(damaged)?.is_some() {
        return Err(animated());
    }
    Ok(frame.into_buffer())
}

fn opaque(image: RgbaImage) -> RgbImage {
    to_rgb(DynamicImage::ImageRgba8(image))
}

/// Pillow's `convert("RGB")`: alpha is dropped, not blended; of 16 bits the upper 8 count, except in grey without
/// alpha, where a level above 255 is white.
fn to_rgb(image: DynamicImage) -> RgbImage {
    match image {
        DynamicImage::ImageRgb8(image) => image,
        DynamicImage::ImageLuma16(image) => map(&image, |pixel| [pixel.0[0].min(255) as u8; 3]),
        DynamicImage::ImageLumaA16(image) => map(&image, |pixel| [(pixel.0[0] >> 8) as u8; 3]),
        DynamicImage::ImageRgb16(image) => map(&image, |pixel| pixel.0.map(|level| (level >> 8) as u8)),
        DynamicImage::ImageRgba16(image) => map(&image, |pixel| pixel.to_rgb().0.map(|level| (level >> 8) as u8)),
        DynamicImage::ImageLuma8(image) => map(&image, |pixel| [pixel.0[0]; 3]),
        DynamicImage::ImageLumaA8(image) => map(&image, |pixel| [pixel.0[0]; 3]),
        DynamicImage::ImageRgba8(image) => map(&image, |pixel| pixel.to_rgb().0),
        // No format that is read here decodes to floating point.
        other => other.into_rgb8(),
    }
}

fn map<P: Pixel>(image: &image::ImageBuffer<P, Vec<P::Subpixel>>, rgb: impl Fn(&P) -> [u8; 3]) -> RgbImage {
    let bytes = image.pixels().flat_map(rgb).collect();
    RgbImage::from_raw(image.width(), image.height(), bytes).expect("three bytes for each pixel")
}

fn animated() -> Error {
    Error::new("it is animated: it has several frames").hint("save one frame of it as PNG")
}

fn cut_off() -> Error {
    Error::new("the file ends before the image does").hint("copy the file anew")
}

fn damaged(error: ImageError) -> Error {
    match &error {
        ImageError::Limits(_) => Error::new("decoding takes more memory than there is for an image")
            .hint("make the image smaller: the model shrinks it anyway"),
        ImageError::Unsupported(_) => Error::new("this kind of the format is not read").hint("save it as PNG or JPEG"),
        ImageError::IoError(cause) if cause.kind() == ErrorKind::UnexpectedEof => cut_off(),
        _ => Error::new("it is damaged").hint("copy the file anew, or save it again with another program"),
    }
    .because(error)
}
