"""Routers: which experts a token goes to, and how their outputs are mixed.

Scores are computed in float32 from an unquantized weight whatever the precision of the export: rounding that barely
moves an activation can send a token to another expert.
"""

from dataclasses import dataclass

import numpy as np

from ortbench_export.graph import ONNX_TYPES, Graph, tensor_name
from ortbench_export.weights.tensors import Matrix, Part, Production, StoredTensor

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class RouterShape:
    """`chosen` of `experts` take part. Softmax routers choose and mix by probability. Sigmoid routers mix by sigmoids
    and choose by sigmoid plus a correction bias, among the `chosen_groups` best of `groups` groups of experts."""

    hidden: int
    experts: int
    chosen: int
    normalised: bool
    sigmoid: bool = False
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1

    @property
    def by_logits(self) -> bool:
        """Whether the logits alone say everything: softmax over the chosen ones gives the mixing weights."""
        return self.normalised and not self.sigmoid and self.scale == 1.0


@dataclass(frozen=True)
class Routing:
    """All `[tokens, …]`, float32: logits of every expert; the chosen experts' ids (int64) and mixing weights. The
    latter two are absent where the logits alone are wanted."""

    logits: str
    ids: str | None = None
    mixing: str | None = None


def route(graph: Graph, name: str, source_name: str, x: str, shape: RouterShape, logits_suffice: bool) -> Routing:
    """Route the tokens `x` `[tokens, hidden]` by the checkpoint's `{source_name}.weight`; `logits_suffice` leaves out
    what a kernel derives from the logits itself, where it can."""
    logits = _logits(graph, name, source_name, x, shape)
    if logits_suffice and shape.by_logits:
        return Routing(logits)
    if shape.sigmoid:
        weights = graph.node("Sigmoid", f"{name}/Sigmoid", [logits])
        bias = _correction_bias(graph, name, source_name, shape)
        preference = graph.node("Add", f"{name}/Add", [weights, bias])
        if shape.chosen_groups < shape.groups:
            preference = _best_groups(graph, f"{name}/groups", preference, shape)
    else:
        weights = preference = graph.node("Softmax", f"{name}/Softmax", [logits], axis=-1)
    highest, ids = graph.node("TopK", f"{name}/TopK", [preference, graph.constant([shape.chosen])], outputs=2, axis=-1)
    mixing = highest
    if shape.sigmoid:
        mixing = graph.node("GatherElements", f"{name}/GatherElements", [weights, ids], axis=-1)
    if shape.normalised:
        total = graph.node("ReduceSum", f"{name}/ReduceSum", [mixing, graph.constant([-1])], keepdims=1)
        mixing = graph.node("Div", f"{name}/Div", [mixing, total])
    if shape.scale != 1.0:
        mixing = graph.node("Mul", f"{name}/Mul", [mixing, graph.constant(shape.scale, FLOAT)])
    return Routing(logits, ids, mixing)


def dense_mixing(graph: Graph, name: str, x: str, routing: Routing, mixing: str, absent: float,
                 shape: RouterShape) -> str:
    """`mixing` `[tokens, chosen]` at the chosen experts' places of `[tokens, experts]`, `absent` everywhere else."""
    rows = graph.node("Shape", f"{name}/Shape", [x], start=0, end=1)
    size = graph.node("Concat", f"{name}/Concat", [rows, graph.constant([shape.experts])], axis=0)
    empty = graph.node("Expand", f"{name}/Expand", [graph.constant(absent, FLOAT), size])
    return graph.node("ScatterElements", f"{name}/ScatterElements", [empty, routing.ids, mixing], axis=1)


def _logits(graph: Graph, name: str, source_name: str, x: str, shape: RouterShape) -> str:
    matrix = Matrix((Part(f"{source_name}.weight", shape.experts),), shape.hidden)
    graph.source.require(f"{source_name}.weight", (shape.experts, shape.hidden))
    stored = StoredTensor(tensor_name(name, "weight"), ONNX_TYPES[FLOAT], (shape.hidden, shape.experts))
    (weight,) = graph.weights(Production((stored,), lambda: graph.source.floats(matrix, FLOAT, transposed=True)))
    if graph.options.dtype != FLOAT:
        x = graph.node("Cast", f"{name}/Cast", [x], to=ONNX_TYPES[FLOAT])
    return graph.node("MatMul", f"{name}/MatMul", [x, weight])


def _correction_bias(graph: Graph, name: str, source_name: str, shape: RouterShape) -> str:
    tensor = f"{source_name}.e_score_correction_bias"
    graph.source.require(tensor, (shape.experts,))
    stored = StoredTensor(tensor_name(name, "e_score_correction_bias"), ONNX_TYPES[FLOAT], (shape.experts,))
    return graph.weights(Production((stored,), lambda: graph.source.vector(tensor, shape.experts, FLOAT)))[0]


def _best_groups(graph: Graph, name: str, preference: str, shape: RouterShape) -> str:
    """`preference` with the lowest number in every group but the best ones; two experts speak for a group."""
    grouped = graph.node("Reshape", f"{name}/Reshape_in", [preference, graph.constant([0, shape.groups, -1])])
    best, _ = graph.node("TopK", f"{name}/experts/TopK", [grouped, graph.constant([2])], outputs=2, axis=-1)
    scores = graph.node("ReduceSum", f"{name}/ReduceSum", [best, graph.constant([-1])], keepdims=0)
    _, ids = graph.node("TopK", f"{name}/TopK", [scores, graph.constant([shape.chosen_groups])], outputs=2, axis=-1)
    # A group is in when one of the chosen ids is its own.
    ids = graph.node("Unsqueeze", f"{name}/Unsqueeze_ids", [ids, graph.constant([1])])
    own = graph.constant(np.arange(shape.groups)[:, None].tolist())
    same = graph.node("Equal", f"{name}/Equal", [ids, own])
    hits = graph.node("Cast", f"{name}/Cast", [same], to=ONNX_TYPES[FLOAT])
    hits = graph.node("ReduceSum", f"{name}/hits/ReduceSum", [hits, graph.constant([-1])], keepdims=1)
    taken = graph.node("Greater", f"{name}/Greater", [hits, graph.constant(0, FLOAT)])
    lowest = graph.constant(np.finfo(FLOAT).min, FLOAT)
    kept = graph.node("Where", f"{name}/Where", [taken, grouped, lowest])
    return graph.node("Reshape", f"{name}/Reshape_out", [kept, graph.constant([0, shape.experts])])
