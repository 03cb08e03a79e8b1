//! Whether a file is whole, where its decoder does not say: one that was cut off decodes without complaint.

const SCAN: u8 = 0xDA;
const END: u8 = 0xD9;

/// A WebP file: its first chunk holds all others, and says how many bytes they are.
pub fn webp(bytes: &[u8]) -> bool {
    const BEFORE: usize = 8;
    let length = bytes.get(4..BEFORE).and_then(|length| length.first_chunk());
    length.is_some_and(|length| bytes.len() - BEFORE >= u32::from_le_bytes(*length) as usize)
}

/// A JPEG: its end marker is there, behind a scan.
pub fn jpeg(bytes: &[u8]) -> bool {
    let mut at = 2;
    let mut in_scan = false;
    while let Some(&[mark, code]) = bytes.get(at..at + 2) {
        match (mark, code) {
            (0xFF, END) if in_scan => return true,
            // Markers without a length: a stuffed byte, a restart, a start within a start.
            (0xFF, 0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            // Filling before a marker.
            (0xFF, 0xFF) => at += 1,
            (0xFF, _) => {
                in_scan |= code == SCAN;
                let length = bytes.get(at + 2..at + 4).map_or(0, |length| u16::from_be_bytes([length[0], length[1]]));
                at += 2 + usize::from(length);
            }
            // Data of a scan.
            _ => at += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_counts_behind_a_scan_only() {
        let start = [0xFF, 0xD8];
        let thumbnail = [0xFF, 0xE1, 0, 6, 0xFF, 0xD8, 0xFF, END];
        let scan = [0xFF, SCAN, 0, 3, 9, 1, 2, 0xFF, 0x00, 0xFF, 0xD0, 3, 0xFF];
        let whole = [&start[..], &thumbnail, &scan, &[0xFF, END]].concat();
        assert!(jpeg(&whole));
        assert!((0..whole.len()).all(|length| !jpeg(&whole[..length])), "a part counts as whole");
    }
}
