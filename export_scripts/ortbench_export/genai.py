"""What onnxruntime-genai needs to load a package: its configuration, and a graph with no inputs but those it knows."""

import json
from pathlib import Path

from ortbench_export.config import SpecialTokens, read_json
from ortbench_export.options import ExportOptions
from ortbench_export.shape import ModelShape

CONFIG_FILE = "genai_config.json"
# The graph for onnxruntime-genai where the package's own has the input `logits_positions`: an optional input would
# save the second file, but OpenVINO's provider takes the default of one for a constant.
GRAPH_FILE = "genai.onnx"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# Architectures by onnxruntime-genai's own names. Any other whose graph it can run goes by the general one.
TYPES = {"Qwen3ForCausalLM": "qwen3"}
GENERAL_TYPE = "decoder"
# It allocates the cache for this many tokens as soon as a generator is made; callers may ask for more.
LONGEST_BY_DEFAULT = 4096
SAMPLING_KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def loads(options: ExportOptions, shape: ModelShape) -> bool:
    """Whether onnxruntime-genai can run such a graph: it wants text alone, and the cache of GroupQueryAttention."""
    return options.fused and shape.cache_in_place and shape.image is None


def genai_config(architecture: str, shape: ModelShape, tokens: SpecialTokens, graph_file: str, folder: Path) -> bytes:
    """The content of `genai_config.json`; how to sample stands in the checkpoint folder's `generation_config.json`."""
    model = {
        "type": TYPES.get(architecture, GENERAL_TYPE),
        "vocab_size": shape.vocab_size,
        "context_length": shape.context_length,
        "bos_token_id": tokens.bos,
        "eos_token_id": list(tokens.eos) or None,
        "pad_token_id": tokens.eos[0] if tokens.pad is None and tokens.eos else tokens.pad,
        "decoder": {
            "session_options": {"provider_options": []},
            "filename": graph_file,
            "hidden_size": shape.hidden_size,
            "head_size": shape.head_dim,
            "num_attention_heads": shape.attention_heads,
            "num_key_value_heads": shape.kv_heads,
            "num_hidden_layers": shape.layers,
            "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                       "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
            "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                        "present_value_names": "present.%d.value"},
        },
    }
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    search = {key: generation[key] for key in SAMPLING_KEYS if generation.get(key) is not None}
    search = {"do_sample": False} | search | {"max_length": min(shape.context_length, LONGEST_BY_DEFAULT),
                                              "past_present_share_buffer": True}
    config = {"model": {key: value for key, value in model.items() if value is not None}, "search": search}
    return (json.dumps(config, indent=2) + "\n").encode()
