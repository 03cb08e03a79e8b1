"""Qwen3 in a page of numpy, and the arithmetic of block-wise quantization, written for clarity alone.

Independent of the exporter: exported graphs are compared with it, and it is itself compared with transformers.
"""

import numpy as np


def quantize_then_dequantize(matrix: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """What a matrix `[rows, columns]` becomes when it is stored in blocks: code · scale, block by block."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    result = np.empty_like(matrix)
    for row in range(matrix.shape[0]):
        for start in range(0, matrix.shape[1], block_size):
            block = matrix[row, start : start + block_size]
            # The positive extreme wins only where it is strictly larger; then its own code is the lowest one.
            extreme = block.max() if block.max() > -block.min() else block.min()
            scale = np.float32(extreme / lowest)
            # Ties are common among bfloat16 weights, so the order of float32 operations is part of the definition.
            shifted = block * (np.float32(1) / scale) + np.float32(0.5 - lowest) if scale else np.zeros_like(block)
            codes = np.clip(np.floor(shifted) + lowest, lowest, highest)
            result[row, start : start + block_size] = codes * scale
    return result


def dequantized(weights: dict[str, np.ndarray], bits: int, block_size: int) -> dict[str, np.ndarray]:
    """Every matrix as a quantized package stores it; vectors as they are."""
    return {name: quantize_then_dequantize(value, bits, block_size) if value.ndim == 2 else value
            for name, value in weights.items()}


def rounded_to_half(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}


def qwen3_logits(config: dict, weights: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Logits `[length, vocab]` of one sequence of ids `[length]`, no cache."""
    heads, kv_heads, width = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    length, epsilon = len(ids), config["rms_norm_eps"]
    frequencies = config["rope_parameters"]["rope_theta"] ** -(np.arange(0, width, 2) / width)
    angles = np.outer(np.arange(length), frequencies)
    later = np.triu(np.full((length, length), -np.inf), 1)
    x = weights["model.embed_tokens.weight"][ids].astype(np.float64)

    def rotate(states):
        first, second = np.split(states, 2, axis=-1)
        cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)

    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."

        def weight(name, prefix=prefix):
            return weights[f"{prefix}{name}.weight"]

        h = rms_norm(x, weight("input_layernorm"), epsilon)
        q, k, v = (h @ weight(f"self_attn.{name}_proj").T for name in "qkv")
        q = rotate(rms_norm(q.reshape(length, heads, width), weight("self_attn.q_norm"), epsilon))
        k = rotate(rms_norm(k.reshape(length, kv_heads, width), weight("self_attn.k_norm"), epsilon))
        k = np.repeat(k, heads // kv_heads, axis=1)
        v = np.repeat(v.reshape(length, kv_heads, width), heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / width**0.5 + later
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + context.reshape(length, heads * width) @ weight("self_attn.o_proj").T
        h = rms_norm(x, weight("post_attention_layernorm"), epsilon)
        gate = h @ weight("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weight("mlp.up_proj").T)) @ weight("mlp.down_proj").T
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms_norm(x, weights["model.norm.weight"], epsilon) @ head.T


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight
