"""onnxruntime-genai loads fused packages as they are and decodes what transformers, and ONNX Runtime alone, decode."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from decoding import Decoder
from golden_cases import GOLDEN
from synthetic import qwen3_config, write_sparse_checkpoint

from ortbench_export.export import Destination, export_checkpoint
from ortbench_export.options import ExportOptions

GREEDY = json.loads((TINY / "golden" / "greedy.json").read_text())


@pytest.fixture(scope="session")
def genai():
    return pytest.importorskip("onnxruntime_genai")


def export(checkpoint: Path, output: Path, options: ExportOptions) -> Path:
    export_checkpoint(checkpoint, Destination(output), options)
    return output


def decode(genai, model, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Greedily decoded tokens, without the end token, of prompts that are equally long."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompts[0]) + count, batch_size=len(prompts))
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompts))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row).tolist()[len(prompts[0]):] for row in range(len(prompts))]


@pytest.mark.parametrize("logits", ["selected", "all"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_trained_miniature_decodes_as_in_transformers(genai, tmp_path, precision, logits):
    package = export(TINY, tmp_path / "package", ExportOptions(precision, logits=logits))
    assert (package / "genai.onnx").is_file() == (logits == "selected")
    model = genai.Model(str(package))
    tokenizer = genai.Tokenizer(model)
    for case in GREEDY:
        text = case["prompt"]
        if case["chat"]:
            text = tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": text}]),
                                                 add_generation_prompt=True)
        assert tokenizer.encode(text).tolist() == case["prompt_ids"]
        # The quantized miniature says the same as the original where the original is sure of itself.
        if precision == "fp32" or case["smallest_gap"] > 1:
            made = decode(genai, model, [case["prompt_ids"]], 32)
            assert made == [case["generated_ids"]]


def test_a_batch_decodes_as_its_rows_do(genai, tmp_path):
    model = genai.Model(str(export(TINY, tmp_path / "package", ExportOptions("int4"))))
    prompts = [case["prompt_ids"][-5:] for case in GREEDY[:3]]
    assert decode(genai, model, prompts, 8) == [decode(genai, model, [each], 8)[0] for each in prompts]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("checkpoint", [TINY, GOLDEN / "qwen3-moe-per-expert", GOLDEN / "qwen3-moe-sparse-steps"],
                         ids=lambda folder: folder.name)
def test_tokens_are_those_of_onnxruntime_alone(genai, tmp_path, checkpoint, precision):
    package = export(checkpoint, tmp_path / "package", ExportOptions(precision))
    tokens, decoder = [3, 1, 4, 1, 5, 9, 2, 6], Decoder(package)
    made = decode(genai, genai.Model(str(package)), [tokens], 8)[0]
    assert len(made) > 2
    expected = list(tokens)
    for _ in made:
        expected.append(int(decoder.run(np.array([expected]), len(expected))[0, -1].argmax()))
    assert made == expected[len(tokens):]


def test_only_what_it_can_run_is_written_for_it(tmp_path):
    plain = export(GOLDEN / "qwen3-wide-blocks", tmp_path / "plain", ExportOptions(flavour="plain"))
    latent = export(GOLDEN / "glm4-moe-lite-groups", tmp_path / "latent", ExportOptions())
    for package in (plain, latent):
        names = {path.name for path in package.iterdir()}
        assert not names & {"genai.onnx", "genai_config.json", "tokenizer_config.json"}


def test_the_config_says_how_to_sample_and_how_long_at_most(tmp_path):
    write_sparse_checkpoint(tmp_path / "checkpoint", qwen3_config(max_position_embeddings=40_960))
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 20, "pad_token_id": None}
    (tmp_path / "checkpoint" / "generation_config.json").write_text(json.dumps(generation))
    package = export(tmp_path / "checkpoint", tmp_path / "package", ExportOptions("int4"))
    config = json.loads((package / "genai_config.json").read_text())
    assert config["search"] == {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_length": 4096,
                                "past_present_share_buffer": True}
    assert config["model"]["context_length"] == 40_960
    assert (config["model"]["eos_token_id"], config["model"]["pad_token_id"]) == ([2], 2)
