"""Symmetric block-wise quantization, laid out so that numpy works on long contiguous runs.

A block is the values of one output row at `block_size` consecutive inputs. Its scale is its extreme value divided by
`-2^(bits-1)`, so that the extreme lands on the one code that has no mirror image: half a step finer than dividing the
absolute maximum by `2^(bits-1) - 1`, and why scales are signed.
"""

import numpy as np

from ortbench_export.floats import widen
from ortbench_export.options import Scheme


def quantize_blocks(values: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Quantize along axis -2.

    `values` float32 `[..., block_size, n]` (overwritten) → unsigned codes uint8 of the same shape, in which
    `scheme.zero_code` stands for zero, and scales float32 `[..., n]`.
    """
    highest = values.max(axis=-2)
    lowest = values.min(axis=-2)
    scales = np.where(highest > -lowest, highest, lowest)
    scales /= -scheme.zero_code
    if scheme.half_scales:
        scales = scales.astype(np.float16).astype(scales.dtype)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.reciprocal(scales)
    # A block of zeros, or of denormals whose reciprocal overflows, is stored as zeros.
    inverse[~np.isfinite(inverse)] = 0.0
    values *= inverse[..., None, :]
    # Truncation of the shifted value rounds half up, one pass cheaper than rint.
    values += scheme.zero_code + 0.5
    np.clip(values, 0, 2 * scheme.zero_code - 1, out=values)
    return values.astype(np.uint8), scales


def pack_pairs(codes: np.ndarray, axis: int) -> np.ndarray:
    """Two 4-bit codes a byte along `axis` (even length), the earlier one in the low half."""
    even = [slice(None)] * codes.ndim
    odd = list(even)
    even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
    packed = codes[tuple(odd)] << 4
    packed |= codes[tuple(even)]
    return packed


def quantize_rows(rows: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Codes as MatMulNBits lays them out.

    `rows` `[n, k]` as stored → codes uint8 `[n, blocks, block_size * bits / 8]` and scales float32 `[n, blocks]`. The
    last block is filled with zeros where `k` is no multiple of the block size.
    """
    padded = _pad_columns(rows, scheme)
    count, blocks = rows.shape[0], scheme.blocks(rows.shape[1])
    # Transposed before it is widened: two bytes a value move instead of four.
    columns = widen(np.ascontiguousarray(padded.reshape(count * blocks, scheme.block_size).T))
    codes, scales = quantize_blocks(columns, scheme)
    if scheme.bits == 4:
        codes = pack_pairs(codes, axis=0)
    return np.ascontiguousarray(codes.T).reshape(count, blocks, -1), scales.reshape(count, blocks)


def quantize_columns(rows: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Signed codes transposed, as a block-wise DequantizeLinear before a MatMul wants them.

    `rows` `[n, k]` as stored, n even and k a multiple of the block size → codes uint8 (two's complement) `[k, n]`, or
    `[k, n / 2]` packed along n for 4 bits, and scales float32 `[k / block_size, n]`.
    """
    count, width = rows.shape
    columns = widen(np.ascontiguousarray(rows.T)).reshape(scheme.blocks(width), scheme.block_size, count)
    codes, scales = quantize_blocks(columns, scheme)
    codes = codes.reshape(width, count)
    if scheme.bits == 4:
        return pack_pairs(codes, axis=1) ^ 0x88, scales
    return codes ^ 0x80, scales


def _pad_columns(rows: np.ndarray, scheme: Scheme) -> np.ndarray:
    missing = scheme.blocks(rows.shape[1]) * scheme.block_size - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows
