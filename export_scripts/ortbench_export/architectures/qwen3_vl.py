"""Qwen3-VL, dense: Qwen3 with positions of three axes, and a vision tower whose features join its first layers.

Images are exported, videos are not.
"""

from dataclasses import dataclass, replace
from math import isqrt, sqrt

from ortbench_export.architectures import qwen3
from ortbench_export.blocks.decoder import RANDOM_TABLE_GAIN
from ortbench_export.blocks.image_features import image_features
from ortbench_export.blocks.mrope import Mrope
from ortbench_export.blocks.vision import CHANNELS, VisionShape, vision_tower
from ortbench_export.blocks.vision_attention import VisionAttentionShape
from ortbench_export.config import Config
from ortbench_export.errors import ExportError
from ortbench_export.graph import PackageGraphs
from ortbench_export.preprocessor import Preprocessing, read_preprocessing
from ortbench_export.shape import ImageShape, ModelShape

# The base of the tower's rotary embedding where config.json does not state it.
VISION_ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Qwen3VL:
    """What `config.json` says: the decoder, the tower, and the tokens around an image; and how images are scaled."""

    text: qwen3.Qwen3
    vision: VisionShape
    image_token: int
    vision_start: int
    vision_end: int
    preprocessing: Preprocessing


def read(config: Config, tied_by_default: bool | None) -> Qwen3VL:
    """`tied_by_default` answers for a config that does not say whether the head is tied; None: it must say, and what
    other files of a checkpoint would say is as published."""
    text, vision = config.section("text_config"), config.section("vision_config")
    dense = _read_text(config, text, tied_by_default)
    tokens = (_token(config, f"{name}_token_id", dense.decoder.vocab)
              for name in ("image", "vision_start", "vision_end"))
    return Qwen3VL(dense, _read_vision(vision, dense), *tokens,
                   read_preprocessing(config, vision, published_by_default=tied_by_default is None))


def build(graphs: PackageGraphs, model: Qwen3VL) -> ModelShape:
    """Assemble the decoder and the tower; what the manifest says about their shapes."""
    text, vision, options = model.text, model.vision, graphs.options
    graph = graphs.begin("decoder")
    qwen3.assemble(
        graph, text, lambda layer, x: qwen3.dense(graph, text, layer, x),
        join=lambda ids, x: image_features(graph, ids, x, model.image_token, text.decoder.hidden,
                                           len(vision.deepstack)),
    )
    # Images suffer most from coarse weights, and the tower is the smaller part of the model.
    tower = graphs.begin("vision", replace(options, precision="int8") if options.precision == "int4" else options)
    vision_tower(tower, "model.visual", vision)
    return qwen3.shape(graph, text, qwen3.parameters(text, beside=vision.parameters), image=_image_shape(model))


def ignorable(model: Qwen3VL, name: str) -> bool:
    """Tensors that some checkpoints carry beside the weights."""
    return qwen3.ignorable(model.text, name)


def _read_text(config: Config, text: Config, tied_by_default: bool | None) -> qwen3.Qwen3:
    tied = config.values.get("tie_word_embeddings", text.values.get("tie_word_embeddings", tied_by_default))
    text = replace(text, values=text.values | {"tie_word_embeddings": tied})
    dense = qwen3.read(text, tied_by_default, "model.language_model")
    rope = text.section("rope_parameters" if text.values.get("rope_parameters") is not None else "rope_scaling")
    rope.expect("mrope_interleaved", (True,), True)
    sections = rope.integers("mrope_section")
    if len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != dense.attention.head_dim:
        raise ExportError(f"{config.path}: `{rope.within}mrope_section` {list(sections)} does not divide the "
                          f"{dense.attention.head_dim // 2} frequencies of a head among three axes")
    return replace(dense, mrope=Mrope(sections))


def _read_vision(vision: Config, text: qwen3.Qwen3) -> VisionShape:
    vision.expect("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    vision.expect("in_channels", (CHANNELS,), CHANNELS)
    vision.expect("out_hidden_size", (text.decoder.hidden,), None)
    layers, places = vision.integer("depth"), vision.integer("num_position_embeddings")
    attention = VisionAttentionShape(vision.integer("hidden_size"), vision.integer("num_heads"))
    deepstack = vision.integers("deepstack_visual_indexes")
    where = f"{vision.path}: `{vision.within}"
    if attention.hidden % attention.heads or attention.head_dim % 4:
        raise ExportError(f"{where}hidden_size` {attention.hidden} does not divide into {attention.heads} heads of a "
                          "multiple of 4: rotary embedding needs pairs for rows and for columns")
    if isqrt(places) ** 2 != places:
        raise ExportError(f"{where}num_position_embeddings` {places} is not the square of a side")
    if any(not 0 <= layer < layers for layer in deepstack) or list(deepstack) != sorted(set(deepstack)):
        raise ExportError(f"{where}deepstack_visual_indexes` {list(deepstack)} do not ascend within {layers} layers")
    if len(deepstack) > text.decoder.layers:
        raise ExportError(f"{where}deepstack_visual_indexes` names {len(deepstack)} layers; the decoder has "
                          f"{text.decoder.layers} to add them to")
    return VisionShape(
        layers, attention, vision.integer("intermediate_size"), vision.integer("patch_size"),
        vision.integer("temporal_patch_size"), vision.integer("spatial_merge_size"), isqrt(places), deepstack,
        text.decoder.hidden, _vision_rope_theta(vision), RANDOM_TABLE_GAIN / sqrt(text.decoder.hidden),
    )


def _vision_rope_theta(vision: Config) -> float:
    if vision.values.get("rope_parameters") is None:
        return VISION_ROPE_THETA
    rope = vision.section("rope_parameters")
    rope.expect("rope_type", ("axial", "default"), "axial")
    return rope.number("rope_theta")


def _token(config: Config, key: str, vocab: int) -> int:
    token = config.natural(key, None)
    if token is None or token >= vocab:
        raise ExportError(f"{config.path}: `{key}` is {token}, no token of the {vocab} there are")
    return token


def _image_shape(model: Qwen3VL) -> ImageShape:
    vision, preprocessing = model.vision, model.preprocessing
    return ImageShape(
        patch_size=vision.patch, temporal_patch_size=vision.temporal_patch, merge_size=vision.merge,
        min_pixels=preprocessing.min_pixels, max_pixels=preprocessing.max_pixels, mean=preprocessing.mean,
        std=preprocessing.std, resample="bicubic", image_token=model.image_token, vision_start=model.vision_start,
        vision_end=model.vision_end, feature_width=vision.features, deepstack=len(vision.deepstack),
        layers=vision.layers, hidden_size=vision.hidden, intermediate_size=vision.intermediate,
        heads=vision.attention.heads, parameters=vision.parameters,
    )
