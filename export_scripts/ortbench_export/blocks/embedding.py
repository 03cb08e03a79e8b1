"""Token embedding and language-model head, which share their bytes when the model ties them and the layouts agree."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ortbench_export.blocks.linear import linear, matmul_nbits, packed_shapes, require
from ortbench_export.errors import ExportError
from ortbench_export.graph import CONTRIB, ONNX_TYPES, Graph, Port, tensor_name
from ortbench_export.options import Scheme
from ortbench_export.weights.tensors import Matrix, Production, StoredTensor


@dataclass(frozen=True)
class EmbeddingTable:
    """The planned table: what a tied head needs to find it again."""

    matrix: Matrix
    tensors: tuple[str, ...]


def embed(graph: Graph, name: str, ids: str, matrix: Matrix) -> tuple[str, EmbeddingTable]:
    """Rows of the table `[vocab, hidden]` for int64 ids `[batch, sequence]` → `[batch, sequence, hidden]`."""
    require(graph, matrix)
    scheme = graph.options.scheme
    if scheme is None:
        return _embed_floats(graph, name, ids, matrix)
    if scheme.bits == 4 and matrix.columns % 2:
        raise ExportError(f"`{matrix.parts[0].tensor}` has {matrix.columns} columns, an odd number",
                          "export with `--precision int8` or `fp16`")
    if graph.options.fused:
        tensors = _plan_table(graph, name, matrix, scheme)
        hidden = graph.node("GatherBlockQuantized", f"{name}/GatherBlockQuantized", [tensors[0], ids, tensors[1]],
                            domain=CONTRIB, bits=scheme.bits, block_size=scheme.block_size, gather_axis=0,
                            quantize_axis=1)
        return hidden, EmbeddingTable(matrix, tensors)
    return _embed_dequantized(graph, name, ids, matrix, scheme)


def head(graph: Graph, name: str, hidden: str, matrix: Matrix, table: EmbeddingTable | None) -> None:
    """Add the output `logits`, float32 `[batch, selected, vocab]`; `table` is the embedding when it is tied."""
    axis = "sequence"
    if graph.options.logits == "selected":
        axis = "selected"
        positions = graph.add_input(Port("logits_positions", "logits_positions", np.int64, ("batch", axis)))
        indices = graph.node("Unsqueeze", f"{name}/Unsqueeze", [positions, graph.constant([-1])])
        hidden = graph.node("GatherND", f"{name}/GatherND", [hidden, indices], batch_dims=1)
    logits = _tied_product(graph, name, hidden, table) if table else linear(graph, name, hidden, matrix)
    graph.add_output(Port("logits", "logits", np.float32, ("batch", axis, matrix.rows)))
    if graph.options.dtype == np.float32:
        graph.nodes[-1].output[0] = "logits"
    else:
        graph.node("Cast", f"{name}/Cast", [logits], outputs=["logits"], to=TensorProto.FLOAT)


def _tied_product(graph: Graph, name: str, hidden: str, table: EmbeddingTable) -> str:
    matrix, scheme = table.matrix, graph.options.scheme
    if scheme is None:
        return _tied_gemm(graph, name, hidden, table)
    if not graph.options.fused or matrix.columns % scheme.block_size:
        # A transposed or padded layout: the same values are stored once more.
        return linear(graph, name, hidden, matrix)
    codes_shape, scales_shape = packed_shapes(matrix, scheme)
    codes = graph.share(StoredTensor(tensor_name(name, f"weight_q{scheme.bits}"), TensorProto.UINT8, codes_shape),
                        table.tensors[0])
    scales = graph.share(StoredTensor(tensor_name(name, "scales"), ONNX_TYPES[graph.options.dtype], scales_shape),
                         table.tensors[1])
    return matmul_nbits(graph, name, hidden, matrix, scheme, codes, scales)


def _tied_gemm(graph: Graph, name: str, hidden: str, table: EmbeddingTable) -> str:
    """Gemm reads the table as it lies, `[vocab, hidden]`; MatMul would need a transposed copy of it."""
    vocab, width = table.matrix.rows, table.matrix.columns
    weight = graph.share(StoredTensor(tensor_name(name, "weight"), ONNX_TYPES[graph.options.dtype], (vocab, width)),
                         table.tensors[0])
    flat = graph.node("Reshape", f"{name}/Reshape_in", [hidden, graph.constant([-1, width])])
    product = graph.node("Gemm", f"{name}/Gemm", [flat, weight], transB=1)
    rows = graph.node("Shape", f"{name}/Shape", [hidden], start=0, end=2)
    shape = graph.node("Concat", f"{name}/Concat", [rows, graph.constant([vocab])], axis=0)
    return graph.node("Reshape", f"{name}/Reshape_out", [product, shape])


def _embed_floats(graph: Graph, name: str, ids: str, matrix: Matrix) -> tuple[str, EmbeddingTable]:
    dtype = graph.options.dtype
    stored = StoredTensor(tensor_name(name, "weight"), ONNX_TYPES[dtype], (matrix.rows, matrix.columns), 1)
    tensors = graph.weights(Production((stored,), lambda: graph.source.floats(matrix, dtype, transposed=False)))
    hidden = graph.node("Gather", f"{name}/Gather", [tensors[0], ids], axis=0)
    return hidden, EmbeddingTable(matrix, tensors)


def _embed_dequantized(graph: Graph, name: str, ids: str, matrix: Matrix, scheme: Scheme) -> tuple[str, EmbeddingTable]:
    """Gather codes and scales, then dequantize what was gathered, in arithmetic that every provider knows:
    DequantizeLinear over a dynamic input and Gather over 4-bit integers are not."""
    blocks, dtype = scheme.blocks(matrix.columns), graph.options.dtype
    if matrix.columns % scheme.block_size:
        raise ExportError(
            f"`{matrix.parts[0].tensor}` has {matrix.columns} columns, not a multiple of the block size "
            f"{scheme.block_size}, which the plain flavour needs", "choose another `--block-size` or `--flavour fused`")
    tensors = _plan_table(graph, name, matrix, scheme)
    codes = graph.node("Gather", f"{name}/Gather", [tensors[0], ids], axis=0)
    if scheme.bits == 4:
        last = graph.constant([-1])
        codes = graph.node("Cast", f"{name}/codes/Cast_int", [codes], to=TensorProto.INT32)
        sixteen = graph.constant(16, np.int32)
        low = graph.node("Mod", f"{name}/low/Mod", [codes, sixteen])
        high = graph.node("Div", f"{name}/high/Div", [codes, sixteen])
        low = graph.node("Unsqueeze", f"{name}/low/Unsqueeze", [low, last])
        high = graph.node("Unsqueeze", f"{name}/high/Unsqueeze", [high, last])
        codes = graph.node("Concat", f"{name}/codes/Concat", [low, high], axis=-1)
    codes = graph.node("Reshape", f"{name}/codes/Reshape", [codes, graph.constant([0, 0, blocks, scheme.block_size])])
    values = graph.node("Cast", f"{name}/codes/Cast", [codes], to=ONNX_TYPES[dtype])
    values = graph.node("Sub", f"{name}/codes/Sub", [values, graph.constant(scheme.zero_code, dtype)])
    scales = graph.node("Gather", f"{name}/scales/Gather", [tensors[1], ids], axis=0)
    scales = graph.node("Unsqueeze", f"{name}/scales/Unsqueeze", [scales, graph.constant([-1])])
    product = graph.node("Mul", f"{name}/Mul", [values, scales])
    hidden = graph.node("Reshape", f"{name}/Reshape", [product, graph.constant([0, 0, matrix.columns])])
    return hidden, EmbeddingTable(matrix, tensors)


def _plan_table(graph: Graph, name: str, matrix: Matrix, scheme: Scheme) -> tuple[str, ...]:
    dtype = graph.options.dtype
    return graph.weights(Production(
        (StoredTensor(tensor_name(name, f"weight_q{scheme.bits}"), TensorProto.UINT8,
                      (matrix.rows, matrix.columns * scheme.bits // 8), 1),
         StoredTensor(tensor_name(name, "scales"), ONNX_TYPES[dtype], (matrix.rows, scheme.blocks(matrix.columns)), 1)),
        lambda: graph.source.quantized_table(matrix, scheme, dtype),
    ))
