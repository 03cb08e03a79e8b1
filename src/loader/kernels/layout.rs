//! The packed layout, `rows16-v1`.
//!
//! Rows stand in groups of 16; the last group is filled up with rows of zeros. A group is three runs, one after the
//! other, each a multiple of 64 bytes:
//!
//! 1. Codes, block after block. 64 bytes hold for each of the 16 rows four bytes: with 8 bits the codes of four
//!    consecutive columns; with 4 bits those of eight, the low nibbles the first four, the high nibbles the others.
//!    That is what one AVX-512 register (or two AVX2 registers) multiplies by four broadcast activations.
//! 2. Scales, 16 for each block, in two bytes (IEEE half) or four, little endian.
//! 3. Zero points, if there are any, 16 bytes for each block.

use half::f16;

use crate::error::{Error, Result};
use crate::package::shards::NBits;

/// The name of the layout, for the index of a pack.
pub const LAYOUT: &str = "rows16-v1";

/// Rows of a group.
pub(super) const GROUP: usize = 16;

/// Where things lie in a group, in bytes, with what the kernels need of the shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    pub rows: usize,
    pub columns: usize,
    pub block: usize,
    pub blocks: usize,
    pub bits: u8,
    pub zero_points: bool,
    pub half_scales: bool,
    /// Bytes of the codes of one block.
    pub block_bytes: usize,
    pub scales_at: usize,
    pub zeros_at: usize,
    pub group_bytes: usize,
}

impl Format {
    /// The format of a shape that [`check`] accepts.
    pub fn new(shape: &NBits) -> Self {
        let blocks = shape.blocks();
        let block_bytes = GROUP * shape.block * usize::from(shape.bits) / 8;
        let scales_at = blocks * block_bytes;
        let zeros_at = scales_at + (blocks * GROUP * if shape.half_scales { 2 } else { 4 }).next_multiple_of(64);
        let zeros = if shape.zero_points { (blocks * GROUP).next_multiple_of(64) } else { 0 };
        Self {
            rows: shape.rows,
            columns: shape.columns,
            block: shape.block,
            blocks,
            bits: shape.bits,
            zero_points: shape.zero_points,
            half_scales: shape.half_scales,
            block_bytes,
            scales_at,
            zeros_at,
            group_bytes: zeros_at + zeros,
        }
    }

    pub fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    pub fn bytes(&self) -> usize {
        self.groups() * self.group_bytes
    }

    /// Columns including those that fill up the last block.
    pub fn padded(&self) -> usize {
        self.blocks * self.block
    }
}

/// Whether the kernels take matrices of this shape.
///
/// # Errors
/// Bits other than 4 and 8, blocks that are no power of two from 16 to 16384, no rows or columns, more bytes than an
/// address space.
pub fn check(shape: &NBits) -> Result<()> {
    let wrong = |what: String| Err(Error::new(format!("a quantized matrix cannot have {what}")));
    if !matches!(shape.bits, 4 | 8) {
        return wrong(format!("codes of {} bits: only 4 and 8", shape.bits));
    }
    // Larger blocks would overflow the integer dot products.
    if !shape.block.is_power_of_two() || !(16..=16384).contains(&shape.block) {
        return wrong(format!("blocks of {}: only powers of two from 16 to 16384", shape.block));
    }
    // A column of a row takes at most 1 byte and a sixteenth of a scale and zero point; the rest is padding.
    let bytes = shape.rows.checked_add(GROUP).and_then(|rows| {
        let columns = shape.columns.checked_add(shape.block)?;
        rows.checked_mul(columns)?.checked_mul(16)
    });
    if shape.rows == 0 || shape.columns == 0 || bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return wrong(format!("{} rows and {} columns", shape.rows, shape.columns));
    }
    Ok(())
}

/// Bytes of a packed matrix of a shape that [`check`] accepts: a multiple of 64.
pub fn packed_bytes(shape: &NBits) -> usize {
    Format::new(shape).bytes()
}

/// True when every scale survives the way to two bytes and back, bit for bit.
pub fn half_scales_lose_nothing(scales: &[f32]) -> bool {
    scales.iter().all(|&scale| f16::from_f32(scale).to_f32().to_bits() == scale.to_bits())
}

/// Packs a matrix, or a band of its rows that starts at a multiple of 16.
///
/// `codes` is `[rows, blocks, block · bits / 8]` with the low nibble first, `scales` `[rows, blocks]`, `zero_points`
/// `[rows, ⌈blocks · bits / 8⌉]`, as ONNX's `MatMulNBits` has them.
///
/// # Errors
/// Shapes that [`check`] refuses, slices of other lengths than the shape says, zero points that are there when the
/// shape has none or the other way round, scales that two bytes do not hold where the shape has them in two.
pub fn pack(shape: &NBits, codes: &[u8], scales: &[f32], zero_points: Option<&[u8]>, into: &mut [u8]) -> Result<()> {
    check(shape)?;
    let format = Format::new(shape);
    let row = Row::of(&format);
    let lengths = [
        ("codes", codes.len(), shape.rows * row.codes),
        ("scales", scales.len(), shape.rows * row.scales),
        ("packed bytes", into.len(), format.bytes()),
        ("bytes of zero points", zero_points.map_or(0, <[u8]>::len), shape.rows * row.zeros),
    ];
    for (what, found, expected) in lengths {
        if found != expected {
            let (rows, columns) = (shape.rows, shape.columns);
            return Err(Error::new(format!("a {rows} × {columns} matrix has {expected} {what}, not {found}")));
        }
    }
    if shape.half_scales && !half_scales_lose_nothing(scales) {
        return Err(Error::new("scales do not fit into two bytes without loss").hint("store them in four"));
    }
    into.fill(0);
    for n in 0..shape.rows {
        let group = &mut into[n / GROUP * format.group_bytes..][..format.group_bytes];
        let lane = n % GROUP;
        let (words, _) = codes[n * row.codes..][..row.codes].as_chunks::<4>();
        for (word, place) in words.iter().zip(group.chunks_exact_mut(64)) {
            let word = if shape.bits == 4 { fold(u32::from_le_bytes(*word)).to_le_bytes() } else { *word };
            place[4 * lane..][..4].copy_from_slice(&word);
        }
        for b in 0..format.blocks {
            let scale = scales[n * format.blocks + b];
            let at = b * GROUP + lane;
            match shape.half_scales {
                true => group[format.scales_at + 2 * at..][..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
                false => group[format.scales_at + 4 * at..][..4].copy_from_slice(&scale.to_le_bytes()),
            }
            if let Some(zeros) = zero_points {
                let zeros = &zeros[n * row.zeros..][..row.zeros];
                group[format.zeros_at + at] = match shape.bits {
                    4 => (zeros[b / 2] >> (4 * (b % 2))) & 15,
                    _ => zeros[b],
                };
            }
        }
    }
    Ok(())
}

/// What [`pack`] was given: codes, scales, zero points. The nibble that fills up an odd number of 4-bit zero points
/// is not kept: it comes back as zero.
///
/// # Panics
/// When the shape is one that [`check`] refuses, or `packed` is not [`packed_bytes`] long.
pub fn unpack(shape: &NBits, packed: &[u8]) -> (Vec<u8>, Vec<f32>, Option<Vec<u8>>) {
    let format = of_packed(shape, packed);
    let row = Row::of(&format);
    let mut codes = vec![0; shape.rows * row.codes];
    let mut scales = vec![0.0; shape.rows * row.scales];
    let mut zeros = vec![0; shape.rows * row.zeros];
    for n in 0..shape.rows {
        let group = &packed[n / GROUP * format.group_bytes..][..format.group_bytes];
        let lane = n % GROUP;
        let (words, _) = codes[n * row.codes..][..row.codes].as_chunks_mut::<4>();
        for (word, place) in words.iter_mut().zip(group.chunks_exact(64)) {
            let four = [0, 1, 2, 3].map(|at| place[4 * lane + at]);
            *word = if shape.bits == 4 { unfold(u32::from_le_bytes(four)).to_le_bytes() } else { four };
        }
        for b in 0..format.blocks {
            let at = b * GROUP + lane;
            let byte = |place: usize| group[format.scales_at + place];
            scales[n * format.blocks + b] = match shape.half_scales {
                true => f16::from_le_bytes([byte(2 * at), byte(2 * at + 1)]).to_f32(),
                false => f32::from_le_bytes([0, 1, 2, 3].map(|part| byte(4 * at + part))),
            };
            if shape.zero_points {
                let zero = group[format.zeros_at + at];
                match shape.bits {
                    4 => zeros[n * row.zeros + b / 2] |= zero << (4 * (b % 2)),
                    _ => zeros[n * row.zeros + b] = zero,
                }
            }
        }
    }
    (codes, scales, shape.zero_points.then_some(zeros))
}

/// The format of a shape whose packed bytes are these.
///
/// # Panics
/// When they are not: the kernels would read past their end.
pub(super) fn of_packed(shape: &NBits, packed: &[u8]) -> Format {
    check(shape).expect("the shape of a packed matrix was checked");
    let format = Format::new(shape);
    assert_eq!(packed.len(), format.bytes(), "the bytes of a packed matrix");
    format
}

/// Lengths of one row as ONNX has it.
struct Row {
    codes: usize,
    scales: usize,
    zeros: usize,
}

impl Row {
    fn of(format: &Format) -> Self {
        let bits = usize::from(format.bits);
        let zeros = if format.zero_points { (format.blocks * bits).div_ceil(8) } else { 0 };
        Self { codes: format.blocks * format.block * bits / 8, scales: format.blocks, zeros }
    }
}

/// Eight nibbles in order → the first four in the low nibbles of four bytes, the others in the high ones.
fn fold(word: u32) -> u32 {
    let spread = |half: u32| {
        let two = (half | half << 8) & 0x00ff_00ff;
        (two | two << 4) & 0x0f0f_0f0f
    };
    spread(word & 0xffff) | spread(word >> 16) << 4
}

/// The way back from [`fold`].
fn unfold(word: u32) -> u32 {
    let gather = |nibbles: u32| {
        let two = (nibbles | nibbles >> 4) & 0x00ff_00ff;
        (two | two >> 8) & 0xffff
    };
    gather(word & 0x0f0f_0f0f) | gather(word >> 4 & 0x0f0f_0f0f) << 16
}
