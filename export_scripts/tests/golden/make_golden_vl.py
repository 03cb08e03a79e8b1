"""Make the golden checkpoints of Qwen3-VL, as make_golden.py does for text models.

    python export_scripts/tests/golden/make_golden_vl.py

`golden.npz` of these holds, beside what text models have:

  grids            int64 [images, 3]             patches of each image in time, height and width
  pixels           uint8 [patches, width]        all images' patches one after the other; the model takes n / 127.5 - 1
  features         float32 [tokens, features]    what the vision tower makes of them
  positions        int64 [3, 1, prompt + steps]  of `ids`, whose prompt shows the first two images
  batch_images     int64 [n]                     the images that `batch_ids` show, row by row
  batch_positions  int64 [3, rows, longest + steps]
  text_ids, text_logits                          a sequence without images, as `ids` and `logits`
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from make_golden import STEPS, Case, save_checkpoint
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

TEXT_PROMPT = 9
IMAGE, START, END = 7, 8, 9

CASES = (
    (Case("qwen3-vl-grouped-tied", 21, torch.bfloat16, 1, {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "tie_word_embeddings": True, "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
    }), {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
    }, [(1, 4, 6), (1, 2, 4), (1, 6, 2)]),
    # Every layer's features join, patches are tokens of their own, images are larger than the learned square.
    (Case("qwen3-vl-odd-heads-untied", 22, torch.float16, 1, {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3,
        "num_key_value_heads": 3, "head_dim": 32, "vocab_size": 100, "tie_word_embeddings": False, "rope_theta": 5e6,
        "mrope_section": [6, 5, 5],
    }), {
        "depth": 3, "hidden_size": 96, "intermediate_size": 32, "num_heads": 3, "patch_size": 2,
        "temporal_patch_size": 1, "spatial_merge_size": 1, "num_position_embeddings": 9,
        "deepstack_visual_indexes": [0, 1, 2],
    }, [(1, 1, 4), (1, 5, 2), (1, 2, 3)]),
    # No DeepStack, blocks of nine patches, more columns than fit into the frequencies.
    (Case("qwen3-vl-no-deepstack-sharded", 23, torch.bfloat16, 3, {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 110, "tie_word_embeddings": True, "rope_theta": 1e6,
        "mrope_section": [2, 3, 3],
    }), {
        "depth": 2, "hidden_size": 32, "intermediate_size": 96, "num_heads": 4, "patch_size": 2,
        "temporal_patch_size": 2, "spatial_merge_size": 3, "num_position_embeddings": 49,
        "deepstack_visual_indexes": [],
    }, [(1, 3, 6), (1, 9, 3), (1, 6, 6)]),
)


def main() -> None:
    torch.set_num_threads(1)
    for case, vision, grids in CASES:
        folder = Path(__file__).parent / case.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model = make_model(case, vision)
        save_checkpoint(model, case, folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "merge_size": vision["spatial_merge_size"],
            "patch_size": vision["patch_size"], "temporal_patch_size": vision["temporal_patch_size"],
            "size": {"longest_edge": 4096, "shortest_edge": 64},
        }, indent=2) + "\n")
        np.savez_compressed(folder / "golden.npz", **golden(model, case, grids))
        print(f"{case.name}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e3:.0f} kB")


def make_model(case: Case, vision: dict) -> Qwen3VLForConditionalGeneration:
    """A float32 model whose weights are exact in the type that they are stored in."""
    text = {key: value for key, value in case.config.items() if key not in ("rope_theta", "mrope_section")}
    rope = {"rope_type": "default", "rope_theta": case.config["rope_theta"], "mrope_interleaved": True,
            "mrope_section": case.config["mrope_section"]}
    config = Qwen3VLConfig(
        text_config=text | {"max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_parameters": rope,
                            "bos_token_id": 0, "eos_token_id": [1, 2]},
        vision_config=vision | {"out_hidden_size": text["hidden_size"]}, image_token_id=IMAGE, video_token_id=10,
        vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=text["tie_word_embeddings"],
        attn_implementation="eager",
    )
    torch.manual_seed(case.seed)
    model = Qwen3VLForConditionalGeneration(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape)
            if name.endswith("bias"):
                drawn = 0.3 * drawn
            elif parameter.ndim == 1:
                drawn = 1 + 0.3 * drawn
            else:
                drawn = 1.2 * drawn / parameter[0].numel() ** 0.5
            parameter.copy_(drawn.to(case.stored).float())
    model.tie_weights()
    return model


@torch.no_grad()
def golden(model: Qwen3VLForConditionalGeneration, case: Case, grids: list[tuple]) -> dict[str, np.ndarray]:
    """Features of the images; logits of a sequence with two of them, of one with none, and of a left-padded batch whose
    rows show one, none and two."""
    generator = np.random.default_rng(case.seed)
    vision = model.config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    sizes = [int(np.prod(grid)) for grid in grids]
    pixels = generator.integers(0, 256, (sum(sizes), width), dtype=np.uint8)
    tokens = [size // vision.spatial_merge_size**2 for size in sizes]

    def words(count: int) -> np.ndarray:
        return generator.integers(11, case.config["vocab_size"], count)

    def shown(index: int) -> np.ndarray:
        return np.array([START, *[IMAGE] * tokens[index], END])

    def rows(*sequences) -> tuple[np.ndarray, np.ndarray]:
        """Prompts padded on the left, and the tokens behind them."""
        longest = max(map(len, sequences))
        padded = [np.concatenate([np.zeros(longest - len(each), np.int64), each, words(STEPS)]) for each in sequences]
        return np.stack(padded), np.array([len(each) for each in sequences])

    ids, lengths = rows(np.concatenate([words(2), shown(0), words(1), shown(1), words(3)]))
    batch_ids, batch_lengths = rows(np.concatenate([shown(2), words(2)]), words(4),
                                    np.concatenate([words(1), shown(1), words(2), shown(0), words(1)]))
    text_ids, text_lengths = rows(words(TEXT_PROMPT))
    batch_images = np.array([2, 1, 0])
    logits, positions = decode(model, ids, lengths, grids, pixels, [0, 1])
    batch_logits, batch_positions = decode(model, batch_ids, batch_lengths, grids, pixels, batch_images)
    tower = model.model.visual(torch.from_numpy(scaled(pixels)), torch.tensor(grids))
    features = torch.cat([tower.pooler_output, *tower.deepstack_features], dim=-1)
    return {
        "grids": np.array(grids), "pixels": pixels, "features": features.numpy(), "ids": ids, "positions": positions,
        "logits": logits, "batch_ids": batch_ids, "batch_lengths": batch_lengths, "batch_images": batch_images,
        "batch_positions": batch_positions, "batch_logits": batch_logits, "text_ids": text_ids,
        "text_logits": decode(model, text_ids, text_lengths, grids, pixels, [])[0],
    }


def scaled(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def decode(model: Qwen3VLForConditionalGeneration, ids: np.ndarray, lengths: np.ndarray, grids: list[tuple],
           pixels: np.ndarray, images) -> tuple[np.ndarray, np.ndarray]:
    """Logits, zero where there is padding, and positions. One prefill, then a cached step for each further token."""
    longest = ids.shape[1] - STEPS
    mask = (np.arange(ids.shape[1]) >= longest - lengths[:, None]).astype(np.int64)
    inputs = {"input_ids": torch.from_numpy(ids[:, :longest]), "attention_mask": torch.from_numpy(mask[:, :longest])}
    types = (inputs["input_ids"] == IMAGE).int()
    ends = np.cumsum([np.prod(grid) for grid in grids])
    if len(images):
        chosen = np.concatenate([pixels[ends[index] - np.prod(grids[index]) : ends[index]] for index in images])
        grid = torch.tensor([grids[index] for index in images])
        inputs |= {"pixel_values": torch.from_numpy(scaled(chosen)), "image_grid_thw": grid, "mm_token_type_ids": types}
    prompt, deltas = model.model.get_rope_index(inputs["input_ids"], types, image_grid_thw=inputs.get("image_grid_thw"),
                                                attention_mask=inputs["attention_mask"])
    behind = lengths[:, None] + np.arange(STEPS) + deltas.numpy()
    positions = np.concatenate([prompt.numpy(), np.broadcast_to(behind, (3, *behind.shape))], axis=2)
    output = model(**inputs, use_cache=True)
    logits = [output.logits.numpy()]
    for at in range(longest, ids.shape[1]):
        output = model(input_ids=torch.from_numpy(ids[:, at : at + 1]), past_key_values=output.past_key_values,
                       attention_mask=torch.from_numpy(mask[:, : at + 1]),
                       position_ids=torch.from_numpy(positions[:, :, at : at + 1].copy()), use_cache=True)
        logits.append(output.logits.numpy())
    return np.concatenate(logits, axis=1) * mask[..., None].astype(np.float32), positions


if __name__ == "__main__":
    main()
