"""Which keys a query may see, from the attention mask, in standard operators."""

from onnx import TensorProto

from ortbench_export.graph import Graph


def visible_keys(graph: Graph, mask: str) -> tuple[str, str]:
    """A key is visible when it is real and not later than the query; queries are the last `sequence` of `total`.

    `mask` int64 `[batch, total]` → bool `[batch, 1, sequence, total]`, and `total` as int64 `[1]`.
    """
    name = "/model/mask"
    zero, one = graph.constant(0), graph.constant(1)
    total = graph.node("Shape", f"{name}/total/Shape", [mask], start=1, end=2)
    total_scalar = graph.node("Squeeze", f"{name}/total/Squeeze", [total, graph.constant([0])])
    sequence = graph.node("Shape", f"{name}/sequence/Shape", ["input_ids"], start=1, end=2)
    sequence_scalar = graph.node("Squeeze", f"{name}/sequence/Squeeze", [sequence, graph.constant([0])])
    past = graph.node("Sub", f"{name}/past/Sub", [total_scalar, sequence_scalar])
    keys = graph.node("Range", f"{name}/keys/Range", [zero, total_scalar, one])
    queries = graph.node("Range", f"{name}/queries/Range", [past, total_scalar, one])
    queries = graph.node("Unsqueeze", f"{name}/queries/Unsqueeze", [queries, graph.constant([1])])
    causal = graph.node("LessOrEqual", f"{name}/causal/LessOrEqual", [keys, queries])
    real = graph.node("Cast", f"{name}/real/Cast", [mask], to=TensorProto.BOOL)
    real = graph.node("Unsqueeze", f"{name}/real/Unsqueeze", [real, graph.constant([1, 2])])
    return graph.node("And", f"{name}/And", [real, causal]), total
