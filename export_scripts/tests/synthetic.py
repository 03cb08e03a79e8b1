"""A checkpoint of any size that takes no room on disk: a sparse file of zeros with a true header."""

import json
from math import prod
from pathlib import Path


def qwen3_config(**changes) -> dict:
    """A small dense Qwen3's config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 128, "max_position_embeddings": 256, "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2,
    } | changes


def qwen3_shapes(config: dict) -> dict[str, list[int]]:
    """The tensors that such a checkpoint holds."""
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [config["vocab_size"], hidden]
    layer = {
        "self_attn.q_proj": [queries, hidden], "self_attn.k_proj": [keys, hidden], "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries], "self_attn.q_norm": [width], "self_attn.k_norm": [width],
        "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner],
        "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def write_sparse_checkpoint(folder: Path, config: dict, shapes: dict[str, list[int]] | None = None) -> int:
    """Write config.json and model.safetensors (bfloat16 zeros); the size of the latter in bytes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, shape in (shapes or qwen3_shapes(config)).items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return 8 + len(text) + offset
