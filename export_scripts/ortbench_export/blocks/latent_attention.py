"""Multi-head latent attention: queries, keys and values through narrow projections, and two forms of the cache.

Keys and values of all heads are linear functions of one latent per token; beside it stands one rotated part that the
heads share. `expanded` computes each head's keys and values and caches them. `absorbed` caches the latent and the
rotated part, and moves the latent's expansion to the other side of both products: into the query before the scores,
onto the context after them. Both give the same logits.
"""

from dataclasses import dataclass

import numpy as np

from ortbench_export.blocks.linear import linear
from ortbench_export.blocks.mask import visible_keys
from ortbench_export.blocks.norm import norm_weight, rms_norm
from ortbench_export.blocks.rope import rope_rows, rope_tables, rotate
from ortbench_export.graph import ONNX_TYPES, Graph, Port, tensor_name
from ortbench_export.weights.tensors import Matrix, Part, Production, StoredTensor

# The norms of the latents have an epsilon of their own, which config.json does not state.
LATENT_EPSILON = 1e-6


@dataclass(frozen=True)
class LatentShape:
    """A head's query and key are `nope` numbers without position and `rope` rotated ones, its value is `value` wide.
    `query_latent` is None where queries are projected directly."""

    hidden: int
    heads: int
    query_latent: int | None
    latent: int
    nope: int
    rope: int
    value: int
    interleaved: bool

    @property
    def key(self) -> int:
        return self.nope + self.rope

    @property
    def parameters(self) -> int:
        """Weights of one layer's projections and of the norms between them."""
        queries = self.heads * self.key
        query = self.hidden * queries
        if self.query_latent is not None:
            query = self.query_latent * (self.hidden + queries + 1)
        keys = self.hidden * (self.latent + self.rope) + self.latent * (1 + self.heads * (self.nope + self.value))
        return query + keys + self.heads * self.value * self.hidden

    def cached(self, form: str) -> tuple[int, int, int]:
        """Heads, width of what the cache calls key and width of what it calls value."""
        return (1, self.latent, self.rope) if form == "absorbed" else (self.heads, self.key, self.value)

    def multiplied(self, form: str) -> int:
        """Multiplications of one query head with one token of the cache. Absorbed, the latent serves twice."""
        return 2 * self.latent + self.rope if form == "absorbed" else self.key + self.value

    def expansion(self, start: int, rows: int, source_name: str) -> Matrix:
        """Rows `start` to `start + rows` of every head in `kv_b_proj`: `nope` rows of keys, then those of values."""
        step = self.nope + self.value
        parts = (Part(f"{source_name}.kv_b_proj.weight", rows, head * step + start) for head in range(self.heads))
        return Matrix(tuple(parts), self.latent)


@dataclass(frozen=True)
class LatentState:
    """What all layers share: which keys a query may see, bool `[batch, 1, sequence, total]`, the rotary rows, and for
    the absorbed form the shapes of the scores with one row a query of each head, and with the heads apart."""

    visible: str
    rows: tuple[str, str]
    stacked: str | None = None
    apart: str | None = None


def begin_latent_attention(graph: Graph, shape: LatentShape, positions: int, theta: float) -> LatentState:
    """Add the inputs `attention_mask` and `position_ids` and what every layer derives from them."""
    mask = graph.add_input(Port("attention_mask", "attention_mask", np.int64, ("batch", "total")))
    position_ids = graph.add_input(Port("position_ids", "position_ids", np.int64, ("batch", "sequence")))
    tables = rope_tables(graph, positions, shape.rope, theta)
    visible, total = visible_keys(graph, mask)
    rows = rope_rows(graph, position_ids, tables, shape.interleaved)
    if graph.options.attention != "absorbed":
        return LatentState(visible, rows)
    stacked = graph.node("Concat", "/model/mask/stacked/Concat", [graph.constant([0, 1, -1]), total], axis=0)
    apart = graph.node("Concat", "/model/mask/apart/Concat", [graph.constant([0, shape.heads, -1]), total], axis=0)
    return LatentState(visible, rows, stacked, apart)


def latent_attention(graph: Graph, layer: int, source_name: str, x: str, shape: LatentShape, state: LatentState,
                     output_gain: float) -> str:
    """Self-attention over `x` `[batch, sequence, hidden]`; the checkpoint's tensors begin with `source_name`."""
    name = f"/model/layers.{layer}/attn"
    past, present = _cache_ports(graph, layer, shape)
    query, latent, shared = _project(graph, name, source_name, x, shape)
    q_nope, q_rope = _split(graph, f"{name}/q", _heads(graph, f"{name}/q", query, shape.heads, shape.key),
                            [shape.nope, shape.rope])
    q_rope = rotate(graph, f"{name}/q_rope", q_rope, state.rows, shape.rope, shape.interleaved)
    shared = rotate(graph, f"{name}/k_rope", _heads(graph, f"{name}/k_rope", shared, 1, shape.rope), state.rows,
                    shape.rope, shape.interleaved)
    form = _absorbed if graph.options.attention == "absorbed" else _expanded
    context = form(graph, name, source_name, (q_nope, q_rope), (latent, shared), (past, present), shape, state)
    width = shape.heads * shape.value
    context = graph.node("Reshape", f"{name}/context/Reshape_out", [context, graph.constant([0, 0, width])])
    return linear(graph, f"{name}/o_proj", context,
                  Matrix((Part(f"{source_name}.o_proj.weight", shape.hidden),), width, output_gain))


def _cache_ports(graph: Graph, layer: int, shape: LatentShape) -> tuple[list[str], list[str]]:
    """Names of (key, value) past and of (key, value) present."""
    heads, *widths = shape.cached(graph.options.attention)
    pairs = list(zip(("key", "value"), widths, strict=True))
    past = [graph.add_input(Port(f"past_key_values.{layer}.{what}", f"past_{what}", graph.options.dtype,
                                 ("batch", heads, "past", width), layer)) for what, width in pairs]
    present = [graph.add_output(Port(f"present.{layer}.{what}", f"present_{what}", graph.options.dtype,
                                     ("batch", heads, "total", width), layer)) for what, width in pairs]
    return past, present


def _project(graph: Graph, name: str, source_name: str, x: str, shape: LatentShape) -> tuple[str, str, str]:
    """Queries `[batch, sequence, heads · key]`, normalised latent `[…, latent]`, shared part `[…, rope]`."""
    down = Part(f"{source_name}.kv_a_proj_with_mqa.weight", shape.latent + shape.rope)
    queries = shape.heads * shape.key
    if shape.query_latent is None:
        first, query_width = Part(f"{source_name}.q_proj.weight", queries), queries
    else:
        first, query_width = Part(f"{source_name}.q_a_proj.weight", shape.query_latent), shape.query_latent
    packed = linear(graph, f"{name}/qkv_a_proj", x, Matrix((first, down), shape.hidden))
    query, latent, shared = _split(graph, f"{name}/qkv_a_proj", packed, [query_width, shape.latent, shape.rope])
    if shape.query_latent is not None:
        query = _latent_norm(graph, f"{name}/q_a_layernorm", f"{source_name}.q_a_layernorm", query, query_width)
        query = linear(graph, f"{name}/q_b_proj", query,
                       Matrix((Part(f"{source_name}.q_b_proj.weight", queries),), query_width))
    latent = _latent_norm(graph, f"{name}/kv_a_layernorm", f"{source_name}.kv_a_layernorm", latent, shape.latent)
    return query, latent, shared


def _expanded(graph: Graph, name: str, source_name: str, query, new, cache, shape: LatentShape,
              state: LatentState) -> str:
    """Context `[batch, sequence, heads, value]` from a cache of every head's keys and values."""
    (latent, shared), (past, present) = new, cache
    graph.source.require(f"{source_name}.kv_b_proj.weight", (shape.heads * (shape.nope + shape.value), shape.latent))
    both = linear(graph, f"{name}/kv_b_proj", latent,
                  Matrix((Part(f"{source_name}.kv_b_proj.weight", shape.heads * (shape.nope + shape.value)),),
                         shape.latent))
    both = _heads(graph, f"{name}/kv_b_proj", both, shape.heads, shape.nope + shape.value)
    k_nope, value = _split(graph, f"{name}/kv_b_proj", both, [shape.nope, shape.value])
    repeated = graph.node("Expand", f"{name}/k_rope/Expand", [shared, graph.constant([1, 1, shape.heads, 1])])
    key = graph.node("Concat", f"{name}/k/Concat", [k_nope, repeated], axis=-1)
    query = graph.node("Concat", f"{name}/q/Concat", list(query), axis=-1)
    query, key, value = (graph.node("Transpose", f"{name}/{what}/Transpose", [part], perm=[0, 2, 1, 3])
                         for what, part in (("q", query), ("k", key), ("v", value)))
    keys, values = _append(graph, name, past, (key, value), present)
    scores = _against(graph, f"{name}/scores", query, keys)
    shares = _shares(graph, name, scores, shape, state)
    context = graph.node("MatMul", f"{name}/context/MatMul", [shares, values])
    return graph.node("Transpose", f"{name}/context/Transpose", [context], perm=[0, 2, 1, 3])


def _absorbed(graph: Graph, name: str, source_name: str, query, new, cache, shape: LatentShape,
              state: LatentState) -> str:
    """Context `[batch, sequence, heads, value]` from a cache of latents and shared rotated parts.

    The expansion is a batch of products, one a head, for which there is no quantized operator: it stays in the type
    of the activations. Queries of all heads are stacked as rows, so that the cache is read once for all of them.
    """
    (latent, shared), (past, present) = new, cache
    graph.source.require(f"{source_name}.kv_b_proj.weight", (shape.heads * (shape.nope + shape.value), shape.latent))
    to_latent = _expansion(graph, f"{name}/kv_b_proj/key", shape.expansion(0, shape.nope, source_name), shape.heads)
    to_value = _expansion(graph, f"{name}/kv_b_proj/value", shape.expansion(shape.nope, shape.value, source_name),
                          shape.heads)
    q_nope, q_rope = (graph.node("Transpose", f"{name}/{what}/Transpose", [part], perm=[0, 2, 1, 3])
                      for what, part in zip(("q_nope", "q_rope"), query, strict=True))
    q_latent = graph.node("MatMul", f"{name}/q_latent/MatMul", [q_nope, to_latent])
    latent = graph.node("Unsqueeze", f"{name}/latent/Unsqueeze", [latent, graph.constant([1])])
    shared = graph.node("Transpose", f"{name}/k_rope/Transpose", [shared], perm=[0, 2, 1, 3])
    latents, rotated = _append(graph, name, past, (latent, shared), present)
    rows = (graph.node("Reshape", f"{name}/{what}/Reshape_rows", [part, graph.constant([0, 1, -1, width])])
            for what, part, width in (("q_latent", q_latent, shape.latent), ("q_rope", q_rope, shape.rope)))
    by_content, by_position = (
        _against(graph, f"{name}/scores_{what}", row, cached)
        for what, row, cached in zip(("latent", "rope"), rows, (latents, rotated), strict=True))
    scores = graph.node("Add", f"{name}/scores/Add", [by_content, by_position])
    scores = graph.node("Reshape", f"{name}/scores/Reshape", [scores, state.apart])
    shares = _shares(graph, name, scores, shape, state)
    shares = graph.node("Reshape", f"{name}/shares/Reshape", [shares, state.stacked])
    context = graph.node("MatMul", f"{name}/context/MatMul", [shares, latents])
    context = graph.node("Reshape", f"{name}/context/Reshape",
                         [context, graph.constant([0, shape.heads, -1, shape.latent])])
    columns = graph.node("Transpose", f"{name}/context/Transpose", [context], perm=[0, 1, 3, 2])
    values = graph.node("MatMul", f"{name}/context/MatMul_value", [to_value, columns])
    return graph.node("Transpose", f"{name}/context/Transpose_out", [values], perm=[0, 3, 1, 2])


def _shares(graph: Graph, name: str, scores: str, shape: LatentShape, state: LatentState) -> str:
    """Softmax over the visible keys; scores `[batch, heads, sequence, total]`."""
    dtype = graph.options.dtype
    scores = graph.node("Mul", f"{name}/scale/Mul", [scores, graph.constant(shape.key**-0.5, dtype)])
    # The lowest finite number instead of minus infinity: a padded query sees no key at all, and must stay finite.
    lowest = graph.constant(np.finfo(dtype).min, dtype)
    scores = graph.node("Where", f"{name}/mask/Where", [state.visible, scores, lowest])
    return graph.node("Softmax", f"{name}/Softmax", [scores], axis=-1)


def _against(graph: Graph, name: str, query: str, keys: str) -> str:
    transposed = graph.node("Transpose", f"{name}/Transpose", [keys], perm=[0, 1, 3, 2])
    return graph.node("MatMul", f"{name}/MatMul", [query, transposed])


def _append(graph: Graph, name: str, past, new, present) -> list[str]:
    return [graph.node("Concat", f"{name}/{what}/Concat", [before, after], outputs=[output], axis=2)
            for what, before, after, output in zip(("key", "value"), past, new, present, strict=True)]


def _expansion(graph: Graph, name: str, matrix: Matrix, heads: int) -> str:
    """`[heads, rows of one head, latent]`."""
    dtype = graph.options.dtype
    stored = StoredTensor(tensor_name(name, "weight"), ONNX_TYPES[dtype],
                          (heads, matrix.rows // heads, matrix.columns))
    return graph.weights(Production((stored,), lambda: graph.source.floats(matrix, dtype, transposed=False)))[0]


def _latent_norm(graph: Graph, name: str, source_name: str, x: str, width: int) -> str:
    weight = norm_weight(graph, name, f"{source_name}.weight", width)
    return rms_norm(graph, name, x, weight, LATENT_EPSILON)


def _heads(graph: Graph, name: str, x: str, heads: int, width: int) -> str:
    """`[batch, sequence, heads · width]` → `[batch, sequence, heads, width]`."""
    return graph.node("Reshape", f"{name}/Reshape", [x, graph.constant([0, 0, heads, width])])


def _split(graph: Graph, name: str, x: str, widths: list[int]) -> list[str]:
    return graph.node("Split", f"{name}/Split", [x, graph.constant(widths)], outputs=len(widths), axis=-1)
