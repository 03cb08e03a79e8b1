"""Grouped-query attention with normalised queries and keys, and a cache of keys and values.

`AttentionState` holds what all layers share; it is made once by `begin_attention`.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ortbench_export.blocks.linear import linear
from ortbench_export.blocks.mask import visible_keys
from ortbench_export.blocks.mrope import Mrope, mrope_table, mrope_waves
from ortbench_export.blocks.norm import norm_weight, rms_norm
from ortbench_export.blocks.rope import rope_rows, rope_tables, rotate, rotate_fused, rotate_rows
from ortbench_export.errors import ExportError
from ortbench_export.graph import CONTRIB, Graph, Port
from ortbench_export.weights.tensors import Matrix, Part

FUSED_HEAD_MULTIPLE = 16


@dataclass(frozen=True)
class AttentionShape:
    """`heads` query heads share `kv_heads` heads of keys and values, all `head_dim` wide."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float


@dataclass(frozen=True)
class FusedState:
    """int32 `[batch]` lengths less one, the int32 total, and the rotary tables with each token's row in them, int64
    `[batch, sequence]`; without rows the kernel counts positions itself."""

    lengths: str
    total: str
    tables: tuple[str, str]
    rows: str | None = None


@dataclass(frozen=True)
class PlainState:
    """Which keys a query may see, bool `[batch, 1, sequence, total]`; rotary rows; shapes of the scores per head and
    per group."""

    visible: str
    rows: tuple[str, str]
    per_head: str
    per_group: str


def begin_attention(graph: Graph, shape: AttentionShape, positions: int, theta: float,
                    mrope: Mrope | None = None) -> FusedState | PlainState:
    """Add the inputs `attention_mask` (and `position_ids` in plain and in M-RoPE) and what every layer derives from
    them; `positions` are the rows of the rotary tables, which M-RoPE does without."""
    if graph.options.fused and shape.head_dim % FUSED_HEAD_MULTIPLE:
        raise ExportError(f"`head_dim` is {shape.head_dim}; ONNX Runtime's GroupQueryAttention wants a multiple of "
                          f"{FUSED_HEAD_MULTIPLE}", "export with `--flavour plain`")
    mask = graph.add_input(Port("attention_mask", "attention_mask", np.int64, ("batch", "total")))
    if mrope is not None:
        waves = mrope_waves(graph, shape.head_dim, theta, mrope)
        if graph.options.fused:
            return FusedState(*_lengths(graph, mask), *mrope_table(graph, waves))
        return _plain_state(graph, shape, mask, rotate_rows(graph, *waves))
    if graph.options.fused:
        tables = rope_tables(graph, positions, shape.head_dim, theta)
        return FusedState(*_lengths(graph, mask), tables)
    position_ids = graph.add_input(Port("position_ids", "position_ids", np.int64, ("batch", "sequence")))
    tables = rope_tables(graph, positions, shape.head_dim, theta)
    return _plain_state(graph, shape, mask, rope_rows(graph, position_ids, tables))


def cache_ports(graph: Graph, layer: int, shape: AttentionShape) -> tuple[str, str, str, str]:
    """Inputs and outputs of one layer's cache: past key and value, present key and value."""
    dtype, dims = graph.options.dtype, (shape.kv_heads, shape.head_dim)
    names = []
    for what in ("key", "value"):
        names.append(graph.add_input(Port(f"past_key_values.{layer}.{what}", f"past_{what}", dtype,
                                          ("batch", dims[0], "past", dims[1]), layer)))
    for what in ("key", "value"):
        names.append(graph.add_output(Port(f"present.{layer}.{what}", f"present_{what}", dtype,
                                           ("batch", dims[0], "total", dims[1]), layer)))
    return tuple(names)


def attention(graph: Graph, layer: int, source_name: str, x: str, shape: AttentionShape,
              state: FusedState | PlainState, output_gain: float) -> str:
    """Self-attention over `x` `[batch, sequence, hidden]`; the checkpoint's tensors begin with `source_name`."""
    name = f"/model/layers.{layer}/attn"
    cache = cache_ports(graph, layer, shape)
    widths = [shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim]
    parts = tuple(Part(f"{source_name}.{which}_proj.weight", rows) for which, rows in zip("qkv", widths, strict=True))
    packed = linear(graph, f"{name}/qkv_proj", x, Matrix(parts, shape.hidden))
    q, k, v = graph.node("Split", f"{name}/qkv_proj/Split", [packed, graph.constant(widths)], outputs=3, axis=-1)
    q_weight = norm_weight(graph, f"{name}/q_norm", f"{source_name}.q_norm.weight", shape.head_dim)
    k_weight = norm_weight(graph, f"{name}/k_norm", f"{source_name}.k_norm.weight", shape.head_dim)
    q = _heads_norm(graph, f"{name}/q_norm", q, q_weight, shape.heads, shape)
    k = _heads_norm(graph, f"{name}/k_norm", k, k_weight, shape.kv_heads, shape)
    attend = _attend_fused if graph.options.fused else _attend_plain
    context = attend(graph, name, q, k, v, cache, shape, state)
    output = Matrix((Part(f"{source_name}.o_proj.weight", shape.hidden),), widths[0], output_gain)
    return linear(graph, f"{name}/o_proj", context, output)


def _heads_norm(graph: Graph, name: str, x: str, weight: str, heads: int, shape: AttentionShape) -> str:
    """Normalise each head: `[batch, sequence, heads · head_dim]` → `[batch, sequence, heads, head_dim]`."""
    split = graph.node("Reshape", f"{name}/Reshape", [x, graph.constant([0, 0, heads, shape.head_dim])])
    return rms_norm(graph, name, split, weight, shape.norm_epsilon)


def _attend_fused(graph: Graph, name: str, q: str, k: str, v: str, cache, shape: AttentionShape,
                  state: FusedState) -> str:
    q = graph.node("Reshape", f"{name}/q_norm/Reshape_out", [q, graph.constant([0, 0, shape.heads * shape.head_dim])])
    k = graph.node("Reshape", f"{name}/k_norm/Reshape_out",
                   [k, graph.constant([0, 0, shape.kv_heads * shape.head_dim])])
    past_key, past_value, present_key, present_value = cache
    inputs, rotary = [past_key, past_value, state.lengths, state.total], {"do_rotary": 0}
    if state.rows is None:
        inputs, rotary = [*inputs, *state.tables], {"do_rotary": 1, "rotary_interleaved": 0}
    else:
        q, k = (rotate_fused(graph, f"{name}/{which}_rope", x, state.rows, state.tables)
                for which, x in (("q", q), ("k", k)))
    node = f"{name}/GroupQueryAttention"
    return graph.node(
        "GroupQueryAttention", node, [q, k, v, *inputs], outputs=[f"{node}/output_0", present_key, present_value],
        domain=CONTRIB, num_heads=shape.heads, kv_num_heads=shape.kv_heads, scale=shape.head_dim**-0.5, **rotary,
    )[0]


def _attend_plain(graph: Graph, name: str, q: str, k: str, v: str, cache, shape: AttentionShape,
                  state: PlainState) -> str:
    """Queries of one group are stacked as rows, so that keys and values are never repeated for them."""
    past_key, past_value, present_key, present_value = cache
    q = rotate(graph, f"{name}/q_rope", q, state.rows, shape.head_dim)
    k = rotate(graph, f"{name}/k_rope", k, state.rows, shape.head_dim)
    v = graph.node("Reshape", f"{name}/v_proj/Reshape", [v, graph.constant([0, 0, shape.kv_heads, shape.head_dim])])
    q, k, v = (graph.node("Transpose", f"{name}/{which}_proj/Transpose", [x], perm=[0, 2, 1, 3])
               for which, x in (("q", q), ("k", k), ("v", v)))
    keys = graph.node("Concat", f"{name}/key/Concat", [past_key, k], outputs=[present_key], axis=2)
    values = graph.node("Concat", f"{name}/value/Concat", [past_value, v], outputs=[present_value], axis=2)

    q = graph.node("Mul", f"{name}/scale/Mul", [q, graph.constant(shape.head_dim**-0.5, graph.options.dtype)])
    q = graph.node("Reshape", f"{name}/group/Reshape", [q, graph.constant([0, shape.kv_heads, -1, shape.head_dim])])
    keys = graph.node("Transpose", f"{name}/key/Transpose", [keys], perm=[0, 1, 3, 2])
    scores = graph.node("MatMul", f"{name}/scores/MatMul", [q, keys])
    scores = graph.node("Reshape", f"{name}/scores/Reshape", [scores, state.per_head])
    # The lowest finite number instead of minus infinity: a padded query sees no key at all, and must stay finite.
    lowest = graph.constant(np.finfo(graph.options.dtype).min, graph.options.dtype)
    scores = graph.node("Where", f"{name}/mask/Where", [state.visible, scores, lowest])
    shares = graph.node("Softmax", f"{name}/Softmax", [scores], axis=-1)
    shares = graph.node("Reshape", f"{name}/shares/Reshape", [shares, state.per_group])
    context = graph.node("MatMul", f"{name}/context/MatMul", [shares, values])
    context = graph.node("Reshape", f"{name}/context/Reshape",
                         [context, graph.constant([0, shape.heads, -1, shape.head_dim])])
    context = graph.node("Transpose", f"{name}/context/Transpose", [context], perm=[0, 2, 1, 3])
    return graph.node("Reshape", f"{name}/context/Reshape_out",
                      [context, graph.constant([0, 0, shape.heads * shape.head_dim])])


def _lengths(graph: Graph, mask: str) -> tuple[str, str]:
    """What GroupQueryAttention wants: each row's real tokens less one, and the width of the mask, both int32."""
    name = "/model/lengths"
    counted = graph.node("ReduceSum", f"{name}/ReduceSum", [mask, graph.constant([1])], keepdims=0)
    less_one = graph.node("Sub", f"{name}/Sub", [counted, graph.constant([1])])
    lengths = graph.node("Cast", f"{name}/Cast", [less_one], to=TensorProto.INT32)
    width = graph.node("Shape", f"{name}/total/Shape", [mask], start=1, end=2)
    scalar = graph.node("Squeeze", f"{name}/total/Squeeze", [width, graph.constant([0])])
    return lengths, graph.node("Cast", f"{name}/total/Cast", [scalar], to=TensorProto.INT32)


def _plain_state(graph: Graph, shape: AttentionShape, mask: str, rows: tuple[str, str]) -> PlainState:
    name = "/model/mask"
    visible, total = visible_keys(graph, mask)
    per_head = graph.node("Concat", f"{name}/per_head/Concat", [graph.constant([0, shape.heads, -1]), total], axis=0)
    per_group = graph.node("Concat", f"{name}/per_group/Concat", [graph.constant([0, shape.kv_heads, -1]), total],
                           axis=0)
    return PlainState(visible, rows, per_head, per_group)
