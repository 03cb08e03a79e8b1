"""Experts in standard operators: tokens grouped by expert, a batched product over the groups.

Assignments of tokens to experts (`tokens · chosen` of them) are sorted into chunks of `size` rows, each chunk of one
expert. The chunks' weights are gathered and multiplied in one batch. `size` is the mean number of rows an expert gets,
rounded up: a decode step gathers the chosen experts alone and computes nothing else, and a long prompt gathers at most
twice the number of experts. (A Loop over experts would gather one at a time, but OpenVINO's provider fails on it.)
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ortbench_export.blocks.router import RouterShape, Routing
from ortbench_export.graph import ONNX_TYPES, Graph


@dataclass(frozen=True)
class Chunks:
    """`experts` int64 `[chunks]`: whose chunk each is. `tokens` int64 `[chunks, size]`: which token stands in each
    row; rows left over name token 0, and nobody reads them. `rows` int64 `[tokens · chosen]`: where each assignment
    went."""

    experts: str
    tokens: str
    rows: str


def grouped_experts(graph: Graph, name: str, x: str, routing: Routing, gate_up: tuple[str, ...],
                    down: tuple[str, ...], router: RouterShape, width: int) -> str:
    """Mixed outputs `[tokens, hidden]` of `x` `[tokens, hidden]`; weights are stacks `[experts, rows, columns]`, an
    expert's gate before its up."""
    chunks = _chunks(graph, f"{name}/chunks", routing.ids, router)
    # Columns are tokens, so that weights are used as they lie, outputs × inputs.
    rows = graph.node("Gather", f"{name}/input/Gather", [x, chunks.tokens], axis=0)
    columns = graph.node("Transpose", f"{name}/input/Transpose", [rows], perm=[0, 2, 1])
    both = _product(graph, f"{name}/gate_up_proj", columns, gate_up, chunks.experts, router.hidden)
    gate, up = graph.node("Split", f"{name}/Split", [both, graph.constant([width, width])], outputs=2, axis=1)
    sigmoid = graph.node("Sigmoid", f"{name}/act_fn/Sigmoid", [gate])
    activated = graph.node("Mul", f"{name}/act_fn/Mul", [gate, sigmoid])
    activated = graph.node("Mul", f"{name}/Mul", [activated, up])
    result = _product(graph, f"{name}/down_proj", activated, down, chunks.experts, width)
    result = graph.node("Transpose", f"{name}/output/Transpose", [result], perm=[0, 2, 1])
    result = graph.node("Reshape", f"{name}/output/Reshape", [result, graph.constant([-1, router.hidden])])
    result = graph.node("Gather", f"{name}/output/Gather", [result, chunks.rows], axis=0)
    result = graph.node("Reshape", f"{name}/output/Reshape_chosen",
                        [result, graph.constant([-1, router.chosen, router.hidden])])
    mixing = routing.mixing
    if graph.options.dtype != np.float32:
        mixing = graph.node("Cast", f"{name}/mixing/Cast", [mixing], to=ONNX_TYPES[graph.options.dtype])
    mixing = graph.node("Unsqueeze", f"{name}/mixing/Unsqueeze", [mixing, graph.constant([1])])
    mixed = graph.node("MatMul", f"{name}/mixing/MatMul", [mixing, result])
    return graph.node("Squeeze", f"{name}/mixing/Squeeze", [mixed, graph.constant([1])])


def _chunks(graph: Graph, name: str, ids: str, router: RouterShape) -> Chunks:
    zero, one, every = graph.constant([0]), graph.constant([1]), graph.constant(list(range(router.experts)))
    flat = graph.node("Reshape", f"{name}/Reshape", [ids, graph.constant([-1, 1])])
    assignments = graph.node("Shape", f"{name}/Shape", [flat], start=0, end=1)
    size = graph.node("Add", f"{name}/size/Add", [assignments, graph.constant([router.experts - 1])])
    size = graph.node("Div", f"{name}/size/Div", [size, graph.constant([router.experts])])

    # How many earlier assignments went to the same expert, itself included: [assignments, 1].
    own = graph.node("Equal", f"{name}/own/Equal", [flat, every])
    own = graph.node("Cast", f"{name}/own/Cast", [own], to=TensorProto.INT64)
    counted = graph.node("CumSum", f"{name}/order/CumSum", [own, graph.constant(0)])
    order = graph.node("GatherElements", f"{name}/order/GatherElements", [counted, flat], axis=1)
    order = graph.node("Sub", f"{name}/order/Sub", [order, one])

    # Chunks of each expert, and where they end: [experts].
    count = graph.node("ReduceSum", f"{name}/count/ReduceSum", [own, zero], keepdims=0)
    rounded = graph.node("Add", f"{name}/count/Add", [count, size])
    rounded = graph.node("Sub", f"{name}/count/Sub", [rounded, one])
    count = graph.node("Div", f"{name}/count/Div", [rounded, size])
    end = graph.node("CumSum", f"{name}/end/CumSum", [count, graph.constant(0)])
    start = graph.node("Sub", f"{name}/start/Sub", [end, count])
    # (A sum of the counts would be the same number, but OpenVINO's provider leaves sums to a scalar to the CPU's.)
    total = graph.node("Gather", f"{name}/total/Gather", [end, graph.constant(router.experts - 1)], axis=0)
    steps = graph.node("Range", f"{name}/Range", [graph.constant(0), total, graph.constant(1)])
    # A chunk's expert is the number of experts whose chunks end before it.
    steps = graph.node("Unsqueeze", f"{name}/experts/Unsqueeze", [steps, one])
    passed = graph.node("GreaterOrEqual", f"{name}/experts/GreaterOrEqual", [steps, end])
    passed = graph.node("Cast", f"{name}/experts/Cast", [passed], to=TensorProto.INT64)
    experts = graph.node("ReduceSum", f"{name}/experts/ReduceSum", [passed, one], keepdims=0)

    first = graph.node("Gather", f"{name}/rows/Gather", [start, flat], axis=0)
    first = graph.node("Mul", f"{name}/rows/Mul", [first, size])
    rows = graph.node("Add", f"{name}/rows/Add", [first, order])
    rows = graph.node("Reshape", f"{name}/rows/Reshape", [rows, graph.constant([-1])])

    # Assignment i belongs to token i / chosen.
    scalar = graph.node("Squeeze", f"{name}/tokens/Squeeze", [assignments, zero])
    tokens = graph.node("Range", f"{name}/tokens/Range", [graph.constant(0), scalar, graph.constant(1)])
    tokens = graph.node("Div", f"{name}/tokens/Div", [tokens, graph.constant(router.chosen)])
    total = graph.node("Unsqueeze", f"{name}/total/Unsqueeze", [total, zero])
    shape = graph.node("Concat", f"{name}/tokens/Concat", [total, size], axis=0)
    length = graph.node("Mul", f"{name}/tokens/Mul", [total, size])
    places = graph.node("Expand", f"{name}/tokens/Expand", [zero, length])
    places = graph.node("ScatterElements", f"{name}/tokens/ScatterElements", [places, rows, tokens], axis=0)
    return Chunks(experts, graph.node("Reshape", f"{name}/tokens/Reshape", [places, shape]), rows)


def _product(graph: Graph, name: str, x: str, weights: tuple[str, ...], experts: str, columns: int) -> str:
    """The experts' matrices `[chunks, rows, columns]` times `x` `[chunks, columns, size]`."""
    gathered = graph.node("Gather", f"{name}/Gather", [weights[0], experts], axis=0)
    scheme, dtype = graph.options.scheme, graph.options.dtype
    if scheme is None:
        return graph.node("MatMul", f"{name}/MatMul", [gathered, x])
    half, blocks = scheme.block_size // 2, scheme.blocks(columns)
    codes = graph.node("Cast", f"{name}/codes/Cast", [gathered], to=ONNX_TYPES[dtype])
    if scheme.bits == 4:
        # A byte holds a pair of neighbours. Instead of putting the two halves of every byte side by side, all low
        # halves of a block are put before its high ones, and the rows of x are sorted alike: that moves far less.
        codes = graph.node("Reshape", f"{name}/codes/Reshape_bytes", [codes, graph.constant([0, 0, blocks, half])])
        high = graph.node("Mul", f"{name}/high/Mul", [codes, graph.constant(1 / 16, dtype)])
        high = graph.node("Floor", f"{name}/high/Floor", [high])
        above = graph.node("Mul", f"{name}/low/Mul", [high, graph.constant(16, dtype)])
        low = graph.node("Sub", f"{name}/low/Sub", [codes, above])
        codes = graph.node("Concat", f"{name}/codes/Concat", [low, high], axis=-1)
        x = _even_before_odd(graph, f"{name}/x", x, blocks, half, columns)
    else:
        codes = graph.node("Reshape", f"{name}/codes/Reshape_blocks",
                           [codes, graph.constant([0, 0, blocks, scheme.block_size])])
    centred = graph.node("Sub", f"{name}/codes/Sub", [codes, graph.constant(scheme.zero_code, dtype)])
    scales = graph.node("Gather", f"{name}/scales/Gather", [weights[1], experts], axis=0)
    scales = graph.node("Unsqueeze", f"{name}/scales/Unsqueeze", [scales, graph.constant([-1])])
    matrix = graph.node("Mul", f"{name}/scales/Mul", [centred, scales])
    matrix = graph.node("Reshape", f"{name}/Reshape", [matrix, graph.constant([0, 0, columns])])
    return graph.node("MatMul", f"{name}/MatMul", [matrix, x])


def _even_before_odd(graph: Graph, name: str, x: str, blocks: int, half: int, columns: int) -> str:
    """Sort the rows of each block of `x` `[chunks, columns, size]`: even ones before odd ones."""
    rows = np.arange(columns).reshape(blocks, half, 2).transpose(0, 2, 1).reshape(-1)
    return graph.node("Gather", f"{name}/Gather", [x, graph.constant(rows.tolist())], axis=1)
