"""Makes the two graphs of this measurement: one node, and a chain of matrix products.

    python make_graphs.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 1024
LAYERS = 24


def value(name: str, dims: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def save(path: Path, nodes: list, inputs: list, outputs: list, constants: list) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    onnx.save(model, path)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    add = helper.make_node("Add", ["x", "y"], ["z"])
    save(folder / "add.onnx", [add], [value("x", ["n"]), value("y", ["n"])], [value("z", ["n"])], [])
    random = np.random.default_rng(0)
    nodes, constants, last = [], [], "x"
    for layer in range(LAYERS):
        weight = random.standard_normal((WIDTH, WIDTH), dtype=np.float32) * np.float32((2 / WIDTH) ** 0.5)
        constants.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"], name=f"/layer{layer}/MatMul"))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"], name=f"/layer{layer}/Relu"))
        last = f"r{layer}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    save(folder / "chain.onnx", nodes, [value("x", ["batch", WIDTH])], [value("y", ["batch", WIDTH])], constants)
    np.save(folder / "x.npy", random.standard_normal((32, WIDTH), dtype=np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
