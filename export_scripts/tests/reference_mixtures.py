"""Qwen3-MoE and GLM-4.7-Flash in numpy: one token's experts at a time, no cache, written for clarity alone."""

import numpy as np
from reference import quantize_then_dequantize, rms_norm

# Never quantized: the router. `kv_b_proj` stays as it is in the absorbed form.
ROUTER = "mlp.gate.weight"
EXPANSION = "self_attn.kv_b_proj.weight"


def dequantized(weights: dict[str, np.ndarray], bits: int, block_size: int, absorbed: bool) -> dict[str, np.ndarray]:
    """Every matrix as a quantized package stores it, those in stacks as well; the rest as it is."""
    kept = (ROUTER, EXPANSION) if absorbed else (ROUTER,)

    def stored(name, value):
        if value.ndim == 1 or name.endswith(kept):
            return value
        if value.ndim == 3:
            return np.stack([quantize_then_dequantize(each, bits, block_size) for each in value])
        return quantize_then_dequantize(value, bits, block_size)

    return {name: stored(name, value) for name, value in weights.items()}


def logits(config: dict, weights: dict[str, np.ndarray], ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits `[length, vocab]` of one sequence, and each mixture's chosen experts `[length, chosen]`."""
    latent, epsilon = config["model_type"] == "glm4_moe_lite", config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids].astype(np.float64)
    routes = []
    for layer in range(config["num_hidden_layers"]):
        part = _Part(weights, f"model.layers.{layer}.")
        attend = latent_attention if latent else grouped_attention
        x = x + attend(config, part, rms_norm(x, part("input_layernorm"), epsilon))
        h = rms_norm(x, part("post_attention_layernorm"), epsilon)
        if f"{part.prefix}{ROUTER}" not in weights:
            x = x + gated(h, part("mlp.gate_proj"), part("mlp.up_proj"), part("mlp.down_proj"))
            continue
        chosen, mixing = (sigmoid_route if latent else softmax_route)(config, part, h)
        mixed = [sum(share * gated(token, *part.expert(expert)) for expert, share in zip(*route, strict=True))
                 for token, *route in zip(h, chosen, mixing, strict=True)]
        if latent:
            shared = (part(f"mlp.shared_experts.{which}_proj") for which in ("gate", "up", "down"))
            mixed = mixed + gated(h, *shared)
        x = x + mixed
        routes.append(chosen)
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms_norm(x, weights["model.norm.weight"], epsilon) @ head.T, routes


class _Part:
    """The weights of one layer."""

    def __init__(self, weights: dict[str, np.ndarray], prefix: str):
        self.weights, self.prefix = weights, prefix

    def __call__(self, name: str) -> np.ndarray:
        return self.weights[f"{self.prefix}{name}.weight"]

    def expert(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gate, up and down of one expert, from either layout."""
        stack = self.weights.get(f"{self.prefix}mlp.experts.gate_up_proj")
        if stack is not None:
            return *np.split(stack[index], 2), self.weights[f"{self.prefix}mlp.experts.down_proj"][index]
        return tuple(self(f"mlp.experts.{index}.{which}_proj") for which in ("gate", "up", "down"))


def gated(x, gate, up, down):
    return (x @ gate.T * sigmoid(x @ gate.T) * (x @ up.T)) @ down.T


def softmax_route(config: dict, part: _Part, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shares = np.exp(h @ part("mlp.gate").T)
    shares = shares / shares.sum(-1, keepdims=True)
    chosen = np.argsort(-shares)[:, : config["num_experts_per_tok"]]
    mixing = np.take_along_axis(shares, chosen, 1)
    return chosen, mixing / mixing.sum(-1, keepdims=True) if config["norm_topk_prob"] else mixing


def sigmoid_route(config: dict, part: _Part, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shares = sigmoid(h @ part("mlp.gate").T)
    preference = shares + part.weights[f"{part.prefix}mlp.gate.e_score_correction_bias"]
    size = config["n_routed_experts"] // config["n_group"]
    for row in preference:
        groups = row.reshape(-1, size)
        scores = np.sort(groups)[:, -2:].sum(-1)
        for group in np.argsort(-scores)[config["topk_group"] :]:
            groups[group] = -np.inf
    chosen = np.argsort(-preference)[:, : config["num_experts_per_tok"]]
    mixing = np.take_along_axis(shares, chosen, 1)
    if config["norm_topk_prob"]:
        mixing = mixing / mixing.sum(-1, keepdims=True)
    return chosen, mixing * config["routed_scaling_factor"]


def grouped_attention(config: dict, part: _Part, h: np.ndarray) -> np.ndarray:
    heads, kv_heads, width = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    q, k, v = (h @ part(f"self_attn.{name}_proj").T for name in "qkv")
    q = rms_norm(q.reshape(len(h), heads, width), part("self_attn.q_norm"), config["rms_norm_eps"])
    k = rms_norm(k.reshape(len(h), kv_heads, width), part("self_attn.k_norm"), config["rms_norm_eps"])
    q, k = rotate(config, q, False), np.repeat(rotate(config, k, False), heads // kv_heads, axis=1)
    v = np.repeat(v.reshape(len(h), kv_heads, width), heads // kv_heads, axis=1)
    return attend(q, k, v) @ part("self_attn.o_proj").T


def latent_attention(config: dict, part: _Part, h: np.ndarray) -> np.ndarray:
    heads, nope, rope, latent = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim",
                                                         "kv_lora_rank"))
    if config["q_lora_rank"] is None:
        q = h @ part("self_attn.q_proj").T
    else:
        q = rms_norm(h @ part("self_attn.q_a_proj").T, part("self_attn.q_a_layernorm"), 1e-6)
        q = q @ part("self_attn.q_b_proj").T
    q = q.reshape(len(h), heads, nope + rope)
    down = h @ part("self_attn.kv_a_proj_with_mqa").T
    both = rms_norm(down[:, :latent], part("self_attn.kv_a_layernorm"), 1e-6) @ part("self_attn.kv_b_proj").T
    both = both.reshape(len(h), heads, -1)
    pairs = config["rope_interleave"]
    q = np.concatenate([q[..., :nope], rotate(config, q[..., nope:], pairs)], axis=-1)
    shared = np.repeat(rotate(config, down[:, None, latent:], pairs), heads, axis=1)
    k = np.concatenate([both[..., :nope], shared], axis=-1)
    return attend(q, k, both[..., nope:]) @ part("self_attn.o_proj").T


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of `[length, heads, width]`, heads joined in the result."""
    scores = np.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5 + np.triu(np.full((len(q), len(q)), -np.inf), 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(len(q), -1)


def rotate(config: dict, x: np.ndarray, pairs: bool) -> np.ndarray:
    """Turn neighbours, or numbers half a head apart, as complex numbers; the result's order is of no account."""
    width = x.shape[-1]
    frequencies = config["rope_parameters"]["rope_theta"] ** -(np.arange(0, width, 2) / width)
    turns = np.exp(1j * np.outer(np.arange(len(x)), frequencies))[:, None]
    first, second = (x[..., ::2], x[..., 1::2]) if pairs else np.split(x, 2, axis=-1)
    turned = (first + 1j * second) * turns
    return np.concatenate([turned.real, turned.imag], axis=-1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
