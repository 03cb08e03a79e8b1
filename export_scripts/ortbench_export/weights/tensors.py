"""The terms in which blocks ask for weights: what a matrix is made of, and which stored tensors it becomes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
from onnx import TensorProto

from ortbench_export.options import Scheme

BITS_PER_ELEMENT = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}


class Part(NamedTuple):
    """`rows` rows of a checkpoint's tensor from row `start` on; of a three-dimensional tensor `[n, rows, columns]` the
    leading axes count as one.

    With a `partner` (tensor, start), half of the rows come from there: one of the tensor's, one of the partner's, in
    turn, as kernels want the gate and the up projection of an expert.
    """

    tensor: str
    rows: int
    start: int = 0
    partner: tuple[str, int] | None = None


@dataclass(frozen=True)
class Matrix:
    """A logical weight `[rows, columns]` (outputs × inputs): parts of the checkpoint stacked along their rows."""

    parts: tuple[Part, ...]
    columns: int
    # Standard deviation of random weights relative to 1/sqrt(columns); nothing else reads it.
    random_gain: float = 1.0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True)
class StoredTensor:
    """An initializer as it lies in the external data; `dtype` is an ONNX element type."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    # How many slices along the first axis one decoded token reads: all (None) of a matrix, one row of a table, the
    # chosen experts of a stack.
    rows_read_per_token: int | None = None

    @property
    def nbytes(self) -> int:
        return -(-prod(self.shape) * BITS_PER_ELEMENT[self.dtype] // 8)

    @property
    def bytes_read_per_token(self) -> int:
        if self.rows_read_per_token is None:
            return self.nbytes
        return self.nbytes // self.shape[0] * self.rows_read_per_token


@dataclass(frozen=True)
class Production:
    """Tensors that are made together. `chunks` yields their bytes one tensor after the other, in pieces that no
    tensor shares, and may be called when the offsets are known."""

    tensors: tuple[StoredTensor, ...]
    chunks: Callable[[], Iterator[np.ndarray]]


class WeightSource(Protocol):
    """Where values come from. Every method but `require` yields arrays whose bytes follow one another in the file."""

    def identity(self) -> str:
        """What tells this source from others, without reading it."""

    def has(self, name: str) -> bool:
        """Whether the source has a tensor of this name: for what checkpoints lay out in several ways."""

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Fail unless the source has this tensor in this shape."""

    def vector(self, name: str, length: int, dtype: np.dtype, random_mean: float = 1.0) -> Iterator[np.ndarray]:
        """A whole one-dimensional tensor. Random ones lie close to `random_mean`: one for a norm's weight, zero for a
        bias."""

    def floats(self, matrix: Matrix, dtype: np.dtype, transposed: bool) -> Iterator[np.ndarray]:
        """`[rows, columns]`, or `[columns, rows]` when transposed."""

    def quantized(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype, transposed: bool) -> Iterator[np.ndarray]:
        """All codes, then all scales of type `dtype`: the layouts of `quantize_rows`, or of `quantize_columns`
        when transposed."""

    def quantized_table(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Codes `[rows, columns * bits / 8]` without padding, then scales `[rows, blocks]`."""
