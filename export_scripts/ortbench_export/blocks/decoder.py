"""The residual stream that decoders share: embedding, layers of attention and feed-forward, final norm, head."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from ortbench_export.blocks.embedding import embed, head
from ortbench_export.blocks.norm import add_rms_norm, norm_weight, rms_norm
from ortbench_export.config import Config
from ortbench_export.errors import ExportError
from ortbench_export.graph import Graph, Port
from ortbench_export.weights.tensors import Matrix, Part

# Random weights only: gains with which every token gets its own logits and greedy decoding does not get stuck. A tied
# table that is much larger would repeat the last token; attention, which averages, needs a stronger feed-forward beside
# it, or all positions look alike.
RANDOM_TABLE_GAIN = 1.5
RANDOM_FEED_FORWARD_GAIN = 2.5


@dataclass(frozen=True)
class DecoderShape:
    """What is the same in every layer, and around the layers."""

    layers: int
    hidden: int
    vocab: int
    norm_epsilon: float
    context_length: int
    tied: bool
    # Where the checkpoint's tensors are, but for the head.
    source: str = "model"

    @property
    def attention_gain(self) -> float:
        """Random weights only: the output of each of 2 · layers blocks adds this much less to the residual stream."""
        return 1 / sqrt(2 * self.layers)

    @property
    def feed_forward_gain(self) -> float:
        return RANDOM_FEED_FORWARD_GAIN * self.attention_gain

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the head."""
        return self.vocab * self.hidden

    def positions(self, graph: Graph) -> int:
        """Rows of the rotary tables: the model's context length unless the export shortens it."""
        return min(self.context_length, graph.options.context_length or self.context_length)


def read_decoder(config: Config, tied_by_default: bool | None, source: str = "model") -> DecoderShape:
    """`tied_by_default` answers for a config that does not say whether the head is tied; None: it must say."""
    tied = config.values.get("tie_word_embeddings", tied_by_default)
    if not isinstance(tied, bool):
        raise ExportError(f"{config.path} lacks `tie_word_embeddings`", "add it as true or false")
    config.expect_each("layer_types", "full_attention")
    return DecoderShape(config.integer("num_hidden_layers"), config.integer("hidden_size"),
                        config.integer("vocab_size"), config.number("rms_norm_eps"),
                        config.integer("max_position_embeddings"), tied, source)


# Takes a layer's number and what it adds last to the residual stream; what shall be added instead.
Behind = Callable[[int, str], str]


def text_alone(_ids: str, x: str) -> tuple[str, Behind]:
    """Nothing joins the tokens."""
    return x, lambda _, delta: delta


def decoder(graph: Graph, shape: DecoderShape, begin: Callable[[], Any], attend: Callable[[int, str, Any], str],
            feed_forward: Callable[[int, str], str],
            join: Callable[[str, str], tuple[str, Behind]] = text_alone) -> None:
    """Add the whole decoder from `input_ids` to `logits`.

    `begin` adds what all layers share and returns it; `attend(layer, x, state)` and `feed_forward(layer, x)` turn the
    normalised stream `x` `[batch, sequence, hidden]` into what is added to it. `join(ids, x)` may change the embedded
    tokens `x`, and says what goes on behind each layer.
    """
    ids = graph.add_input(Port("input_ids", "input_ids", np.int64, ("batch", "sequence")))
    embedding = Matrix((Part(f"{shape.source}.embed_tokens.weight", shape.vocab),), shape.hidden, RANDOM_TABLE_GAIN)
    residual, table = embed(graph, "/model/embed_tokens", ids, embedding)
    residual, behind = join(ids, residual)
    state = begin()

    def block_norm(name: str, source_name: str, residual: str, delta: str | None) -> tuple[str, str]:
        weight = norm_weight(graph, name, f"{source_name}.weight", shape.hidden)
        if delta is None:
            return rms_norm(graph, name, residual, weight, shape.norm_epsilon), residual
        return add_rms_norm(graph, name, residual, delta, weight, shape.norm_epsilon)

    delta = None
    for layer in range(shape.layers):
        name, source_name = f"/model/layers.{layer}", f"{shape.source}.layers.{layer}"
        x, residual = block_norm(f"{name}/input_layernorm", f"{source_name}.input_layernorm", residual, delta)
        delta = attend(layer, x, state)
        x, residual = block_norm(f"{name}/post_attention_layernorm", f"{source_name}.post_attention_layernorm",
                                 residual, delta)
        delta = behind(layer, feed_forward(layer, x))
    x, _ = block_norm("/model/norm", f"{shape.source}.norm", residual, delta)
    untied = Matrix((Part("lm_head.weight", shape.vocab),), shape.hidden, RANDOM_TABLE_GAIN)
    head(graph, "/lm_head", x, embedding if shape.tied else untied, table if shape.tied else None)


def ignorable(shape: DecoderShape, name: str) -> bool:
    """Tensors that some checkpoints carry beside the weights: a tied head's copy, and rotary frequencies."""
    return (shape.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq")
