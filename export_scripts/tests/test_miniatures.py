"""The trained text miniatures: exported graphs write the tokens that transformers writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from decoding import Decoder

from ortbench_export.export import Destination, export_checkpoint
from ortbench_export.options import ATTENTION_FORMS, FLAVOURS, ExportOptions

MODELS = Path(__file__).parents[2] / "models"
# Prompts of a model that takes images stand elsewhere: the runner's tests show it pictures.
NAMES = sorted(path.parents[1].name for path in MODELS.glob("*/golden/greedy.json")
               if not (path.parents[1] / "preprocessor_config.json").is_file())
FORMS = [(name, form) for name in NAMES for form in (ATTENTION_FORMS if name.startswith("glm") else (None,))]


def greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens after a prompt, one by one, up to an end token or `count`."""
    decoder.reset()
    made, ids = [], prompt
    while len(made) < count:
        total = len(prompt) + len(made)
        positions = np.arange(total - len(ids), total)[None]
        logits = decoder.step(np.array([ids]), np.ones((1, total), np.int64), positions, np.array([[len(ids) - 1]]))
        ids = [int(logits[0, -1].argmax())]
        if ids[0] in decoder.manifest["tokens"]["eos"]:
            break
        made += ids
    return made


def test_there_is_a_miniature_of_each_text_architecture():
    assert {"qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny"} <= set(NAMES)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_fp32_writes_what_transformers_writes(tmp_path, name, form, flavour):
    export_checkpoint(MODELS / name, Destination(tmp_path / "package"), ExportOptions("fp32", flavour, attention=form))
    decoder = Decoder(tmp_path / "package")
    for case in json.loads((MODELS / name / "golden" / "greedy.json").read_text()):
        made = greedy(decoder, case["prompt_ids"], 32)
        assert made == case["generated_ids"], case["prompt"]
        assert (len(made) < 32) == case["stopped"]
