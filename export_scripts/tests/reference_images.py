"""Qwen3-VL in numpy: one image at a time, one sequence at a time, no cache, written for clarity alone."""

import math

import numpy as np
from reference import quantize_then_dequantize, rms_norm
from reference_mixtures import gated

VISUAL, TEXT = "model.visual.", "model.language_model."
# Tables and convolutions of the tower are never quantized.
FLOATS = (f"{VISUAL}pos_embed.weight", f"{VISUAL}patch_embed.proj.weight")

erf = np.vectorize(math.erf)


def dequantized(weights: dict[str, np.ndarray], bits: int, vision_bits: int,
                block_size: int) -> dict[str, np.ndarray]:
    """Every matrix as a quantized package stores it; the rest as it is."""
    def stored(name, value):
        if value.ndim == 1 or name in FLOATS:
            return value
        return quantize_then_dequantize(value, vision_bits if name.startswith(VISUAL) else bits, block_size)

    return {name: stored(name, value) for name, value in weights.items()}


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Patches of bytes as the model takes them."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def features(config: dict, weights: dict[str, np.ndarray], pixels: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Features `[image_tokens, (1 + deepstack) · hidden]` of one image's scaled patches; `grid` is time, height and
    width."""
    vision, merge = config["vision_config"], config["vision_config"]["spatial_merge_size"]
    part = _Part(weights, VISUAL)
    row, column = places(grid, merge)
    x = part.linear("patch_embed.proj", pixels.astype(np.float64))
    x = x + stretched(part("pos_embed.weight"), row / max(grid[1] - 1, 1), column / max(grid[2] - 1, 1))
    heads = vision["num_heads"]
    width = x.shape[1] // heads
    frequencies = vision["rope_parameters"]["rope_theta"] ** -(np.arange(0, width // 2, 2) / (width // 2))
    turns = np.exp(1j * np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=1))
    blocks = vision["spatial_merge_size"] ** 2 * x.shape[1]
    found = []
    for layer in range(vision["depth"]):
        block = _Part(weights, f"{VISUAL}blocks.{layer}.")
        packed = block.linear("attn.qkv", block.norm("norm1", x)).reshape(len(x), 3 * heads, width)
        q, k, v = np.split(packed, 3, axis=1)
        scores = np.einsum("qhd,khd->hqk", rotate(q, turns), rotate(k, turns)) / width**0.5
        x = x + block.linear("attn.proj", np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(len(x), -1))
        h = block.linear("mlp.linear_fc1", block.norm("norm2", x))
        h = h / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + block.linear("mlp.linear_fc2", h)
        if layer in vision["deepstack_visual_indexes"]:
            merger = _Part(weights, f"{VISUAL}deepstack_merger_list.{len(found)}.")
            found.append(merged(merger, merger.norm("norm", x.reshape(-1, blocks))))
    merger = _Part(weights, f"{VISUAL}merger.")
    return np.concatenate([merged(merger, merger.norm("norm", x).reshape(-1, blocks)), *found], axis=1)


def logits(config: dict, weights: dict[str, np.ndarray], ids: np.ndarray, positions: np.ndarray,
           rows: np.ndarray | None = None) -> np.ndarray:
    """Logits `[length, vocab]` of one sequence with `positions` `[3, length]` and the features of its images; image
    tokens beyond those are ordinary."""
    text = config["text_config"]
    hidden, width, epsilon = text["hidden_size"], text["head_dim"], text["rms_norm_eps"]
    groups = text["num_attention_heads"] // text["num_key_value_heads"]
    image = ids == config["image_token_id"]
    image &= image.cumsum() <= (0 if rows is None else len(rows))
    x = weights[f"{TEXT}embed_tokens.weight"][ids].astype(np.float64)
    stack = [] if rows is None else np.split(rows, rows.shape[1] // hidden, axis=1)
    if len(stack):
        x[image] = stack[0]
    frequencies = text["rope_parameters"]["rope_theta"] ** -(np.arange(0, width, 2) / width)
    along = positions[axes(text["rope_parameters"]["mrope_section"], width // 2)].T
    turns = np.exp(1j * along * frequencies)
    later = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(text["num_hidden_layers"]):
        part = _Part(weights, f"{TEXT}layers.{layer}.")
        h = rms_norm(x, part("input_layernorm.weight"), epsilon)
        q, k, v = ((h @ part(f"self_attn.{which}_proj.weight").T).reshape(len(h), -1, width) for which in "qkv")
        q = rotate(rms_norm(q, part("self_attn.q_norm.weight"), epsilon), turns)
        k = rotate(rms_norm(k, part("self_attn.k_norm.weight"), epsilon), turns)
        k, v = (np.repeat(each, groups, axis=1) for each in (k, v))
        shares = softmax(np.einsum("qhd,khd->hqk", q, k) / width**0.5 + later)
        context = np.einsum("hqk,khd->qhd", shares, v).reshape(len(h), -1)
        x = x + context @ part("self_attn.o_proj.weight").T
        h = rms_norm(x, part("post_attention_layernorm.weight"), epsilon)
        x = x + gated(h, *(part(f"mlp.{which}_proj.weight") for which in ("gate", "up", "down")))
        if 1 + layer < len(stack):
            x[image] += stack[1 + layer]
    head = weights[f"{TEXT}embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms_norm(x, weights[f"{TEXT}norm.weight"], epsilon) @ head.T


class _Part:
    """The weights of one block."""

    def __init__(self, weights: dict[str, np.ndarray], prefix: str):
        self.weights, self.prefix = weights, prefix

    def __call__(self, name: str) -> np.ndarray:
        return self.weights[f"{self.prefix}{name}"]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self(f"{name}.weight")
        return x @ weight.reshape(len(weight), -1).T + self(f"{name}.bias")

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return unit * self(f"{name}.weight") + self(f"{name}.bias")


def places(grid: np.ndarray, merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each patch, block by block."""
    order = [(block_row + row, block_column + column)
             for block_row in range(0, grid[1], merge) for block_column in range(0, grid[2], merge)
             for row in range(merge) for column in range(merge)]
    return tuple(np.array(order).T)


def stretched(table: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The learned square at places between 0 and 1, between its points bilinear."""
    side = int(len(table) ** 0.5)
    square, points = table.reshape(side, side, -1), np.arange(side)
    near = [np.clip(1 - np.abs(place[:, None] * (side - 1) - points), 0, None) for place in (down, right)]
    return np.einsum("pi,pj,ijd->pd", *near, square)


def axes(sections: list[int], pairs: int) -> list[int]:
    """Which of a token's three positions each frequency turns by: time, row, column in turn while sections last."""
    return [pair % 3 if pair < 3 * sections[pair % 3] else 0 for pair in range(pairs)]


def rotate(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Turn numbers half a head apart, as complex numbers."""
    first, second = np.split(x, 2, axis=-1)
    turned = (first + 1j * second) * turns[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def merged(part: _Part, x: np.ndarray) -> np.ndarray:
    h = part.linear("linear_fc1", x)
    return part.linear("linear_fc2", h / 2 * (1 + erf(h / 2**0.5)))


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
