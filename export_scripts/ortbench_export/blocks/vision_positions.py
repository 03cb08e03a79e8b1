"""Where the patches of an image stand: their rows and columns, a learned embedding and a rotation by these.

Patches come in blocks of `merge` · `merge` that become one token, the blocks row by row, and so do those within one.
One frame is assumed: the time of the grid is not looked at.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ortbench_export.blocks.linear import table
from ortbench_export.blocks.rope import rope_computed, rope_frequencies
from ortbench_export.graph import ONNX_TYPES, Graph
from ortbench_export.weights.tensors import Matrix


@dataclass(frozen=True)
class Places:
    """Of each patch, int64 `[patches]`: its index, row and column; int64 scalars: rows and columns of the image."""

    index: str
    row: str
    column: str
    rows: str
    columns: str


def patch_places(graph: Graph, pixel_values: str, grid: str, merge: int) -> Places:
    """From `pixel_values` `[patches, …]` and `grid` int64 `[1, 3]`: time, height and width in patches."""
    name = "/vision/places"
    zero, one = graph.constant(0), graph.constant(1)
    flat = graph.node("Reshape", f"{name}/grid/Reshape", [grid, graph.constant([3])])
    rows, columns = (graph.node("Gather", f"{name}/{what}/Gather", [flat, graph.constant(at)])
                     for at, what in ((1, "rows"), (2, "columns")))
    shape = graph.node("Shape", f"{name}/Shape", [pixel_values], start=0, end=1)
    count = graph.node("Squeeze", f"{name}/Squeeze", [shape, graph.constant([0])])
    index = graph.node("Range", f"{name}/Range", [zero, count, one])

    def divide(what: str, x: str, by: str) -> tuple[str, str]:
        """Quotient and remainder. OpenVINO leaves Mod to the CPU provider where `by` is no constant."""
        quotient = graph.node("Div", f"{name}/{what}/Div", [x, by])
        whole = graph.node("Mul", f"{name}/{what}/Mul", [quotient, by])
        return quotient, graph.node("Sub", f"{name}/{what}/Sub", [x, whole])

    step = graph.constant(merge)
    rest, inner_column = divide("inner_column", index, step)
    block, inner_row = divide("inner_row", rest, step)
    blocks_a_row = graph.node("Div", f"{name}/blocks/Div", [columns, step])
    block_row, block_column = divide("block", block, blocks_a_row)

    def joined(what: str, outer: str, inner: str) -> str:
        first = graph.node("Mul", f"{name}/{what}/Mul", [outer, step])
        return graph.node("Add", f"{name}/{what}/Add", [first, inner])

    return Places(index, joined("row", block_row, inner_row), joined("column", block_column, inner_column),
                  rows, columns)


def position_embedding(graph: Graph, name: str, matrix: Matrix, side: int, places: Places) -> str:
    """Embeddings `[patches, hidden]` from a learned square of `side` · `side`, stretched over the image: corner on
    corner, and between its points bilinear."""
    weights = table(graph, name, matrix)
    along = {what: _along(graph, f"{name}/{what}", at, size, side)
             for what, at, size in (("row", places.row, places.rows), ("column", places.column, places.columns))}
    total = None
    for vertical, (row, row_share) in enumerate(along["row"]):
        first = graph.node("Mul", f"{name}/Mul_{vertical}", [row, graph.constant(side)])
        for horizontal, (column, column_share) in enumerate(along["column"]):
            corner = f"{name}/corner_{vertical}{horizontal}"
            index = graph.node("Add", f"{corner}/Add", [first, column])
            rows = graph.node("Gather", f"{corner}/Gather", [weights, index], axis=0)
            share = graph.node("Mul", f"{corner}/Mul_share", [row_share, column_share])
            part = graph.node("Mul", f"{corner}/Mul", [rows, share])
            total = part if total is None else graph.node("Add", f"{corner}/Add_total", [total, part])
    return total


def rotary_waves(graph: Graph, head_dim: int, theta: float, places: Places) -> tuple[str, str]:
    """Cosine and sine of each patch, `[patches, head_dim / 2]`: half of the frequencies turn by rows, half by
    columns."""
    frequencies = rope_frequencies(head_dim // 2, theta)
    last = graph.constant([-1])
    columns = [graph.node("Unsqueeze", f"/vision/rotary_emb/{what}/Unsqueeze", [place, last])
               for what, place in (("row", places.row), ("column", places.column))]
    positions = graph.node("Concat", "/vision/rotary_emb/Concat", columns, axis=-1)
    axes = [0] * len(frequencies) + [1] * len(frequencies)
    return rope_computed(graph, positions, axes, np.tile(frequencies, 2))


def _along(graph: Graph, name: str, at: str, size: str, side: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """The two points of the learned square that `at` lies between along one axis, int64 `[patches]`, each with its
    share, `[patches, 1]` in the activations' type."""
    one = graph.constant(1)
    last = graph.node("Max", f"{name}/Max", [graph.node("Sub", f"{name}/Sub", [size, one]), one])
    scaled = graph.node("Mul", f"{name}/Mul", [at, graph.constant(side - 1)])
    scaled, last = (graph.node("Cast", f"{name}/Cast_{what}", [x], to=TensorProto.FLOAT)
                    for what, x in (("scaled", scaled), ("last", last)))
    exact = graph.node("Div", f"{name}/Div", [scaled, last])
    floor = graph.node("Floor", f"{name}/Floor", [exact])
    low = graph.node("Cast", f"{name}/Cast_low", [floor], to=TensorProto.INT64)
    after = graph.node("Add", f"{name}/Add", [low, one])
    high = graph.node("Min", f"{name}/Min", [after, graph.constant(side - 1)])
    high_share = graph.node("Sub", f"{name}/Sub_floor", [exact, floor])
    low_share = graph.node("Sub", f"{name}/Sub_share", [graph.constant(1.0, np.float32), high_share])
    shares = []
    for what, share in (("low", low_share), ("high", high_share)):
        share = graph.node("Unsqueeze", f"{name}/{what}/Unsqueeze", [share, graph.constant([-1])])
        if graph.options.dtype != np.float32:
            share = graph.node("Cast", f"{name}/{what}/Cast", [share], to=ONNX_TYPES[graph.options.dtype])
        shares.append(share)
    return (low, shares[0]), (high, shares[1])
