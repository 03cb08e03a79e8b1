"""ResNet-18 and ResNet-50 from their definition, with random weights: one ONNX file to measure, not to classify with.

    python resnet.py --depth 50 --output resnet50.onnx [--seed N]

Layers, sizes and names are those of torchvision's `resnet18` and `resnet50` (He et al., "Deep Residual Learning for
Image Recognition", 2015, with the stride of a bottleneck in its 3x3 convolution). Input `image`: float32
[batch, 3, height, width] with free dimensions, as photographs of 224 x 224; output `logits`: [batch, 1000].
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from math import sqrt
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
CLASSES = 1000
OPSET = 17
IR_VERSION = 8


class Network:
    """A graph under construction: layers add nodes and constants, and return the name of their output."""

    def __init__(self, seed: int):
        self.seed = seed
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def drawn(self, name: str, shape: tuple[int, ...], deviation: float) -> str:
        """Normal numbers, the same for a name and seed whatever was drawn before."""
        generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.seed, zlib.crc32(name.encode())])))
        return self.constant(name, deviation * generator.standard_normal(shape, dtype=np.float32))

    def node(self, operator: str, name: str, inputs: list[str], **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def convolution(self, name: str, x: str, channels: tuple[int, int], size: int, stride: int) -> str:
        """Without bias, with half the kernel's size of padding; weights drawn for rectified outputs (He et al.)."""
        weight = self.drawn(f"{name}.weight", (channels[1], channels[0], size, size), sqrt(2 / (channels[1] * size**2)))
        return self.node("Conv", name, [x, weight], kernel_shape=[size, size], strides=[stride, stride],
                         pads=[size // 2] * 4)

    def normalization(self, name: str, x: str, channels: int) -> str:
        """As at the start of a training: nothing is scaled or moved."""
        ones, zeros = np.ones(channels), np.zeros(channels)
        values = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
        names = [self.constant(f"{name}.{what}", value) for what, value in values.items()]
        return self.node("BatchNormalization", name, [x, *names], epsilon=1e-5)

    def relu(self, name: str, x: str) -> str:
        return self.node("Relu", name, [x])


def block(network: Network, name: str, x: str, channels: tuple[int, int], width: int, stride: int) -> str:
    """A residual block: two 3x3 convolutions, or a bottleneck where it makes four times its width."""
    into, out = channels
    if out == width:
        layers = [(into, width, 3, stride), (width, out, 3, 1)]
    else:
        layers = [(into, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
    y = x
    for place, (before, after, size, step) in enumerate(layers, 1):
        y = network.convolution(f"{name}.conv{place}", y, (before, after), size, step)
        y = network.normalization(f"{name}.bn{place}", y, after)
        if place < len(layers):
            y = network.relu(f"{name}.relu{place}", y)
    if stride != 1 or into != out:
        x = network.convolution(f"{name}.downsample.0", x, channels, 1, stride)
        x = network.normalization(f"{name}.downsample.1", x, out)
    return network.relu(f"{name}.relu", network.node("Add", f"{name}.add", [y, x]))


def resnet(depth: int, seed: int = 0) -> onnx.ModelProto:
    """The whole network."""
    network = Network(seed)
    x = network.convolution("conv1", "image", (3, 64), 7, 2)
    x = network.relu("relu", network.normalization("bn1", x, 64))
    x = network.node("MaxPool", "maxpool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels, expansion = 64, 4 if depth >= 50 else 1
    for stage, count in enumerate(STAGES[depth]):
        width = 64 << stage
        for place in range(count):
            stride = 2 if stage > 0 and place == 0 else 1
            x = block(network, f"layer{stage + 1}.{place}", x, (channels, expansion * width), width, stride)
            channels = expansion * width
    x = network.node("Flatten", "flatten", [network.node("GlobalAveragePool", "avgpool", [x])])
    weight = network.drawn("fc.weight", (CLASSES, channels), 1 / sqrt(3 * channels))
    bias = network.drawn("fc.bias", (CLASSES,), 1 / sqrt(3 * channels))
    network.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["logits"], name="fc", transB=1))
    graph = helper.make_graph(
        network.nodes, f"resnet{depth}",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])], network.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                              producer_name="ortbench_export")
    onnx.checker.check_model(model, full_check=True)
    return model


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, choices=sorted(STAGES), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    given = parser.parse_args(arguments)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    part = given.output.with_name(f".part-{os.getpid()}-{given.output.name}")
    try:
        part.write_bytes(resnet(given.depth, given.seed).SerializeToString())
        part.replace(given.output)
    finally:
        part.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
