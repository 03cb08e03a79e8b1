"""What an architecture tells the manifest about the model that it built."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterCount:
    """Weights as the checkpoint counts them, tied ones once; active are those that one decoded token multiplies."""

    total: int
    active_per_token: int


@dataclass(frozen=True)
class ModelShape:
    """The manifest's `shape`, and what goes with it. Expert fields are for mixtures only."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    parameters: ParameterCount
    embedding_precision: str
    lm_head_precision: str
    # One sequence, all layers, keys and values.
    cache_bytes_per_token: int
    experts: int | None = None
    experts_per_token: int | None = None
    expert_intermediate_size: int | None = None
