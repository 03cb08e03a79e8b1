//! Parts of constants: some rows, or some columns.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::package::edition::Edition;
use crate::package::onnx::element_bits;

/// Keeps some of a constant's `count` rows, which lie one after the other whatever its dimensions say.
///
/// # Errors
/// A constant that is not made of so many equal rows.
pub fn take_rows(edition: &mut Edition, name: &str, count: u64, rows: &[usize]) -> Result<()> {
    let stored = edition.source().tensor(name).ok_or_else(|| unknown(name))?;
    let (mut dims, bytes) = (stored.dims.clone(), stored.bytes);
    let first = dims.first().copied().unwrap_or(0);
    if count == 0 || bytes % count != 0 || first % count != 0 {
        return Err(Error::unsupported(format!("`{name}` ({dims:?}) does not consist of {count} rows")));
    }
    dims[0] = first / count * rows.len() as u64;
    edition.take(name, name, &dims, ranges(rows, bytes / count))
}

/// Where rows of that many bytes lie; neighbours together.
pub fn ranges(rows: &[usize], bytes: u64) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for &row in rows {
        let (start, end) = (row as u64 * bytes, (row as u64 + 1) * bytes);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// Keeps some columns of a constant `[rows, columns]`.
///
/// # Errors
/// A constant of other dimensions, of elements narrower than 4 bits.
pub fn take_columns(edition: &mut Edition, name: &str, columns: &[usize]) -> Result<()> {
    let source = edition.source();
    let stored = source.tensor(name).ok_or_else(|| unknown(name))?.clone();
    let unknown = || Error::unsupported(format!("columns of `{name}` ({:?}) cannot be chosen", stored.dims));
    let &[rows, width] = stored.dims.as_slice() else { return Err(unknown()) };
    let bits = element_bits(stored.data_type).filter(|bits| *bits >= 4).ok_or_else(unknown)?;
    let bytes = source.read_all(name)?;
    let chosen = select(&bytes, rows as usize, width as usize, bits as usize, columns);
    edition.set(name, stored.data_type, &[rows, columns.len() as u64], chosen);
    Ok(())
}

/// The chosen columns of each row. Elements of 4 bits lie two to a byte, the first in the low half, and rows need not begin
/// with a byte.
fn select(bytes: &[u8], rows: usize, width: usize, bits: usize, columns: &[usize]) -> Vec<u8> {
    let places = (0..rows).flat_map(|row| columns.iter().map(move |column| row * width + column));
    if bits == 4 {
        let half = |place: usize| (bytes[place / 2] >> (4 * (place % 2))) & 0xf;
        let mut packed = vec![0; (rows * columns.len()).div_ceil(2)];
        for (at, place) in places.enumerate() {
            packed[at / 2] |= half(place) << (4 * (at % 2));
        }
        return packed;
    }
    let size = bits / 8;
    let mut chosen = Vec::with_capacity(rows * columns.len() * size);
    for place in places {
        chosen.extend_from_slice(&bytes[place * size..(place + 1) * size]);
    }
    chosen
}

fn unknown(name: &str) -> Error {
    Error::new(format!("the package has no constant `{name}`"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Rows by ranges are the rows, one after the other.
        #[test]
        fn ranges_are_the_rows(rows in proptest::collection::btree_set(0_usize..40, 0..20), bytes in 1_u64..5) {
            let rows: Vec<usize> = rows.into_iter().collect();
            let joined: Vec<u64> = ranges(&rows, bytes).into_iter().flatten().collect();
            let expected: Vec<u64> =
                rows.iter().flat_map(|&row| row as u64 * bytes..(row as u64 + 1) * bytes).collect();
            prop_assert_eq!(joined, expected);
            prop_assert!(ranges(&rows, bytes).windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        /// Columns of nibbles are those of the same numbers in bytes.
        #[test]
        fn columns_of_nibbles_are_those_of_bytes(
            rows in 1_usize..6, width in 1_usize..9, seed in any::<u64>(), mask in any::<u16>(),
        ) {
            let columns: Vec<usize> = (0..width).filter(|column| mask >> column & 1 == 1).collect();
            let numbers: Vec<u8> = (0..rows * width).map(|at| (seed >> (at % 60)) as u8 & 0xf).collect();
            let pack = |numbers: &[u8]| -> Vec<u8> {
                numbers.chunks(2).map(|pair| pair[0] | pair.get(1).copied().unwrap_or(0) << 4).collect()
            };
            let of_bytes = select(&numbers, rows, width, 8, &columns);
            prop_assert_eq!(select(&pack(&numbers), rows, width, 4, &columns), pack(&of_bytes));
        }
    }
}
