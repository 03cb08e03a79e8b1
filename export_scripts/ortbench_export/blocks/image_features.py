"""Features of images in the residual stream: in the place of the image tokens' embeddings, and behind some layers."""

import numpy as np
from onnx import helper

from ortbench_export.blocks.decoder import Behind
from ortbench_export.graph import ONNX_TYPES, Graph, Port


def image_features(graph: Graph, ids: str, x: str, image_token: int, hidden: int, deepstack: int) -> tuple[str, Behind]:
    """Add the input `image_features`, a row for each `image_token` in `ids` `[batch, sequence]`, in their order, row by
    row of the batch. A row holds `hidden` numbers that take the place of the token's embedding in `x`, and as many
    again for each of the first `deepstack` layers. Without any row an image token is a token like others: a model may
    generate one.

    The embedded tokens, and what a decoder does behind each layer.
    """
    name, dtype, width = "/model/image_features", graph.options.dtype, (1 + deepstack) * hidden
    features = graph.add_input(Port("image_features", "image_features", dtype, ("image_tokens", width)))
    count = graph.node("Shape", f"{name}/Shape_features", [features], start=0, end=1)
    shown = graph.node("Greater", f"{name}/Greater", [count, graph.constant(0)])
    here = graph.node("Equal", f"{name}/Equal", [ids, graph.constant(image_token)])
    here = graph.node("And", f"{name}/And", [here, shown])
    rows = _rows(graph, name, ids, here)
    # What is no image takes the first row.
    zero = helper.make_tensor("zero", ONNX_TYPES[dtype], [1], [0.0])
    zeros = graph.node("ConstantOfShape", f"{name}/ConstantOfShape", [graph.constant([1, width])], value=zero)
    padded = graph.node("Concat", f"{name}/Concat", [zeros, features], axis=0)
    parts = [f"{name}/Split/output_{index}" for index in range(1 + deepstack)]
    graph.node("Split", f"{name}/Split", [padded, graph.constant([hidden] * len(parts))], outputs=parts, axis=-1)

    def placed(index: int) -> str:
        return graph.node("Gather", f"{name}/Gather_{index}", [parts[index], rows], axis=0)

    def behind(layer: int, delta: str) -> str:
        if layer >= deepstack:
            return delta
        return graph.node("Add", f"{name}/Add_{layer}", [delta, placed(1 + layer)])

    mask = graph.node("Unsqueeze", f"{name}/Unsqueeze", [here, graph.constant([-1])])
    return graph.node("Where", f"{name}/Where", [mask, placed(0), x]), behind


def _rows(graph: Graph, name: str, ids: str, here: str) -> str:
    """For each token, int64 `[batch, sequence]`: how many image tokens there are up to it, 0 if it is none itself."""
    ones = graph.node("Cast", f"{name}/Cast", [here], to=ONNX_TYPES[np.dtype(np.int64)])
    flat = graph.node("Reshape", f"{name}/Reshape_in", [ones, graph.constant([-1])])
    counted = graph.node("CumSum", f"{name}/CumSum", [flat, graph.constant(0)])
    index = graph.node("Mul", f"{name}/Mul", [counted, flat])
    return graph.node("Reshape", f"{name}/Reshape_out", [index, graph.node("Shape", f"{name}/Shape", [ids])])
