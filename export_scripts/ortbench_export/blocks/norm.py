"""Normalisation: root mean square, alone and after a residual addition, and of layers."""

import numpy as np

from ortbench_export.blocks.linear import vector
from ortbench_export.graph import CONTRIB, ONNX_TYPES, Graph


def norm_weight(graph: Graph, name: str, source_name: str, width: int) -> str:
    """The initializer of a norm's weight, `[width]`."""
    return vector(graph, name, "weight", source_name, width, random_mean=1.0)


def rms_norm(graph: Graph, name: str, x: str, weight: str, epsilon: float) -> str:
    """Normalise the last axis of `x`: x / sqrt(mean(x²) + epsilon) · weight."""
    if graph.options.fused:
        return graph.node("SimplifiedLayerNormalization", f"{name}/SimplifiedLayerNormalization", [x, weight],
                          axis=-1, epsilon=epsilon, stash_type=1)
    # ONNX Runtime recognises exactly this pattern and replaces it by its own kernel. The mean of squares is taken in
    # float32, as the reference does: squares of float16 activations overflow.
    half = graph.options.dtype == np.float16
    wide = _cast(graph, f"{name}/Cast_in", x, np.float32) if half else x
    square = graph.node("Pow", f"{name}/Pow", [wide, graph.constant(2.0, np.float32)])
    mean = graph.node("ReduceMean", f"{name}/ReduceMean", [square, graph.constant([-1])], keepdims=1)
    shifted = graph.node("Add", f"{name}/Add", [mean, graph.constant(epsilon, np.float32)])
    root = graph.node("Sqrt", f"{name}/Sqrt", [shifted])
    unit = graph.node("Div", f"{name}/Div", [wide, root])
    narrow = _cast(graph, f"{name}/Cast_out", unit, np.float16) if half else unit
    return graph.node("Mul", f"{name}/Mul", [narrow, weight])


def add_rms_norm(graph: Graph, name: str, residual: str, delta: str, weight: str, epsilon: float) -> tuple[str, str]:
    """Add a block's output to the residual stream and normalise the sum: (normalised, sum)."""
    if graph.options.fused:
        node = f"{name}/SkipSimplifiedLayerNormalization"
        normalised, _, _, total = graph.node(
            "SkipSimplifiedLayerNormalization", node, [residual, delta, weight],
            outputs=[f"{node}/output_0", "", "", f"{node}/output_3"], domain=CONTRIB, epsilon=epsilon,
        )
        return normalised, total
    total = graph.node("Add", f"{name}/Add_residual", [residual, delta])
    return rms_norm(graph, name, total, weight, epsilon), total


def layer_norm(graph: Graph, name: str, source_name: str, x: str, width: int, epsilon: float) -> str:
    """Centre and scale the last axis of `x`, then weigh and shift it by the checkpoint's `{source_name}.weight` and
    `.bias`; mean and variance are taken in float32."""
    weight = norm_weight(graph, name, f"{source_name}.weight", width)
    bias = vector(graph, name, "bias", f"{source_name}.bias", width, random_mean=0.0)
    return graph.node("LayerNormalization", f"{name}/LayerNormalization", [x, weight, bias], axis=-1, epsilon=epsilon,
                      stash_type=1)


def _cast(graph: Graph, name: str, x: str, dtype) -> str:
    return graph.node("Cast", name, [x], to=ONNX_TYPES[np.dtype(dtype)])
