//! Files that are damaged, cut off, too large or moving: each an error with a remedy, never a panic or half an image.

use std::path::Path;

use proptest::prelude::*;

use super::decode::decode;
use super::*;
use crate::error::Kind;

/// Little, so that what slips past a check shows.
const BUDGET: u64 = 16 << 20;

macro_rules! files {
    ($($name:literal),*) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/images/", $name)))),*]
    };
}

/// One of each format and of each way of coding in it.
const FILES: &[(&str, &[u8])] = files![
    "tiny.png",
    "palette-key.png",
    "rgba16.png",
    "photo.jpg",
    "progressive.jpg",
    "grey.jpg",
    "lossless.webp",
    "lossy.webp",
    "plain.bmp",
    "still.gif"
];
const MOVING: &[(&str, &[u8])] = files!["moving.gif", "moving.png", "moving.webp"];

fn file(name: &str) -> Vec<u8> {
    FILES.iter().find(|(known, _)| *known == name).expect("a file of the list").1.to_vec()
}

/// The error of a file that must have one.
fn refused(bytes: &[u8], what: &str) -> String {
    let Err(error) = decode(bytes, BUDGET) else { panic!("{what} is accepted") };
    assert_eq!(error.root_kind(), Kind::Input, "{what}");
    format!("{} | hint: {}", error.chain(), error.find_hint().unwrap_or_else(|| panic!("{what}: no remedy")))
}

#[test]
fn a_file_cut_anywhere_is_refused_or_whole() {
    for (name, bytes) in FILES {
        let whole = decode(bytes, BUDGET).unwrap();
        let step = bytes.len() / 150 + 1;
        let lengths = (0..bytes.len()).filter(|length| length % step == 0 || bytes.len() - length < 24);
        let mut refusals = 0;
        for length in lengths {
            match decode(&bytes[..length], BUDGET) {
                // What comes behind the last pixel may be missing.
                Ok(image) => assert!(image == whole, "{name} cut to {length} of {} bytes", bytes.len()),
                Err(error) => {
                    assert!(error.find_hint().is_some(), "{name}: {}", error.chain());
                    refusals += 1;
                }
            }
        }
        assert!(refusals >= 20, "{name}: {refusals}");
    }
}

/// A PNG's header claims a size and nothing follows.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    bytes.extend(&header);
    bytes.extend(crc32(&header).to_be_bytes());
    bytes.extend(b"\0\0\0\0IDAT");
    bytes.extend(crc32(b"IDAT").to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    })
}

/// A file whose header says another size: where width and height stand, as bytes to write there.
fn with_size(name: &str, at: &[usize], bytes: &[u8]) -> Vec<u8> {
    let mut file = file(name);
    at.iter().for_each(|at| file[*at..*at + bytes.len()].copy_from_slice(bytes));
    file
}

/// Where a JPEG's frame header has its height, which the width follows.
fn jpeg_size_at() -> usize {
    file("photo.jpg").windows(2).position(|marker| marker == [0xFF, 0xC0]).expect("a baseline frame") + 5
}

#[test]
fn a_header_that_claims_too_much_is_refused_before_decoding() {
    let gigantic = [
        ("PNG", png_header(100_000, 100_000)),
        ("GIF", with_size("still.gif", &[6, 8], &60_000_u16.to_le_bytes())),
        ("BMP", with_size("plain.bmp", &[18, 22], &30_000_u32.to_le_bytes())),
        ("JPEG", with_size("photo.jpg", &[jpeg_size_at(), jpeg_size_at() + 2], &60_000_u16.to_be_bytes())),
        ("WebP", with_size("lossy.webp", &[26, 28], &16_000_u16.to_le_bytes())),
    ];
    for (format, bytes) in &gigantic {
        let text = refused(bytes, format);
        assert!(text.contains("pixels takes") && text.contains("make the image smaller"), "{format}: {text}");
    }
    let png = "decoding 100000 × 100000 pixels takes 112 GiB, and there are 16.0 MiB for an image";
    assert!(refused(&gigantic[0].1, "PNG").starts_with(png));
}

#[test]
fn a_frame_that_claims_more_than_its_image_is_refused() {
    let descriptor = file("still.gif").windows(5).position(|bytes| bytes == [0x2C, 0, 0, 0, 0]).expect("a frame") + 5;
    let text = refused(&with_size("still.gif", &[descriptor, descriptor + 2], &60_000_u16.to_le_bytes()), "GIF");
    assert!(text.starts_with("decoding takes more memory than there is for an image"), "{text}");
}

#[test]
fn a_header_without_area_is_refused() {
    let empty = [
        ("PNG", png_header(0, 5)),
        ("PNG", png_header(5, 0)),
        ("GIF", with_size("still.gif", &[6, 8], &[0, 0])),
        ("BMP", with_size("plain.bmp", &[18, 22], &[0; 4])),
        ("JPEG", with_size("photo.jpg", &[jpeg_size_at(), jpeg_size_at() + 2], &[0, 0])),
        ("WebP", with_size("lossy.webp", &[26, 28], &[0, 0])),
    ];
    for (format, bytes) in empty {
        refused(&bytes, format);
    }
}

#[test]
fn what_moves_is_refused() {
    for (name, bytes) in MOVING {
        assert_eq!(refused(bytes, name), "it is animated: it has several frames | hint: save one frame of it as PNG");
    }
}

#[test]
fn an_image_just_within_the_budget_is_read() {
    let bytes = file("photo.jpg");
    let needed = bytes.len() as u64 + 160 * 120 * (3 + 9);
    decode(&bytes, needed).unwrap();
    let error = decode(&bytes, needed - 1).unwrap_err();
    assert!(error.chain().contains("160 × 120"), "{}", error.chain());
}

#[test]
fn what_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.png");
    let message = |path: &Path, budget| {
        let error = open(path, budget).unwrap_err();
        let text = format!("{}\nhint: {}", error.chain(), error.find_hint().expect("a remedy"));
        text.replace(&folder.path().display().to_string(), "FOLDER")
    };
    let mut all = vec![message(&path, BUDGET), message(folder.path(), BUDGET)];
    let tiff = b"II*\0\x08\0\0\0";
    for contents in [&b""[..], b"no image at all", tiff, &file("tiny.png")[..60], &file("photo.jpg")[..900]] {
        std::fs::write(&path, contents).unwrap();
        all.push(message(&path, BUDGET));
    }
    all.push(message(&path, 100));
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn a_palette_s_one_transparent_colour_is_the_key() {
    let chunk = |name: &[u8], data: &[u8]| [&(data.len() as u32).to_be_bytes(), name, data, &[0; 4]].concat();
    let header = |depth, colour| chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, depth, colour, 0, 0, 0]);
    let palette = chunk(b"PLTE", &[1, 2, 3, 4, 5, 6]);
    let png = |depth, colour, transparent: &[u8]| {
        [&b"12345678"[..], &header(depth, colour), &palette, &chunk(b"tRNS", transparent), &chunk(b"IDAT", &[])]
            .concat()
    };
    for (depth, colour, transparent, key) in [
        (8, 3, &[255, 0][..], Some([4, 5, 6])),
        (8, 3, &[0], Some([1, 2, 3])),
        (8, 3, &[0, 0], None),
        (8, 3, &[128, 0], None),
        (8, 3, &[255, 255, 0], None),
        (8, 0, &[0, 7], Some([7; 3])),
        (1, 0, &[0, 1], Some([255; 3])),
        (16, 0, &[0, 7], None),
        (8, 0, &[7], None),
        (8, 2, &[0, 7, 0, 8, 0, 9], Some([7, 8, 9])),
        (8, 6, &[0, 7], None),
    ] {
        assert_eq!(png::colour_key(&png(depth, colour, transparent)), key, "{depth} {colour} {transparent:?}");
    }
}

#[test]
fn a_picture_that_stands_for_an_animation_is_a_frame_more() {
    let png = |names: &[&[u8]]| {
        let chunks = names.iter().map(|name| [&[0; 4], *name, &[0; 4]].concat());
        [b"12345678".to_vec(), chunks.flatten().collect()].concat()
    };
    assert!(!png::is_animated(&png(&[b"IHDR", b"IDAT", b"IEND"])));
    assert!(!png::is_animated(&png(&[b"IHDR", b"acTL", b"fcTL", b"IDAT", b"IEND"])));
    assert!(png::is_animated(&png(&[b"IHDR", b"acTL", b"IDAT", b"fcTL", b"fdAT"])));
    assert!(png::is_animated(&png(&[b"IHDR", b"acTL", b"fcTL", b"IDAT", b"fcTL", b"fdAT"])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_never_panic(start in 0..FILES.len(), keep in 0_usize..64, noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let (_, bytes) = FILES[start];
        let _ = decode(&[&bytes[..keep.min(bytes.len())], &noise].concat(), BUDGET);
    }

    #[test]
    fn changed_bytes_never_panic(which in 0..FILES.len() + MOVING.len(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = FILES.iter().chain(MOVING).nth(which).expect("within the lists").1.to_vec();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        let _ = decode(&bytes, BUDGET);
    }
}
