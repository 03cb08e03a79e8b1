"""Rotary position embedding: cosines and sines from tables or computed, and the rotation in standard operators."""

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from ortbench_export.graph import CONTRIB, ONNX_TYPES, Graph, tensor_name
from ortbench_export.weights.tensors import Production, StoredTensor

POSITIONS_PER_CHUNK = 8192


def rope_frequencies(width: int, theta: float) -> np.ndarray:
    """Angle a position of each of `width / 2` pairs, float32 as the reference has it: what a model saw in training are
    angles rounded like these."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)


def rope_tables(graph: Graph, positions: int, head_dim: int, theta: float) -> tuple[str, str]:
    """Cosine and sine of every position and frequency, each `[positions, head_dim / 2]`."""
    dtype = graph.options.dtype

    def table(function) -> Iterator[np.ndarray]:
        frequencies = rope_frequencies(head_dim, theta)
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


def rope_computed(graph: Graph, positions: str, axes: list[int], frequencies: np.ndarray) -> tuple[str, str]:
    """Cosine and sine of positions that have several axes, `[..., axes]`, without tables: pair i of the result
    `[..., pairs]` turns by `frequencies[i]` times the position along `axes[i]`."""
    name, dtype = f"/{graph.stem}/rotary_emb", graph.options.dtype
    stored = StoredTensor(tensor_name(name, "frequencies"), TensorProto.FLOAT, frequencies.shape)
    (steps,) = graph.weights(Production((stored,), lambda: iter([frequencies])))
    floats = graph.node("Cast", f"{name}/Cast", [positions], to=TensorProto.FLOAT)
    chosen = graph.node("Gather", f"{name}/Gather", [floats, graph.constant(axes)], axis=-1)
    angles = graph.node("Mul", f"{name}/Mul", [chosen, steps])
    waves = (graph.node(op, f"{name}/{op}", [angles]) for op in ("Cos", "Sin"))
    if dtype == np.float32:
        return tuple(waves)
    return tuple(graph.node("Cast", f"{wave}/Cast", [wave], to=ONNX_TYPES[dtype]) for wave in waves)


def rope_rows(graph: Graph, position_ids: str, tables: tuple[str, str], interleaved: bool = False) -> tuple[str, str]:
    """Rows of the tables for the positions at hand, as `rotate` wants them."""
    name = f"/{graph.stem}/rotary_emb"
    waves = (graph.node("Gather", f"{name}/{what}/Gather", [table, position_ids], axis=0)
             for what, table in zip(("cos", "sin"), tables, strict=True))
    return rotate_rows(graph, *waves, interleaved)


def rotate_rows(graph: Graph, cosine: str, sine: str, interleaved: bool = False) -> tuple[str, str]:
    """Full-width cosines and signed sines from those of the pairs: `[..., pairs]` → `[..., 1, head_dim]`.

    Interleaved, the two numbers that turn together are neighbours; otherwise they are half a head apart.
    """
    name = f"/{graph.stem}/rotary_emb"
    axes = graph.constant([-2])
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


def rotate_fused(graph: Graph, name: str, x: str, rows: str, tables: tuple[str, str]) -> str:
    """Rotate `x` `[batch, sequence, heads · head_dim]` by the rows int64 `[batch, sequence]` of the tables of cosines
    and sines, in one operator; halves of a head turn together."""
    return graph.node("RotaryEmbedding", f"{name}/RotaryEmbedding", [x, rows, *tables], domain=CONTRIB, interleaved=0)
