"""Weights read from a checkpoint, a bounded number of rows at a time, converted or quantized on the way."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ortbench_export.checkpoint import FLOAT_TYPES, Checkpoint
from ortbench_export.errors import ExportError
from ortbench_export.floats import widen
from ortbench_export.options import Scheme
from ortbench_export.quantize.blockwise import quantize_columns, quantize_rows
from ortbench_export.weights.tensors import Matrix, Part

# Rows are read in pieces of about this many values, 2 MB as float32. Four times as many take twice the time to
# quantize: they leave the caches, and their memory goes back to the system every time.
CHUNK_VALUES = 1 << 19
# A transposed matrix is gathered in bands of at most this many bytes, each taking one pass over the matrix.
BAND_BYTES = 128 << 20


class CheckpointSource:
    """A WeightSource over a Checkpoint, which also keeps account of the tensors asked for."""

    def __init__(self, checkpoint: Checkpoint, threads: int | None = None):
        self.checkpoint = checkpoint
        self.threads = threads or min(os.cpu_count() or 1, 8)
        self._required: set[str] = set()

    def identity(self) -> str:
        return self.checkpoint.identity()

    def has(self, name: str) -> bool:
        return name in self.checkpoint.entries

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        entry = self.checkpoint.entries.get(name)
        if entry is None:
            raise ExportError(f"the checkpoint in {self.checkpoint.folder} lacks tensor `{name}`",
                              "fetch the missing file, or check that config.json belongs to this checkpoint")
        if entry.shape != shape:
            raise ExportError(f"tensor `{name}` in {entry.file} has shape {list(entry.shape)}, not {list(shape)} as "
                              "config.json says", "check that config.json belongs to this checkpoint")
        if entry.dtype not in FLOAT_TYPES:
            raise ExportError(f"tensor `{name}` in {entry.file} is stored as {entry.dtype}",
                              f"only {', '.join(FLOAT_TYPES)} checkpoints can be exported")
        self._required.add(name)

    def refuse_extra(self, ignorable: Callable[[str], bool]) -> None:
        """Fail if the checkpoint has tensors that nobody asked for."""
        extra = sorted(name for name in self.checkpoint.entries if name not in self._required and not ignorable(name))
        if extra:
            shown = ", ".join(f"`{name}`" for name in extra[:3]) + (" …" if len(extra) > 3 else "")
            raise ExportError(
                f"the checkpoint in {self.checkpoint.folder} has {len(extra)} tensor(s) that the architecture does "
                f"not know: {shown}",
                "check that config.json belongs to this checkpoint and that adapters are merged",
            )

    def vector(self, name: str, length: int, dtype: np.dtype, random_mean: float = 1.0) -> Iterator[np.ndarray]:
        yield widen(self.checkpoint.rows(name, 0, 1, length)[0]).astype(dtype, copy=False)

    def floats(self, matrix: Matrix, dtype: np.dtype, transposed: bool) -> Iterator[np.ndarray]:
        if not transposed:
            yield from self._map_rows(matrix, slice(None), lambda rows: widen(rows).astype(dtype, copy=False))
            return
        band = max(1, BAND_BYTES // (matrix.rows * dtype.itemsize))
        for start in range(0, matrix.columns, band):
            columns = slice(start, min(start + band, matrix.columns))
            gathered = np.empty((columns.stop - columns.start, matrix.rows), dtype=dtype)
            done = 0
            for piece in self._map_rows(matrix, columns, lambda rows: widen(rows).T):
                gathered[:, done : done + piece.shape[1]] = piece
                done += piece.shape[1]
            yield gathered

    def quantized(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype, transposed: bool) -> Iterator[np.ndarray]:
        if transposed:
            yield from self._quantized_transposed(matrix, scheme, dtype)
            return
        scales = []
        for codes, piece_scales in self._map_rows(matrix, slice(None), lambda rows: quantize_rows(rows, scheme)):
            scales.append(piece_scales.astype(dtype, copy=False))
            yield codes
        yield from scales

    def quantized_table(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype) -> Iterator[np.ndarray]:
        width = matrix.columns * scheme.bits // 8
        scales = []
        for codes, piece_scales in self._map_rows(matrix, slice(None), lambda rows: quantize_rows(rows, scheme)):
            scales.append(piece_scales.astype(dtype, copy=False))
            yield np.ascontiguousarray(codes.reshape(codes.shape[0], -1)[:, :width])
        yield from scales

    def _quantized_transposed(self, matrix: Matrix, scheme: Scheme, dtype: np.dtype) -> Iterator[np.ndarray]:
        blocks_a_band = max(1, BAND_BYTES * 8 // scheme.bits // (matrix.rows * scheme.block_size))
        band = blocks_a_band * scheme.block_size
        scales = []
        for start in range(0, matrix.columns, band):
            columns = slice(start, min(start + band, matrix.columns))
            width = columns.stop - columns.start
            gathered = np.empty((width, matrix.rows * scheme.bits // 8), dtype=np.uint8)
            band_scales = np.empty((scheme.blocks(width), matrix.rows), dtype=dtype)
            done = 0
            for codes, piece_scales in self._map_rows(matrix, columns, lambda rows: quantize_columns(rows, scheme)):
                rows = piece_scales.shape[1]
                first = done * scheme.bits // 8
                gathered[:, first : first + codes.shape[1]] = codes
                band_scales[:, done : done + rows] = piece_scales
                done += rows
            scales.append(band_scales)
            yield gathered
        yield from scales

    def _rows(self, part: Part, start: int, stop: int, columns: int) -> np.ndarray:
        """Rows `start:stop` of a part as stored; of a part with a partner, `start` and `stop` are even."""
        first = part.start
        if part.partner is None:
            return self.checkpoint.rows(part.tensor, first + start, first + stop, columns)
        second, (start, stop) = part.partner[1], (start // 2, stop // 2)
        turns = (self.checkpoint.rows(part.tensor, first + start, first + stop, columns),
                 self.checkpoint.rows(part.partner[0], second + start, second + stop, columns))
        if turns[0].dtype != turns[1].dtype:
            turns = (widen(turns[0]), widen(turns[1]))
        return np.stack(turns, axis=1).reshape(2 * (stop - start), columns)

    def _map_rows(self, matrix: Matrix, columns: slice, convert: Callable) -> Iterator:
        """`convert` applied to pieces of the matrix on several threads, in the matrix's order of rows."""
        # An even number of rows, so that pairs of 4-bit codes along the rows never straddle two pieces.
        step = max(2, CHUNK_VALUES // matrix.columns // 2 * 2)

        def work(part: Part, start: int, stop: int):
            return convert(self._rows(part, start, stop, matrix.columns)[:, columns])

        pieces = ((part, start, min(start + step, part.rows)) for part in matrix.parts
                  for start in range(0, part.rows, step))
        if self.threads == 1:
            yield from (work(*piece) for piece in pieces)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque = deque()
            for piece in pieces:
                waiting.append(pool.submit(work, *piece))
                # One piece beyond the busy threads is enough to keep them busy, and bounds memory.
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
