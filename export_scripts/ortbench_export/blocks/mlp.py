"""The gated feed-forward block: down(silu(gate(x)) · up(x))."""

import numpy as np

from ortbench_export.blocks.linear import linear
from ortbench_export.graph import CONTRIB, Graph
from ortbench_export.weights.tensors import Matrix, Part


def swiglu(graph: Graph, name: str, source_name: str, x: str, hidden: int, width: int, output_gain: float) -> str:
    """`x` `[batch, sequence, hidden]`, `width` wide inside; tensors of the checkpoint begin with `source_name`."""
    gate = linear(graph, f"{name}/gate_proj", x, Matrix((Part(f"{source_name}.gate_proj.weight", width),), hidden))
    up = linear(graph, f"{name}/up_proj", x, Matrix((Part(f"{source_name}.up_proj.weight", width),), hidden))
    activated = silu(graph, f"{name}/act_fn", gate)
    product = graph.node("Mul", f"{name}/Mul", [activated, up])
    return linear(graph, f"{name}/down_proj", product,
                  Matrix((Part(f"{source_name}.down_proj.weight", hidden),), width, output_gain))


def silu(graph: Graph, name: str, x: str) -> str:
    """x · sigmoid(x)."""
    if graph.options.fused and graph.options.dtype == np.float32:
        # One operator for both; OpenVINO's rendering of it knows float32 only.
        return graph.node("QuickGelu", f"{name}/QuickGelu", [x], domain=CONTRIB, alpha=1.0)
    gate = graph.node("Sigmoid", f"{name}/Sigmoid", [x])
    return graph.node("Mul", f"{name}/Mul", [x, gate])
