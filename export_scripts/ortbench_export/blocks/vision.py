"""A vision tower: patches, layers of full attention and feed-forward, mergers that turn blocks of patches into tokens.

It works on one image, `[patches, hidden]` throughout.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from ortbench_export.blocks.linear import float_linear, linear
from ortbench_export.blocks.norm import layer_norm
from ortbench_export.blocks.vision_attention import VisionAttentionShape, begin_vision_attention, vision_attention
from ortbench_export.blocks.vision_positions import patch_places, position_embedding, rotary_waves
from ortbench_export.graph import ONNX_TYPES, Graph, Port
from ortbench_export.weights.tensors import Matrix, Part

# The epsilon of its norms, which config.json does not state.
NORM_EPSILON = 1e-6
CHANNELS = 3
# Random weights only: what gelu leaves of a number of order one.
RANDOM_GELU_DEVIATION = 0.6


@dataclass(frozen=True)
class VisionShape:
    """`side` is that of the learned square of positions; `deepstack` lists the layers whose patches are merged, in
    their order, beside those of the last one. Tokens are `output` wide; `token_deviation` is what random weights make
    of them."""

    layers: int
    attention: VisionAttentionShape
    intermediate: int
    patch: int
    temporal_patch: int
    merge: int
    side: int
    deepstack: tuple[int, ...]
    output: int
    rope_theta: float
    token_deviation: float

    @property
    def hidden(self) -> int:
        return self.attention.hidden

    @property
    def pixels(self) -> int:
        """Numbers of a patch."""
        return CHANNELS * self.temporal_patch * self.patch**2

    @property
    def merged(self) -> int:
        """Numbers of the patches that become one token."""
        return self.merge**2 * self.hidden

    @property
    def features(self) -> int:
        """Numbers of a token in the tower's output: those of the last layer, then those of each DeepStack layer."""
        return (1 + len(self.deepstack)) * self.output

    @property
    def gain(self) -> float:
        """Random weights only, as a decoder's: 2 · layers blocks add up to order one."""
        return 1 / sqrt(2 * self.layers)

    @property
    def parameters(self) -> int:
        hidden = self.hidden
        layer = 4 * hidden * (hidden + 1) + 2 * hidden * self.intermediate + self.intermediate + hidden + 4 * hidden
        merger = self.merged * (self.merged + 1) + (self.merged + 1) * self.output
        norms = 2 * hidden + len(self.deepstack) * 2 * self.merged
        return ((self.pixels + 1) * hidden + self.side**2 * hidden + self.layers * layer
                + (1 + len(self.deepstack)) * merger + norms)


def vision_tower(graph: Graph, source_name: str, shape: VisionShape) -> None:
    """Add the whole tower from `pixel_values` and `image_grid_thw` to `image_features`; the checkpoint's tensors begin
    with `source_name`."""
    pixels = graph.add_input(Port("pixel_values", "pixel_values", np.float32, ("patches", shape.pixels)))
    grid = graph.add_input(Port("image_grid_thw", "image_grid", np.int64, (1, 3)))
    places = patch_places(graph, pixels, grid, shape.merge)
    x = _patch_embedding(graph, f"{source_name}.patch_embed.proj", pixels, shape)
    square = Matrix((Part(f"{source_name}.pos_embed.weight", shape.side**2),), shape.hidden, sqrt(shape.hidden) / 2)
    embedded = position_embedding(graph, "/vision/pos_embed", square, shape.side, places)
    x = graph.node("Add", "/vision/pos_embed/Add", [x, embedded])
    waves = rotary_waves(graph, shape.attention.head_dim, shape.rope_theta, places)
    state = begin_vision_attention(graph, places.index, waves)
    features = []
    for layer in range(shape.layers):
        name, source = f"/vision/blocks.{layer}", f"{source_name}.blocks.{layer}"
        normalised = layer_norm(graph, f"{name}/norm1", f"{source}.norm1", x, shape.hidden, NORM_EPSILON)
        delta = vision_attention(graph, f"{name}/attn", f"{source}.attn", normalised, shape.attention, state,
                                 shape.gain)
        x = graph.node("Add", f"{name}/Add_attn", [x, delta])
        normalised = layer_norm(graph, f"{name}/norm2", f"{source}.norm2", x, shape.hidden, NORM_EPSILON)
        delta = _feed_forward(graph, f"{name}/mlp", f"{source}.mlp", normalised, shape)
        x = graph.node("Add", f"{name}/Add_mlp", [x, delta])
        if layer in shape.deepstack:
            which = f"deepstack_merger_list.{len(features)}"
            features.append(_merger(graph, f"/vision/{which}", f"{source_name}.{which}", x, shape, norm_first=False))
    features.insert(0, _merger(graph, "/vision/merger", f"{source_name}.merger", x, shape, norm_first=True))
    output = graph.add_output(Port("image_features", "image_features", graph.options.dtype,
                                   ("image_tokens", shape.features)))
    graph.node("Concat", "/vision/Concat", features, outputs=[output], axis=-1)


def _patch_embedding(graph: Graph, source_name: str, pixels: str, shape: VisionShape) -> str:
    """A convolution whose steps are as wide as its kernel: a product with the patch. It stays a float."""
    kernel = (shape.hidden, CHANNELS, shape.temporal_patch, shape.patch, shape.patch)
    graph.source.require(f"{source_name}.weight", kernel)
    name = "/vision/patch_embed/proj"
    if graph.options.dtype != np.float32:
        pixels = graph.node("Cast", f"{name}/Cast", [pixels], to=ONNX_TYPES[graph.options.dtype])
    matrix = Matrix((Part(f"{source_name}.weight", shape.hidden),), shape.pixels)
    return float_linear(graph, name, pixels, matrix, f"{source_name}.bias")


def _feed_forward(graph: Graph, name: str, source_name: str, x: str, shape: VisionShape) -> str:
    return _two_linears(graph, name, source_name, x, "tanh",
                        (shape.hidden, shape.intermediate, shape.hidden), shape.gain)


def _merger(graph: Graph, name: str, source_name: str, x: str, shape: VisionShape, norm_first: bool) -> str:
    """Blocks of patches as tokens `[image_tokens, output]`. Patches are normalised one by one, or block by block."""
    joined = graph.constant([-1, shape.merged])
    if norm_first:
        x = layer_norm(graph, f"{name}/norm", f"{source_name}.norm", x, shape.hidden, NORM_EPSILON)
    x = graph.node("Reshape", f"{name}/Reshape", [x, joined])
    if not norm_first:
        x = layer_norm(graph, f"{name}/norm", f"{source_name}.norm", x, shape.merged, NORM_EPSILON)
    return _two_linears(graph, name, source_name, x, "none", (shape.merged, shape.merged, shape.output),
                        shape.token_deviation / RANDOM_GELU_DEVIATION)


def _two_linears(graph: Graph, name: str, source_name: str, x: str, approximate: str, widths: tuple[int, int, int],
                 output_gain: float) -> str:
    """fc2(gelu(fc1(x))), through the three widths; the gelu exact (`none`) or by `tanh`."""
    for index, gain in ((1, 1.0), (2, output_gain)):
        which, columns, rows = f"linear_fc{index}", widths[index - 1], widths[index]
        matrix = Matrix((Part(f"{source_name}.{which}.weight", rows),), columns, gain)
        x = linear(graph, f"{name}/{which}", x, matrix, f"{source_name}.{which}.bias")
        if index == 1:
            x = graph.node("Gelu", f"{name}/Gelu", [x], approximate=approximate)
    return x
