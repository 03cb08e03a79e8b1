//! How a camera was held, as a file's metadata has it: EXIF, or else XMP, as Pillow's `exif_transpose` looks for it.

use image::ImageDecoder;
use image::metadata::Orientation;

/// Stands before EXIF in JPEG, and in WebP files of some programs.
const EXIF_PREFIX: &[u8] = b"Exif\0\0";
const XMP_NAME: &[u8] = b"tiff:Orientation";

/// The orientation to apply; metadata that cannot be read has none.
pub fn of(decoder: &mut impl ImageDecoder) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten();
    exif.and_then(|exif| of_exif(&exif))
        .or_else(|| of_xmp(&decoder.xmp_metadata().ok().flatten()?))
        .unwrap_or(Orientation::NoTransforms)
}

fn of_exif(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif_chunk(exif.strip_prefix(EXIF_PREFIX).unwrap_or(exif))
}

/// An attribute (`tiff:Orientation="6"`) or an element (`<tiff:Orientation>6<`).
fn of_xmp(xmp: &[u8]) -> Option<Orientation> {
    let at = xmp.windows(XMP_NAME.len()).position(|window| window == XMP_NAME)?;
    let after = &xmp[at + XMP_NAME.len()..];
    let digit = after.strip_prefix(b"=\"").or_else(|| after.strip_prefix(b">"))?.first()?;
    Orientation::from_exif(digit.wrapping_sub(b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_xmp_are_read() {
        assert_eq!(of_xmp(b"<x tiff:Orientation=\"6\" />"), Some(Orientation::Rotate90));
        assert_eq!(of_xmp(b"<tiff:Orientation>3</tiff:Orientation>"), Some(Orientation::Rotate180));
        for none in ["", "tiff:Orientation", "tiff:Orientation=\"", "tiff:Orientation=\"9\"", "tiff:Orientation>!"] {
            assert_eq!(of_xmp(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn exif_is_read_with_and_without_its_prefix() {
        let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        assert_eq!(of_exif(exif), Some(Orientation::Rotate90));
        assert_eq!(of_exif(&[EXIF_PREFIX, exif].concat()), Some(Orientation::Rotate90));
        assert_eq!(of_exif(&exif[..12]), None);
    }
}
