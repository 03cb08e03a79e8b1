"""Mixtures of experts: exported graphs against transformers' logits (golden) and against the numpy reference."""

from functools import cache

import numpy as np
import pytest
from decoding import Decoder
from golden_cases import MIXTURES, PROMPT, load_case, relative_error
from reference import rounded_to_half
from reference_mixtures import ROUTER, dequantized, logits

from ortbench_export.errors import ExportError
from ortbench_export.options import FLAVOURS, ExportOptions

FORMS = [(name, form) for name in MIXTURES for form in (("expanded", "absorbed") if "glm" in name else (None,))]
# float16 holds 11 bits; a tiny model passes some dozen roundings from embedding to logits.
HALF_TOLERANCE = 2e-2
# Rounding activations to 8 bits within each block: accuracy_level 4, and QMoE's only kernel for 8-bit experts.
INT8_ACTIVATIONS_TOLERANCE = 6e-2


@cache
def expected(name: str, precision: str, absorbed: bool) -> np.ndarray:
    """The reference's logits of a case in a precision, `[1, length, vocab]`."""
    case = load_case(name)
    weights = case.weights
    if precision == "fp16":
        weights = rounded_to_half(weights) | {key: each for key, each in weights.items() if key.endswith(ROUTER)}
    elif precision != "fp32":
        weights = dequantized(weights, {"int8": 8, "int4": 4}[precision], 32, absorbed)
    return logits(case.config, weights, case.arrays["ids"][0])[0][None]


@pytest.mark.parametrize("name", MIXTURES)
def test_numpy_reference_agrees_with_transformers_and_routes_widely(name):
    case = load_case(name)
    result, routes = logits(case.config, case.weights, case.arrays["ids"][0])
    assert relative_error(result, case.arrays["logits"][0]) < 1e-5
    experts = case.config.get("num_local_experts") or case.config["n_routed_experts"]
    for chosen in routes:
        # Most experts have work, and tokens differ in theirs.
        assert len(np.unique(chosen)) >= 3 / 4 * experts
        assert len(np.unique(np.sort(chosen), axis=0)) > 3


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_fp32_agrees_with_transformers(packages, name, form, flavour):
    case = load_case(name)
    decoder = Decoder(packages(name, ExportOptions("fp32", flavour, attention=form)))
    assert relative_error(decoder.run(case.arrays["ids"], PROMPT), case.arrays["logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_fp32_agrees_on_a_padded_batch(packages, name, form, flavour):
    case = load_case(name)
    decoder = Decoder(packages(name, ExportOptions("fp32", flavour, attention=form)))
    result = decoder.run_padded(case.arrays["batch_ids"], case.arrays["batch_lengths"])
    assert relative_error(result, case.arrays["batch_logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_fp16_stays_close(packages, name, form, flavour):
    case = load_case(name)
    decoder = Decoder(packages(name, ExportOptions("fp16", flavour, attention=form)))
    result = decoder.run(case.arrays["ids"], PROMPT)
    assert relative_error(result, expected(name, "fp16", form == "absorbed")) < HALF_TOLERANCE


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_quantized_equals_the_dequantized_reference(packages, name, form, precision, flavour):
    case = load_case(name)
    options = ExportOptions(precision, flavour, accuracy_level=0, attention=form)
    result = Decoder(packages(name, options), accuracy_level=0).run(case.arrays["ids"], PROMPT)
    tolerance = INT8_ACTIVATIONS_TOLERANCE if (precision, flavour) == ("int8", "fused") else 1e-4
    assert relative_error(result, expected(name, precision, form == "absorbed")) < tolerance


def test_absorbed_attention_is_for_latent_attention_alone(packages):
    with pytest.raises(ExportError, match="has no latent attention"):
        packages("qwen3-moe-per-expert", ExportOptions(attention="absorbed"))


def test_quantized_experts_must_fill_their_blocks(packages):
    with pytest.raises(ExportError, match="multiple of the block size 128"):
        packages("qwen3-moe-per-expert", ExportOptions("int4", block_size=128))


@pytest.mark.parametrize(("form", "numbers"), [("expanded", 2 * 4 * (20 + 16)), ("absorbed", 2 * (32 + 8))])
def test_manifest_states_the_cache_of_each_form(packages, form, numbers):
    decoder = Decoder(packages("glm4-moe-lite-per-expert", ExportOptions("fp32", attention=form)))
    assert decoder.manifest["cache"] == {"dtype": "float32", "bytes_per_token": 4 * numbers, "update": "append"}
