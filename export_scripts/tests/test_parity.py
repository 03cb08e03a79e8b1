"""Exported graphs against transformers' logits (golden) and against the numpy reference."""


import numpy as np
import pytest
from decoding import Decoder
from golden_cases import NAMES, PROMPT, load_case, relative_error
from reference import dequantized, qwen3_logits, rounded_to_half

from ortbench_export.errors import ExportError
from ortbench_export.options import FLAVOURS, ExportOptions

# Widths of this one are multiples of no block size; the plain flavour says so instead of exporting it.
RAGGED = "qwen3-ragged-untied"
# float16 holds 11 bits; a tiny model passes some dozen roundings from embedding to logits.
HALF_TOLERANCE = 2e-2
# accuracy_level 4 rounds activations to 8 bits within each block.
INT8_ACTIVATIONS_TOLERANCE = 6e-2


def reference_error(decoder: Decoder, case, weights) -> float:
    ids = case.arrays["ids"]
    return relative_error(decoder.run(ids, PROMPT)[0], qwen3_logits(case.config, weights, ids[0]))


@pytest.mark.parametrize("name", NAMES)
def test_numpy_reference_agrees_with_transformers(name):
    case = load_case(name)
    logits = qwen3_logits(case.config, case.weights, case.arrays["ids"][0])
    assert relative_error(logits, case.arrays["logits"][0]) < 1e-5


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_fp32_agrees_with_transformers(packages, name, flavour):
    case = load_case(name)
    decoder = Decoder(packages(name, ExportOptions("fp32", flavour)))
    assert relative_error(decoder.run(case.arrays["ids"], PROMPT), case.arrays["logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_fp32_agrees_on_a_padded_batch(packages, name, flavour):
    case = load_case(name)
    decoder = Decoder(packages(name, ExportOptions("fp32", flavour)))
    logits = decoder.run_padded(case.arrays["batch_ids"], case.arrays["batch_lengths"])
    assert relative_error(logits, case.arrays["batch_logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_fp16_stays_close(packages, name, flavour):
    case = load_case(name)
    decoder = Decoder(packages(name, ExportOptions("fp16", flavour)))
    assert reference_error(decoder, case, rounded_to_half(case.weights)) < HALF_TOLERANCE


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("name", NAMES)
def test_quantized_equals_the_dequantized_reference(packages, name, precision, bits, flavour):
    case = load_case(name)
    options = ExportOptions(precision, flavour, block_size=32, accuracy_level=0)
    if name == RAGGED and flavour == "plain":
        with pytest.raises(ExportError, match="multiple of the block size 32"):
            packages(name, options)
        return
    decoder = Decoder(packages(name, options), accuracy_level=0)
    assert reference_error(decoder, case, dequantized(case.weights, bits, 32)) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_block_size_128(packages, precision, bits, flavour):
    case = load_case("qwen3-wide-blocks")
    options = ExportOptions(precision, flavour, block_size=128, accuracy_level=0)
    decoder = Decoder(packages("qwen3-wide-blocks", options), accuracy_level=0)
    assert reference_error(decoder, case, dequantized(case.weights, bits, 128)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_int8_activations_stay_close(packages, name):
    case = load_case(name)
    decoder = Decoder(packages(name, ExportOptions("int4", "fused", accuracy_level=4)))
    assert reference_error(decoder, case, dequantized(case.weights, 4, 32)) < INT8_ACTIVATIONS_TOLERANCE


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_half_activations_with_quantized_weights(packages, precision):
    case = load_case("qwen3-wide-blocks")
    decoder = Decoder(packages("qwen3-wide-blocks", ExportOptions(precision, "fused", activations="fp16")))
    bits = {"int8": 8, "int4": 4}[precision]
    assert reference_error(decoder, case, dequantized(case.weights, bits, 32)) < INT8_ACTIVATIONS_TOLERANCE


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_selected_logits_are_rows_of_all_logits(packages, flavour):
    case = load_case(NAMES[0])
    ids = case.arrays["batch_ids"][:, -PROMPT:]
    everything = Decoder(packages(NAMES[0], ExportOptions("fp32", flavour, logits="all")))
    assert "logits_positions" not in everything.inputs
    selected = Decoder(packages(NAMES[0], ExportOptions("fp32", flavour)))
    wanted = np.array([[8, 0], [3, 3], [1, 7]])
    expected = np.take_along_axis(everything.run(ids, PROMPT), wanted[..., None], axis=1)
    np.testing.assert_allclose(selected.prefill(ids, wanted), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_one_buffer_as_past_and_present_gives_the_same_logits(packages, precision):
    case = load_case(NAMES[0])
    decoder = Decoder(packages(NAMES[0], ExportOptions(precision, "fused")))
    appended = decoder.run(case.arrays["ids"], PROMPT)
    np.testing.assert_array_equal(decoder.run_in_place(case.arrays["ids"], PROMPT, capacity=40), appended)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_prefill_in_chunks_gives_the_same_logits(packages, flavour):
    """GroupQueryAttention takes several tokens on top of a cache for a batch of one only."""
    ids = load_case(NAMES[0]).arrays["ids"]
    decoder = Decoder(packages(NAMES[0], ExportOptions("fp32", flavour)))
    whole = decoder.run(ids, ids.shape[1])
    decoder.reset()
    mask = np.ones_like(ids)
    positions = mask.cumsum(1) - 1
    chunks = [decoder.step(ids[:, start:stop], mask[:, :stop], positions[:, start:stop])
              for start, stop in ((0, 7), (7, 15), (15, 25))]
    assert relative_error(np.concatenate(chunks, axis=1), whole) < 1e-5
