"""Experts of a mixture: their weights in either layout of checkpoints, and the contrib operators MoE and QMoE."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ortbench_export.blocks.experts_plain import grouped_experts
from ortbench_export.blocks.router import RouterShape, Routing, dense_mixing, route
from ortbench_export.errors import ExportError
from ortbench_export.graph import CONTRIB, ONNX_TYPES, Graph, tensor_name
from ortbench_export.weights.tensors import Matrix, Part, Production, StoredTensor

# What both operators must be told to compute plain silu(gate) · up with gate and up interleaved, the one layout that
# their CPU kernels accept.
SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}


@dataclass(frozen=True)
class ExpertsShape:
    """Gated feed-forward blocks, `width` wide inside, behind a router."""

    router: RouterShape
    width: int

    @property
    def parameters(self) -> int:
        """Weights of one expert."""
        return 3 * self.router.hidden * self.width

    @property
    def gate_up(self) -> tuple[int, int, int]:
        return self.router.experts, 2 * self.width, self.router.hidden

    @property
    def down(self) -> tuple[int, int, int]:
        return self.router.experts, self.router.hidden, self.width


def mixture(graph: Graph, name: str, source_name: str, x: str, shape: ExpertsShape, output_gain: float) -> str:
    """Route and mix: `x` `[batch, sequence, hidden]` → the same shape; the checkpoint's tensors begin with
    `source_name`, its router's with `{source_name}.gate`."""
    router = shape.router
    flat = graph.node("Reshape", f"{name}/Reshape_in", [x, graph.constant([-1, router.hidden])])
    routing = route(graph, f"{name}/router", f"{source_name}.gate", flat, router, graph.options.fused)
    gate_up, down = _matrices(graph, f"{source_name}.experts", shape, output_gain)
    first = _stack(graph, f"{name}/experts/gate_up_proj", gate_up, shape.gate_up, router.chosen)
    second = _stack(graph, f"{name}/experts/down_proj", down, shape.down, router.chosen)
    if not graph.options.fused:
        mixed = grouped_experts(graph, f"{name}/experts", flat, routing, first, second, router, shape.width)
    elif graph.options.scheme:
        mixed = _qmoe(graph, f"{name}/experts", flat, routing, first, second, router)
    else:
        mixed = _moe(graph, f"{name}/experts", flat, routing, first, second, router)
    return graph.node("Reshape", f"{name}/Reshape_out", [mixed, graph.node("Shape", f"{name}/Shape", [x])])


def _matrices(graph: Graph, source_name: str, shape: ExpertsShape, output_gain: float) -> tuple[Matrix, Matrix]:
    """Rows of all experts, one expert after the other: gate and up `[experts · 2 · width, hidden]`, alternating row by
    row in fused graphs and one after the other in plain ones, and down `[experts · hidden, width]`."""
    experts, hidden, width = shape.router.experts, shape.router.hidden, shape.width
    stacked = f"{source_name}.gate_up_proj"
    if graph.source.has(stacked):
        # One tensor for all experts, each expert's gate before its up.
        graph.source.require(stacked, shape.gate_up)
        graph.source.require(f"{source_name}.down_proj", shape.down)
        pairs = [((stacked, start), (stacked, start + width)) for start in range(0, 2 * width * experts, 2 * width)]
        down = (Part(f"{source_name}.down_proj", experts * hidden),)
    else:
        names = [f"{source_name}.{expert}" for expert in range(experts)]
        for each in names:
            graph.source.require(f"{each}.gate_proj.weight", (width, hidden))
            graph.source.require(f"{each}.up_proj.weight", (width, hidden))
            graph.source.require(f"{each}.down_proj.weight", (hidden, width))
        pairs = [((f"{each}.gate_proj.weight", 0), (f"{each}.up_proj.weight", 0)) for each in names]
        down = tuple(Part(f"{each}.down_proj.weight", hidden) for each in names)
    if graph.options.fused:
        gate_up = tuple(Part(gate, 2 * width, start, up) for (gate, start), up in pairs)
    else:
        gate_up = tuple(Part(tensor, width, start) for pair in pairs for tensor, start in pair)
    return Matrix(gate_up, hidden), Matrix(down, width, output_gain)


def _stack(graph: Graph, name: str, matrix: Matrix, stacked: tuple[int, int, int], chosen: int) -> tuple[str, ...]:
    """Plan `[experts, rows, columns]`: one tensor of floats, or bytes of codes and scales."""
    options, (experts, rows, columns) = graph.options, stacked
    scheme, dtype = options.scheme, options.dtype
    if scheme is None:
        stored = StoredTensor(tensor_name(name, "weight"), ONNX_TYPES[dtype], stacked, chosen)
        return graph.weights(Production((stored,), lambda: graph.source.floats(matrix, dtype, transposed=False)))
    if columns % scheme.block_size:
        raise ExportError(
            f"`{matrix.parts[0].tensor}` has {columns} inputs: those of quantized experts must be a multiple of the "
            f"block size {scheme.block_size}", "choose another `--block-size`, or `--precision fp16`")
    codes = StoredTensor(tensor_name(name, f"weight_q{scheme.bits}"), TensorProto.UINT8,
                         (experts, rows, columns * scheme.bits // 8), chosen)
    scales = StoredTensor(tensor_name(name, "scales"), ONNX_TYPES[dtype], (experts, rows, scheme.blocks(columns)),
                          chosen)
    return graph.weights(Production((codes, scales),
                                    lambda: graph.source.quantized(matrix, scheme, dtype, transposed=False)))


def _qmoe(graph: Graph, name: str, x: str, routing: Routing, gate_up: tuple[str, ...], down: tuple[str, ...],
          router: RouterShape) -> str:
    options = graph.options
    inputs = [x, "", *gate_up, "", *down]
    if routing.ids is None:
        inputs[1] = _narrow(graph, f"{name}/logits", routing.logits)
    else:
        # The kernel chooses by one input and mixes by another. Both are the finished mixing weights, so that it
        # chooses what the router chose even where float16 cannot tell the preferences apart.
        mixing = dense_mixing(graph, f"{name}/mixing", x, routing, routing.mixing, -1.0, router)
        mixing = _narrow(graph, f"{name}/mixing", mixing)
        inputs[1] = mixing
        inputs += [""] * 7 + [mixing]
    # The level is stated even where it is the default: ONNX Runtime 1.24 refuses the attribute, and without it would
    # compute wrong products of 4-bit experts.
    return graph.node(
        "QMoE", f"{name}/QMoE", inputs, domain=CONTRIB, **SWIGLU, k=router.chosen,
        expert_weight_bits=options.scheme.bits, block_size=options.scheme.block_size,
        accuracy_level=options.accuracy_level, normalize_routing_weights=int(routing.ids is None),
    )


def _moe(graph: Graph, name: str, x: str, routing: Routing, gate_up: tuple[str, ...], down: tuple[str, ...],
         router: RouterShape) -> str:
    """The operator mixes by the softmax over the chosen logits. Other mixing weights are passed as their logarithms,
    which softmax turns into the weights divided by their sum, and the result is multiplied by that sum."""
    logits, total = routing.logits, None
    if routing.ids is not None:
        total = graph.node("ReduceSum", f"{name}/mixing/ReduceSum", [routing.mixing, graph.constant([-1])], keepdims=1)
        logits = graph.node("Log", f"{name}/mixing/Log", [routing.mixing])
        lowest = float(np.finfo(graph.options.dtype).min)
        logits = dense_mixing(graph, f"{name}/mixing", x, routing, logits, lowest, router)
    logits = _narrow(graph, f"{name}/logits", logits)
    mixed = graph.node("MoE", f"{name}/MoE", [x, logits, *gate_up, "", *down], domain=CONTRIB, **SWIGLU,
                       k=router.chosen, normalize_routing_weights=1)
    if total is None:
        return mixed
    return graph.node("Mul", f"{name}/Mul", [mixed, _narrow(graph, f"{name}/total", total)])


def _narrow(graph: Graph, name: str, x: str) -> str:
    """float32 to the type of the activations."""
    dtype = graph.options.dtype
    return x if dtype == np.float32 else graph.node("Cast", f"{name}/Cast", [x], to=ONNX_TYPES[dtype])
