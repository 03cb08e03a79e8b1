"""Rotary position embedding: tables of cosines and sines, and the rotation in standard operators."""

from collections.abc import Iterator

import numpy as np

from ortbench_export.graph import ONNX_TYPES, Graph
from ortbench_export.weights.tensors import Production, StoredTensor

POSITIONS_PER_CHUNK = 8192


def rope_tables(graph: Graph, positions: int, head_dim: int, theta: float) -> tuple[str, str]:
    """Cosine and sine of every position and frequency, each `[positions, head_dim / 2]`."""
    dtype = graph.options.dtype

    def table(function) -> Iterator[np.ndarray]:
        # float32 throughout, as the reference computes them: what a model saw in training are these rounded angles.
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
        for start in range(0, positions, POSITIONS_PER_CHUNK):
            steps = np.arange(start, min(start + POSITIONS_PER_CHUNK, positions), dtype=np.float32)
            yield function(np.outer(steps, frequencies)).astype(dtype, copy=False)

    return tuple(
        graph.weights(Production(
            (StoredTensor(f"model.rotary_emb.{name}", ONNX_TYPES[dtype], (positions, head_dim // 2), 1),),
            lambda function=function: table(function),
        ))[0]
        for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin))
    )


def rope_rows(graph: Graph, position_ids: str, tables: tuple[str, str], interleaved: bool = False) -> tuple[str, str]:
    """Full-width cosines and signed sines of the positions at hand, each `[batch, sequence, 1, head_dim]`.

    Interleaved, the two numbers that turn together are neighbours; otherwise they are half a head apart.
    """
    name = "/model/rotary_emb"
    axes = graph.constant([2])
    cosine = graph.node("Gather", f"{name}/cos/Gather", [tables[0], position_ids], axis=0)
    sine = graph.node("Gather", f"{name}/sin/Gather", [tables[1], position_ids], axis=0)
    negative = graph.node("Neg", f"{name}/sin/Neg", [sine])
    pairs = {"cos": (cosine, cosine), "sin": (negative, sine)}
    if interleaved:
        last, whole = graph.constant([-1]), graph.constant([0, 0, -1])
        for what, pair in pairs.items():
            columns = [graph.node("Unsqueeze", f"{name}/{what}/Unsqueeze_{index}", [part, last])
                       for index, part in enumerate(pair)]
            both = graph.node("Concat", f"{name}/{what}/Concat", columns, axis=-1)
            pairs[what] = graph.node("Reshape", f"{name}/{what}/Reshape", [both, whole])
        cosine, sine = pairs["cos"], pairs["sin"]
    else:
        cosine, sine = (graph.node("Concat", f"{name}/{what}/Concat", list(pair), axis=-1)
                        for what, pair in pairs.items())
    return (graph.node("Unsqueeze", f"{name}/cos/Unsqueeze", [cosine, axes]),
            graph.node("Unsqueeze", f"{name}/sin/Unsqueeze", [sine, axes]))


def rotate(graph: Graph, name: str, x: str, rows: tuple[str, str], head_dim: int, interleaved: bool = False) -> str:
    """Rotate `x` `[batch, sequence, heads, head_dim]`: x · cos + swap(x) · (−sin, sin), where swap exchanges halves or,
    interleaved, neighbours."""
    if interleaved:
        neighbours = np.arange(head_dim).reshape(-1, 2)[:, ::-1].reshape(-1)
        swapped = graph.node("Gather", f"{name}/Gather", [x, graph.constant(neighbours.tolist())], axis=-1)
    else:
        half = graph.constant([head_dim // 2, head_dim // 2])
        first, second = graph.node("Split", f"{name}/Split", [x, half], outputs=2, axis=-1)
        swapped = graph.node("Concat", f"{name}/Concat", [second, first], axis=-1)
    straight = graph.node("Mul", f"{name}/Mul_cos", [x, rows[0]])
    crossed = graph.node("Mul", f"{name}/Mul_sin", [swapped, rows[1]])
    return graph.node("Add", f"{name}/Add", [straight, crossed])
