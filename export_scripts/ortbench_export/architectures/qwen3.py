"""Qwen3, dense: grouped-query attention with normalised queries and keys, gated feed-forward, rotary positions."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from ortbench_export.blocks.attention import AttentionShape, attention, begin_attention
from ortbench_export.blocks.embedding import embed, head
from ortbench_export.blocks.mlp import swiglu
from ortbench_export.blocks.norm import add_rms_norm, norm_weight, rms_norm
from ortbench_export.config import Config
from ortbench_export.errors import ExportError
from ortbench_export.graph import Graph, Port
from ortbench_export.shape import ModelShape, ParameterCount
from ortbench_export.weights.tensors import Matrix

# Random weights only: gains with which every token gets its own logits and greedy decoding does not get stuck. A tied
# table that is much larger would repeat the last token; attention, which averages, needs a stronger feed-forward beside
# it, or all positions look alike.
RANDOM_TABLE_GAIN = 1.5
RANDOM_MLP_GAIN = 2.5


@dataclass(frozen=True)
class Qwen3:
    """What `config.json` says about a dense Qwen3."""

    layers: int
    vocab: int
    intermediate: int
    attention: AttentionShape
    norm_epsilon: float
    context_length: int
    rope_theta: float
    tied: bool


def read(config: Config, tied_by_default: bool | None) -> Qwen3:
    """`tied_by_default` answers for a config that does not say whether the head is tied; None: it must say."""
    config.expect("hidden_act", ("silu",), "silu")
    config.expect("attention_bias", (False,), False)
    config.expect("use_sliding_window", (False,), False)
    tied = config.values.get("tie_word_embeddings", tied_by_default)
    if not isinstance(tied, bool):
        raise ExportError(f"{config.path} lacks `tie_word_embeddings`", "add it as true or false")
    epsilon = config.number("rms_norm_eps")
    shape = AttentionShape(config.integer("hidden_size"), config.integer("num_attention_heads"),
                           config.integer("num_key_value_heads"), config.integer("head_dim"), epsilon)
    if shape.heads % shape.kv_heads:
        raise ExportError(f"{config.path}: {shape.heads} attention heads cannot share {shape.kv_heads} key/value heads")
    if shape.head_dim % 2:
        raise ExportError(f"{config.path}: `head_dim` {shape.head_dim} is odd; rotary embedding needs pairs")
    return Qwen3(config.integer("num_hidden_layers"), config.integer("vocab_size"), config.integer("intermediate_size"),
                 shape, epsilon, config.integer("max_position_embeddings"), config.rope_theta(), tied)


def build(graph: Graph, model: Qwen3) -> ModelShape:
    """Assemble the decoder; what the manifest says about its shape."""
    shape, epsilon = model.attention, model.norm_epsilon
    positions = min(model.context_length, graph.options.context_length or model.context_length)
    # Random weights only: the output of each of 2 · layers blocks adds this much less to the residual stream.
    gain = 1 / sqrt(2 * model.layers)

    ids = graph.add_input(Port("input_ids", "input_ids", np.int64, ("batch", "sequence")))
    embedding = Matrix((("model.embed_tokens.weight", model.vocab),), shape.hidden, RANDOM_TABLE_GAIN)
    residual, table = embed(graph, "/model/embed_tokens", ids, embedding)
    state = begin_attention(graph, shape, positions, model.rope_theta)

    def block_norm(name: str, source_name: str, residual: str, delta: str | None) -> tuple[str, str]:
        weight = norm_weight(graph, name, f"{source_name}.weight", shape.hidden)
        if delta is None:
            return rms_norm(graph, name, residual, weight, epsilon), residual
        return add_rms_norm(graph, name, residual, delta, weight, epsilon)

    delta = None
    for layer in range(model.layers):
        name, source_name = f"/model/layers.{layer}", f"model.layers.{layer}"
        x, residual = block_norm(f"{name}/input_layernorm", f"{source_name}.input_layernorm", residual, delta)
        delta = attention(graph, layer, f"{source_name}.self_attn", x, shape, state, gain)
        x, residual = block_norm(f"{name}/post_attention_layernorm", f"{source_name}.post_attention_layernorm",
                                 residual, delta)
        delta = swiglu(graph, f"{name}/mlp", f"{source_name}.mlp", x, shape.hidden, model.intermediate,
                       RANDOM_MLP_GAIN * gain)
    x, _ = block_norm("/model/norm", "model.norm", residual, delta)
    lm_head = embedding if model.tied else Matrix((("lm_head.weight", model.vocab),), shape.hidden,
                                                      RANDOM_TABLE_GAIN)
    head(graph, "/lm_head", x, lm_head, table if model.tied else None)

    return ModelShape(
        layers=model.layers, hidden_size=shape.hidden, intermediate_size=model.intermediate,
        attention_heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim, vocab_size=model.vocab,
        context_length=positions, parameters=_parameters(model), embedding_precision=graph.options.precision,
        lm_head_precision=graph.options.precision,
        cache_bytes_per_token=2 * model.layers * shape.kv_heads * shape.head_dim * graph.options.dtype.itemsize,
    )


def ignorable(model: Qwen3, name: str) -> bool:
    """Tensors that some checkpoints carry beside the weights: a tied head's copy, and rotary frequencies."""
    return (model.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq")


def _parameters(model: Qwen3) -> ParameterCount:
    shape = model.attention
    projections = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    layer = projections + 2 * shape.head_dim + 3 * shape.hidden * model.intermediate + 2 * shape.hidden
    table = model.vocab * shape.hidden
    multiplied = model.layers * layer + shape.hidden + table
    return ParameterCount(total=multiplied + (0 if model.tied else table), active_per_token=multiplied)
