//! What the decoder of PNG does not say: whether it moves, and which colour counts as transparent.

use crate::vision::RgbImage;

const WHITE: [u8; 3] = [255; 3];

/// Chunks begin behind the signature; each is a length, a name, the data, a checksum.
const SIGNATURE: usize = 8;

/// Whether there are several pictures: frames of an animation, or one that stands for it and a frame.
pub fn is_animated(bytes: &[u8]) -> bool {
    let is = |wanted: &'static [u8; 4]| move |(name, _): &([u8; 4], &[u8])| name == wanted;
    let frames = chunks(bytes).filter(is(b"fcTL")).count();
    let stand_in = !chunks(bytes).take_while(|(name, _)| name != b"IDAT").any(|chunk| is(b"fcTL")(&chunk));
    chunks(bytes).any(|chunk| is(b"acTL")(&chunk)) && frames + usize::from(stand_in) > 1
}

/// The colour that `tRNS` calls transparent, in 8 bits, where Pillow keeps one: not for 16 bits of grey, nor for a
/// palette with several transparent or half-transparent entries.
///
/// transformers drops an alpha channel, so that a pixel keeps its colour. A colour key survives that as a note on the
/// image, and a later step lays what it names on white.
pub fn colour_key(bytes: &[u8]) -> Option<[u8; 3]> {
    let mut chunks = chunks(bytes);
    let (_, header) = chunks.next().filter(|(name, _)| name == b"IHDR")?;
    let (depth, colour_type) = (*header.get(8)?, *header.get(9)?);
    let mut palette: &[u8] = &[];
    for (name, data) in chunks.take_while(|(name, _)| name != b"IDAT") {
        match (&name, colour_type) {
            (b"PLTE", _) => palette = data,
            (b"tRNS", 0) if depth < 16 => {
                let level = u16::from_be_bytes(*data.first_chunk()?);
                let level = if depth == 1 { level * 255 } else { level };
                return Some([u8::try_from(level).ok()?; 3]);
            }
            (b"tRNS", 2) => return Some([*data.get(1)?, *data.get(3)?, *data.get(5)?]),
            (b"tRNS", 3) => {
                let entry = data.iter().position(|alpha| *alpha == 0)?;
                let single = data.iter().filter(|alpha| **alpha != 255).count() == 1;
                return palette.get(3 * entry..)?.first_chunk().copied().filter(|_| single);
            }
            _ => {}
        }
    }
    None
}

fn chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let (name, after) = after.split_first_chunk()?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = after.get(4..).unwrap_or_default();
        Some((*name, data))
    })
}

/// Pixels of that colour become white.
pub fn whiten(image: &mut RgbImage, key: [u8; 3]) {
    image.pixels_mut().filter(|pixel| pixel.0 == key).for_each(|pixel| pixel.0 = WHITE);
}
