"""Qwen3, dense: grouped-query attention with normalised queries and keys, gated feed-forward, rotary positions."""

from collections.abc import Callable
from dataclasses import dataclass

from ortbench_export.blocks import decoder as stack
from ortbench_export.blocks.attention import AttentionShape, attention, begin_attention
from ortbench_export.blocks.mlp import swiglu
from ortbench_export.blocks.mrope import Mrope
from ortbench_export.config import Config
from ortbench_export.errors import ExportError
from ortbench_export.graph import Graph, PackageGraphs
from ortbench_export.shape import ModelShape, ParameterCount


@dataclass(frozen=True)
class Qwen3:
    """What `config.json` says about a Qwen3, but for the experts of a mixture."""

    decoder: stack.DecoderShape
    attention: AttentionShape
    intermediate: int
    rope_theta: float
    mrope: Mrope | None = None


def read(config: Config, tied_by_default: bool | None, source: str = "model") -> Qwen3:
    """`tied_by_default` answers for a config that does not say whether the head is tied; None: it must say. The
    checkpoint's tensors begin with `source`."""
    config.expect("hidden_act", ("silu",), "silu")
    config.expect("attention_bias", (False,), False)
    config.expect("use_sliding_window", (False,), False)
    decoder = stack.read_decoder(config, tied_by_default, source)
    shape = AttentionShape(decoder.hidden, config.integer("num_attention_heads"),
                           config.integer("num_key_value_heads"), config.integer("head_dim"), decoder.norm_epsilon)
    if shape.heads % shape.kv_heads:
        raise ExportError(f"{config.path}: {shape.heads} attention heads cannot share {shape.kv_heads} key/value heads")
    if shape.head_dim % 2:
        raise ExportError(f"{config.path}: `head_dim` {shape.head_dim} is odd; rotary embedding needs pairs")
    return Qwen3(decoder, shape, config.integer("intermediate_size"), config.rope_theta())


def build(graphs: PackageGraphs, model: Qwen3) -> ModelShape:
    """Assemble the decoder; what the manifest says about its shape."""
    graph = graphs.begin("decoder")
    assemble(graph, model, lambda layer, x: dense(graph, model, layer, x))
    return shape(graph, model, parameters(model))


def assemble(graph: Graph, model: Qwen3, feed_forward: Callable[[int, str], str], **join) -> None:
    """Add the decoder with Qwen3's attention and any feed-forward; `join` as the decoder takes it."""
    decoder = model.decoder
    stack.decoder(
        graph, decoder,
        lambda: begin_attention(graph, model.attention, decoder.positions(graph), model.rope_theta, model.mrope),
        lambda layer, x, state: attention(graph, layer, f"{decoder.source}.layers.{layer}.self_attn", x,
                                          model.attention, state, decoder.attention_gain),
        feed_forward, **join,
    )


def dense(graph: Graph, model: Qwen3, layer: int, x: str) -> str:
    """The gated feed-forward of one layer."""
    decoder = model.decoder
    return swiglu(graph, f"/model/layers.{layer}/mlp", f"{decoder.source}.layers.{layer}.mlp", x, decoder.hidden,
                  model.intermediate, decoder.feed_forward_gain)


def shape(graph: Graph, model: Qwen3, parameters: ParameterCount, **more) -> ModelShape:
    """What the manifest says; `more` are the fields that mixtures and models of images add."""
    decoder, heads, options = model.decoder, model.attention, graph.options
    return ModelShape(
        layers=decoder.layers, hidden_size=decoder.hidden, intermediate_size=model.intermediate,
        attention_heads=heads.heads, kv_heads=heads.kv_heads, head_dim=heads.head_dim,
        attention_width=2 * heads.head_dim, vocab_size=decoder.vocab,
        context_length=decoder.positions(graph), parameters=parameters, embedding_precision=options.precision,
        lm_head_precision=options.precision,
        cache_bytes_per_token=2 * decoder.layers * heads.kv_heads * heads.head_dim * options.dtype.itemsize,
        cache_in_place=options.fused, **more,
    )


def ignorable(model: Qwen3, name: str) -> bool:
    """Tensors that some checkpoints carry beside the weights."""
    return stack.ignorable(model.decoder, name)


def attention_parameters(model: Qwen3) -> int:
    """Weights of one layer's attention and of its two norms."""
    shape = model.attention
    projections = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    return projections + 2 * shape.head_dim + 2 * shape.hidden


def parameters(model: Qwen3, beside: int = 0) -> ParameterCount:
    """Of the dense model, and of what stands beside the decoder."""
    decoder = model.decoder
    layer = attention_parameters(model) + 3 * decoder.hidden * model.intermediate
    return ParameterCount.of(decoder.layers * layer + decoder.hidden, beside, decoder.table, decoder.tied)
