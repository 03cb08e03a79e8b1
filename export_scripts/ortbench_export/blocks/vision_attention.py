"""Full attention among the patches of one image, rotated by their rows and columns; no mask, no cache."""

from dataclasses import dataclass

from ortbench_export.blocks.linear import linear
from ortbench_export.blocks.rope import rotate, rotate_fused, rotate_rows
from ortbench_export.graph import CONTRIB, Graph
from ortbench_export.weights.tensors import Matrix, Part


@dataclass(frozen=True)
class VisionAttentionShape:
    """All heads have their own keys and values."""

    hidden: int
    heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class FusedState:
    """Cosines and sines, a row a patch, and each patch's row, int64 `[1, patches]`."""

    tables: tuple[str, str]
    rows: str


@dataclass(frozen=True)
class PlainState:
    """Cosines and sines as `rotate` wants them."""

    rows: tuple[str, str]


def begin_vision_attention(graph: Graph, index: str, waves: tuple[str, str]) -> FusedState | PlainState:
    """What all layers share, from each patch's index `[patches]` and waves `[patches, head_dim / 2]`."""
    if graph.options.fused:
        return FusedState(waves, graph.node("Unsqueeze", "/vision/rotary_emb/Unsqueeze", [index, graph.constant([0])]))
    return PlainState(rotate_rows(graph, *waves))


def vision_attention(graph: Graph, name: str, source_name: str, x: str, shape: VisionAttentionShape,
                     state: FusedState | PlainState, output_gain: float) -> str:
    """Attention over `x` `[patches, hidden]`; the checkpoint's tensors begin with `source_name`."""
    joined = Matrix((Part(f"{source_name}.qkv.weight", 3 * shape.hidden),), shape.hidden)
    packed = linear(graph, f"{name}/qkv", x, joined, f"{source_name}.qkv.bias")
    attend = _attend_fused if graph.options.fused else _attend_plain
    context = attend(graph, name, packed, shape, state)
    output = Matrix((Part(f"{source_name}.proj.weight", shape.hidden),), shape.hidden, output_gain)
    return linear(graph, f"{name}/proj", context, output, f"{source_name}.proj.bias")


def _attend_fused(graph: Graph, name: str, packed: str, shape: VisionAttentionShape, state: FusedState) -> str:
    """One operator, which never holds all scores at once."""
    batch = graph.constant([0])
    packed = graph.node("Unsqueeze", f"{name}/Unsqueeze", [packed, batch])
    q, k, v = graph.node("Split", f"{name}/Split", [packed, graph.constant([shape.hidden] * 3)], outputs=3, axis=-1)
    q, k = (rotate_fused(graph, f"{name}/{which}_rope", x, state.rows, state.tables)
            for which, x in (("q", q), ("k", k)))
    context = graph.node("MultiHeadAttention", f"{name}/MultiHeadAttention", [q, k, v], domain=CONTRIB,
                         num_heads=shape.heads, scale=shape.head_dim**-0.5)
    return graph.node("Squeeze", f"{name}/Squeeze", [context, batch])


def _attend_plain(graph: Graph, name: str, packed: str, shape: VisionAttentionShape, state: PlainState) -> str:
    """The scores `[heads, patches, patches]` are held whole."""
    heads = graph.node("Reshape", f"{name}/Reshape", [packed, graph.constant([0, 3 * shape.heads, shape.head_dim])])
    q, k, v = graph.node("Split", f"{name}/Split", [heads, graph.constant([shape.heads] * 3)], outputs=3, axis=1)
    q = rotate(graph, f"{name}/q_rope", q, state.rows, shape.head_dim)
    k = rotate(graph, f"{name}/k_rope", k, state.rows, shape.head_dim)
    scaled = graph.node("Mul", f"{name}/scale/Mul", [q, graph.constant(shape.head_dim**-0.5, graph.options.dtype)])
    q = graph.node("Transpose", f"{name}/q/Transpose", [scaled], perm=[1, 0, 2])
    k = graph.node("Transpose", f"{name}/k/Transpose", [k], perm=[1, 2, 0])
    v = graph.node("Transpose", f"{name}/v/Transpose", [v], perm=[1, 0, 2])
    scores = graph.node("MatMul", f"{name}/scores/MatMul", [q, k])
    shares = graph.node("Softmax", f"{name}/Softmax", [scores], axis=-1)
    context = graph.node("MatMul", f"{name}/context/MatMul", [shares, v])
    context = graph.node("Transpose", f"{name}/context/Transpose", [context], perm=[1, 0, 2])
    return graph.node("Reshape", f"{name}/context/Reshape", [context, graph.constant([0, shape.hidden])])
