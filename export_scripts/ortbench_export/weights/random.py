"""Random weights of any shape: quantized bytes are drawn directly, so that writing is bound by the disk.

The draws use raw 64-bit words of a seeded generator, whose stream numpy keeps stable, one stream per tensor: a
tensor's bytes depend on the seed, its name and its layout only.
"""

import zlib
from collections.abc import Iterator
from math import sqrt

import numpy as np

from ortbench_export.options import Scheme
from ortbench_export.weights.tensors import Matrix

CHUNK_BYTES = 16 << 20
# Standard deviation of uniform codes -2^(b-1) … 2^(b-1)-1 in units of 2^b: that of a uniform distribution.
UNIFORM_DEVIATION = 1 / sqrt(12)


class RandomSource:
    """A WeightSource that has every tensor. Weights have standard deviation gain/sqrt(columns), which keeps
    activations, and so logits, of order one."""

    def __init__(self, seed: int):
        self.seed = seed

    def identity(self) -> str:
        return f"random {self.seed}"

    def has(self, name: str) -> bool:
        return True

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        pass

    def vector(self, name: str, length: int, dtype: np.dtype, random_mean: float = 1.0) -> Iterator[np.ndarray]:
        # Different enough that a swapped one shows; biases small beside what they are added to.
        spread = 0.1 if random_mean else 0.01
        raw = self._generator(f"vector {name}").random_raw(length)
        yield (random_mean - spread + 2 * spread * (raw / 2.0**64)).astype(dtype)

    def floats(self, matrix: Matrix, dtype: np.dtype, transposed: bool) -> Iterator[np.ndarray]:
        deviation = matrix.random_gain / sqrt(matrix.columns)
        yield from self._table(matrix, "floats", matrix.rows * matrix.columns, _centred_table(deviation, dtype))

    def quantized(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype, transposed: bool) -> Iterator[np.ndarray]:
        blocks = scheme.blocks(matrix.columns)
        yield from self._bytes(matrix, "codes", matrix.rows * blocks * scheme.block_size * scheme.bits // 8)
        yield from self._scales(matrix, scheme, dtype)

    def quantized_table(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype) -> Iterator[np.ndarray]:
        yield from self._bytes(matrix, "codes", matrix.rows * matrix.columns * scheme.bits // 8)
        yield from self._scales(matrix, scheme, dtype)

    def _scales(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype) -> Iterator[np.ndarray]:
        deviation = matrix.random_gain / sqrt(matrix.columns)
        size = deviation / (2 * scheme.zero_code * UNIFORM_DEVIATION)
        # Codes have no exact centre: their mean is -1/2. Scales of either sign keep that from adding up to a common
        # direction in every output. Their size varies a little, as a trained model's does.
        table = size * np.linspace(0.8, 1.2, 1 << 15)
        table = np.concatenate([table, -table])
        if scheme.half_scales:
            table = table.astype(np.float16)
        table = table.astype(dtype)
        yield from self._table(matrix, "scales", matrix.rows * scheme.blocks(matrix.columns), table)

    def _table(self, matrix: Matrix, what: str, count: int, table: np.ndarray) -> Iterator[np.ndarray]:
        """`count` values of a table of 65,536 of them."""
        for chunk in self._bytes(matrix, what, 2 * count):
            yield table[chunk.view("<u2")]

    def _bytes(self, matrix: Matrix, what: str, count: int) -> Iterator[np.ndarray]:
        first = matrix.parts[0]
        # Several matrices may be cut out of one tensor.
        generator = self._generator(f"{what} {first.tensor}" + (f" from {first.start}" if first.start else ""))
        for start in range(0, count, CHUNK_BYTES):
            wanted = min(CHUNK_BYTES, count - start)
            yield generator.random_raw(-(-wanted // 8)).astype("<u8", copy=False).view(np.uint8)[:wanted]

    def _generator(self, name: str) -> np.random.SFC64:
        return np.random.SFC64(np.random.SeedSequence([self.seed, zlib.crc32(name.encode())]))


def _centred_table(deviation: float, dtype: np.dtype) -> np.ndarray:
    uniform = (np.arange(1 << 16, dtype=np.float64) - ((1 << 16) - 1) / 2) / (1 << 16)
    return (uniform / UNIFORM_DEVIATION * deviation).astype(dtype)
