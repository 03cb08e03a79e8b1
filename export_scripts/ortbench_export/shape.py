"""What an architecture tells the manifest about the model that it built."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterCount:
    """Weights as the checkpoint counts them, tied ones once; active are those that one decoded token multiplies."""

    total: int
    active_per_token: int

    @classmethod
    def of(cls, multiplied: int, idle: int, table: int, tied: bool) -> "ParameterCount":
        """`multiplied` weights that every token multiplies with, `idle` ones of experts that it passes by, and a
        `table` that is the head, and again the embedding unless they are tied."""
        active = multiplied + table
        return cls(total=active + idle + (0 if tied else table), active_per_token=active)


@dataclass(frozen=True)
class ImageShape:
    """The manifest's `image`, key by key: how an image becomes patches, and the tower that they pass."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    image_token: int
    vision_start: int
    vision_end: int
    feature_width: int
    deepstack: int
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    parameters: int


@dataclass(frozen=True)
class ModelShape:
    """The manifest's `shape`, and what goes with it. Expert fields are for mixtures only, `image` for models that take
    images."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    # Multiplications of one query head with one token of the cache: its scores' and its values'.
    attention_width: int
    vocab_size: int
    context_length: int
    parameters: ParameterCount
    embedding_precision: str
    lm_head_precision: str
    # One sequence, all layers, keys and values.
    cache_bytes_per_token: int
    # Whether past and present may be one buffer, in which a row's tokens are counted from its start.
    cache_in_place: bool
    experts: int | None = None
    experts_per_token: int | None = None
    expert_intermediate_size: int | None = None
    image: ImageShape | None = None
