"""Matrix products with weights: x `[..., columns]` → `[..., rows]`."""

import numpy as np
from onnx import TensorProto

from ortbench_export.errors import ExportError
from ortbench_export.graph import CONTRIB, ONNX_TYPES, Graph, tensor_name
from ortbench_export.options import Scheme
from ortbench_export.weights.tensors import Matrix, Production, StoredTensor


def linear(graph: Graph, name: str, x: str, matrix: Matrix, bias: str | None = None) -> str:
    """Multiply `x` with a matrix in the precision of the export, and add the checkpoint's tensor `bias`."""
    require(graph, matrix)
    scheme = graph.options.scheme
    if scheme is None:
        return float_linear(graph, name, x, matrix, bias)
    if graph.options.fused:
        return matmul_nbits(graph, name, x, matrix, scheme, *_packed_weights(graph, name, matrix, scheme), bias)
    return _add_bias(graph, name, _dequantized_linear(graph, name, x, matrix, scheme), matrix, bias)


def vector(graph: Graph, name: str, what: str, source_name: str, width: int, random_mean: float) -> str:
    """The initializer `what` of a block, `[width]`, in the activations' type."""
    graph.source.require(source_name, (width,))
    dtype = graph.options.dtype
    stored = StoredTensor(tensor_name(name, what), ONNX_TYPES[dtype], (width,))
    return graph.weights(Production((stored,), lambda: graph.source.vector(source_name, width, dtype, random_mean)))[0]


def table(graph: Graph, name: str, matrix: Matrix) -> str:
    """The initializer of a table `[rows, columns]` in the activations' type, to gather rows from."""
    require(graph, matrix)
    dtype = graph.options.dtype
    stored = StoredTensor(tensor_name(name, "weight"), ONNX_TYPES[dtype], (matrix.rows, matrix.columns))
    return graph.weights(Production((stored,), lambda: graph.source.floats(matrix, dtype, transposed=False)))[0]


def require(graph: Graph, matrix: Matrix) -> None:
    """Fail unless the weight source has every part of the matrix."""
    for part in matrix.parts:
        graph.source.require(part.tensor, (part.rows, matrix.columns))


def matmul_nbits(graph: Graph, name: str, x: str, matrix: Matrix, scheme: Scheme, codes: str, scales: str,
                 bias: str | None = None) -> str:
    """The contrib operator over weights that are planned already."""
    # Zero points and an order of groups are left out.
    added = ["", "", vector(graph, name, "bias", bias, matrix.rows, 0.0)] if bias else []
    return graph.node(
        "MatMulNBits", f"{name}/MatMulNBits", [x, codes, scales, *added], domain=CONTRIB, K=matrix.columns,
        N=matrix.rows, bits=scheme.bits, block_size=scheme.block_size, accuracy_level=graph.options.accuracy_level,
    )


def packed_shapes(matrix: Matrix, scheme: Scheme) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of MatMulNBits' codes (bytes) and scales."""
    blocks = scheme.blocks(matrix.columns)
    return (matrix.rows, blocks, scheme.block_size * scheme.bits // 8), (matrix.rows, blocks)


def _packed_weights(graph: Graph, name: str, matrix: Matrix, scheme: Scheme) -> tuple[str, ...]:
    dtype = graph.options.dtype
    codes_shape, scales_shape = packed_shapes(matrix, scheme)
    return graph.weights(Production(
        (StoredTensor(tensor_name(name, f"weight_q{scheme.bits}"), TensorProto.UINT8, codes_shape),
         StoredTensor(tensor_name(name, "scales"), ONNX_TYPES[dtype], scales_shape)),
        lambda: graph.source.quantized(matrix, scheme, dtype, transposed=False),
    ))


def _dequantized_linear(graph: Graph, name: str, x: str, matrix: Matrix, scheme: Scheme) -> str:
    """DequantizeLinear before MatMul, which ONNX Runtime's CPU provider fuses into one kernel."""
    if matrix.columns % scheme.block_size or matrix.rows % 2:
        raise ExportError(
            f"`{matrix.parts[0].tensor}` has {matrix.rows} outputs and {matrix.columns} inputs: in the plain flavour "
            f"outputs must be even and inputs a multiple of the block size {scheme.block_size}",
            "choose another `--block-size`, `--flavour fused`, or `--precision fp16`",
        )
    dtype = graph.options.dtype
    integers = TensorProto.INT4 if scheme.bits == 4 else TensorProto.INT8
    blocks_shape = (matrix.columns // scheme.block_size, matrix.rows)
    codes, scales = graph.weights(Production(
        (StoredTensor(tensor_name(name, f"weight_q{scheme.bits}"), integers, (matrix.columns, matrix.rows)),
         StoredTensor(tensor_name(name, "scales"), ONNX_TYPES[dtype], blocks_shape)),
        lambda: graph.source.quantized(matrix, scheme, dtype, transposed=True),
    ))
    inputs = [codes, scales]
    if scheme.bits == 4:
        # Zero is the default, but OpenVINO's rendering gives wrong numbers for 4 bits when it is left out.
        zeros = StoredTensor(tensor_name(name, "zero_points"), integers, blocks_shape)
        inputs += graph.weights(Production((zeros,), lambda: iter([np.zeros(zeros.nbytes, np.uint8)])))
    weight = graph.node("DequantizeLinear", f"{name}/DequantizeLinear", inputs, axis=0, block_size=scheme.block_size)
    return graph.node("MatMul", f"{name}/MatMul", [x, weight])


def float_linear(graph: Graph, name: str, x: str, matrix: Matrix, bias: str | None = None) -> str:
    """As `linear`, with a matrix in the activations' type, whose parts are known to be there."""
    dtype = graph.options.dtype
    stored = StoredTensor(tensor_name(name, "weight"), ONNX_TYPES[dtype], (matrix.columns, matrix.rows))
    (weight,) = graph.weights(Production((stored,), lambda: graph.source.floats(matrix, dtype, transposed=True)))
    return _add_bias(graph, name, graph.node("MatMul", f"{name}/MatMul", [x, weight]), matrix, bias)


def _add_bias(graph: Graph, name: str, product: str, matrix: Matrix, bias: str | None) -> str:
    if bias is None:
        return product
    return graph.node("Add", f"{name}/Add", [product, vector(graph, name, "bias", bias, matrix.rows, 0.0)])
