"""Make the golden checkpoints: tiny random models with the logits that transformers computes for them.

Needs `requirements-golden.txt` (PyTorch and transformers); the tests that read its output need neither.

    python export_scripts/tests/golden/make_golden.py

Each folder beside this file becomes a whole checkpoint (config.json, safetensors) and `golden.npz`:

  ids           int64 [1, prompt + steps]     one sequence
  logits        float32 [1, prompt + steps, vocab]
  batch_ids     int64 [rows, longest + steps] rows of unequal prompts, left-padded with 0
  batch_lengths int64 [rows]                  prompt tokens of each row
  batch_logits  float32 [rows, longest + steps, vocab], zero where there is padding

Logits of the first `prompt` (or `longest`) positions come from one prefill, the others from cached decode steps.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    Glm4MoeLiteConfig,
    Glm4MoeLiteForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

STEPS = 16
PROMPT = 9
BATCH_LENGTHS = (4, 9, 1)
CLASSES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "glm4_moe_lite": (Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM),
}


@dataclass(frozen=True)
class Case:
    """One tiny configuration; `stored` is the type of its weights on disk, `shards` their number of files. Experts are
    stored one by one, as on the hub, or `stacked` in one tensor, as transformers 5 holds them."""

    name: str
    seed: int
    stored: torch.dtype
    shards: int
    config: dict = field(default_factory=dict)
    family: str = "qwen3"
    stacked: bool = False


CASES = (
    Case("qwen3-grouped-tied", 1, torch.bfloat16, 1, {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "tie_word_embeddings": True, "rope_theta": 1e4,
    }),
    Case("qwen3-ungrouped-odd-untied", 2, torch.float32, 1, {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3,
        "num_key_value_heads": 3, "head_dim": 32, "vocab_size": 130, "tie_word_embeddings": False, "rope_theta": 1e6,
    }),
    Case("qwen3-one-kv-head-sharded", 3, torch.float16, 3, {
        "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 5,
        "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 200, "tie_word_embeddings": True, "rope_theta": 5e6,
    }),
    # No width is a multiple of a block size here, and the heads together are wider than the hidden size.
    Case("qwen3-ragged-untied", 4, torch.bfloat16, 2, {
        "hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 16, "vocab_size": 150, "tie_word_embeddings": False, "rope_theta": 1e6,
    }),
    # Every width is a multiple of 128, the larger block size.
    Case("qwen3-wide-blocks", 5, torch.bfloat16, 1, {
        "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 128, "tie_word_embeddings": True, "rope_theta": 1e4,
    }),
    # Seeds of mixtures are such that rounding activations to 8 bits sends no token to another expert.
    Case("qwen3-moe-per-expert", 6, torch.bfloat16, 1, {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96, "tie_word_embeddings": False, "rope_theta": 1e7,
        "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True,
    }, "qwen3_moe"),
    # Weights of the chosen experts do not add up to one, and only the second of four layers is a mixture.
    Case("qwen3-moe-sparse-steps", 7, torch.float16, 1, {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 120, "tie_word_embeddings": True, "rope_theta": 1e4,
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": False,
        "decoder_sparse_step": 2, "mlp_only_layers": [3],
    }, "qwen3_moe", stacked=True),
    Case("qwen3-moe-one-expert-sharded", 14, torch.float32, 3, {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 3, "head_dim": 32, "vocab_size": 100, "tie_word_embeddings": False, "rope_theta": 1e6,
        "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "norm_topk_prob": True,
        "mlp_only_layers": [0],
    }, "qwen3_moe"),
    Case("glm4-moe-lite-per-expert", 9, torch.bfloat16, 1, {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "vocab_size": 96, "tie_word_embeddings": False, "rope_theta": 1e6, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "moe_intermediate_size": 32, "routed_scaling_factor": 1.8,
    }, "glm4_moe_lite"),
    # Experts are chosen among two of four groups, their weights are left as they are, queries have no latent.
    Case("glm4-moe-lite-groups", 16, torch.float16, 2, {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 32, "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 8, "v_head_dim": 32, "vocab_size": 100, "tie_word_embeddings": False, "rope_theta": 1e4,
        "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "routed_scaling_factor": 1.0,
        "n_group": 4, "topk_group": 2, "norm_topk_prob": False,
    }, "glm4_moe_lite", stacked=True),
    Case("glm4-moe-lite-shared-halves", 11, torch.bfloat16, 1, {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3,
        "num_key_value_heads": 3, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
        "v_head_dim": 32, "vocab_size": 100, "tie_word_embeddings": False, "rope_theta": 1e4, "n_routed_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "routed_scaling_factor": 2.5, "n_shared_experts": 2,
        "rope_interleave": False, "mlp_layer_types": ["sparse", "dense", "sparse"],
    }, "glm4_moe_lite"),
)


def main() -> None:
    torch.set_num_threads(1)
    for case in CASES:
        folder = Path(__file__).parent / case.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model = make_model(case)
        save_checkpoint(model, case, folder)
        np.savez_compressed(folder / "golden.npz", **golden(model, case))
        print(f"{case.name}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e3:.0f} kB")


def make_model(case: Case) -> PreTrainedModel:
    """A float32 model whose weights are exact in the type that they are stored in."""
    values = dict(case.config)
    theta = values.pop("rope_theta")
    config_class, model_class = CLASSES[case.family]
    config = config_class(
        **values, max_position_embeddings=128, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=[1, 2],
        rope_parameters={"rope_type": "default", "rope_theta": theta}, attn_implementation="eager",
    )
    torch.manual_seed(case.seed)
    model = model_class(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms' weights differ from one, and matrices are large enough for sharp attention.
            drawn = torch.randn(parameter.shape)
            drawn = 1 + 0.3 * drawn if parameter.ndim == 1 else 1.2 * drawn / parameter.shape[-1] ** 0.5
            parameter.copy_(drawn.to(case.stored).float())
        for name, buffer in model.named_buffers():
            # Large enough to change which experts are chosen.
            if name.endswith("e_score_correction_bias"):
                buffer.copy_((0.1 * torch.randn(buffer.shape)).to(case.stored).float())
    model.tie_weights()
    return model


def save_checkpoint(model: PreTrainedModel, case: Case, folder: Path) -> None:
    """As Hugging Face lays checkpoints out, one file or several with an index."""
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {name: value.to(case.stored).contiguous() for name, value in model.state_dict().items()
               if not (case.config["tie_word_embeddings"] and name == "lm_head.weight")}
    if not case.stacked:
        tensors = split_experts(tensors)
    if case.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(case.shards):
        file = f"model-{shard + 1:05}-of-{case.shards:05}.safetensors"
        part = names[shard :: case.shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def split_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stacked experts as the hub stores them: a tensor for each expert's gate, up and down projection."""
    result = {}
    for name, value in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind not in ("gate_up_proj", "down_proj"):
            result[name] = value
            continue
        for expert, matrix in enumerate(value):
            halves = matrix.chunk(2) if kind == "gate_up_proj" else (matrix,)
            kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            for each, part in zip(kinds, halves, strict=True):
                result[f"{prefix}.{expert}.{each}.weight"] = part.contiguous()
    return result


def golden(model: PreTrainedModel, case: Case) -> dict[str, np.ndarray]:
    """Logits of one sequence and of a left-padded batch."""
    generator = np.random.default_rng(case.seed)
    vocab, longest = case.config["vocab_size"], max(BATCH_LENGTHS)
    ids = generator.integers(0, vocab, (1, PROMPT + STEPS))
    batch_ids = generator.integers(0, vocab, (len(BATCH_LENGTHS), longest + STEPS))
    mask = np.ones_like(batch_ids)
    for row, length in enumerate(BATCH_LENGTHS):
        batch_ids[row, : longest - length] = 0
        mask[row, : longest - length] = 0
    return {
        "ids": ids,
        "logits": decode(model, ids, np.ones_like(ids), PROMPT),
        "batch_ids": batch_ids,
        "batch_lengths": np.array(BATCH_LENGTHS),
        "batch_logits": decode(model, batch_ids, mask, longest) * mask[..., None].astype(np.float32),
    }


@torch.no_grad()
def decode(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray, prompt: int) -> np.ndarray:
    """Prefill of `prompt` tokens, then one cached step for each of the others."""
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    past, logits = None, []
    for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, ids.shape[1]))]:
        output = model(input_ids=ids[:, start:stop], attention_mask=mask[:, :stop],
                       position_ids=positions[:, start:stop], past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits.append(output.logits.float().numpy())
    return np.concatenate(logits, axis=1)


if __name__ == "__main__":
    main()
