"""Qwen3-VL in OpenVINO's execution provider; runs where onnxruntime-openvino is installed instead."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from decoding import Decoder, Vision
from golden_cases import IMAGES, load_case, relative_error
from reference_images import logits as reference_logits
from test_images import BITS, HALF_TOLERANCE, expected, prompt, shown

from ortbench_export.options import FLAVOURS, PRECISIONS, ExportOptions

PROVIDER = "OpenVINOExecutionProvider"
pytestmark = pytest.mark.skipif(PROVIDER not in onnxruntime.get_available_providers(),
                                reason="onnxruntime-openvino is not installed")


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", IMAGES)
def test_agrees_with_the_reference(packages, name, precision, flavour):
    case, arrays = load_case(name), load_case(name).arrays
    tolerance = HALF_TOLERANCE if precision == "fp16" else 1e-4
    if flavour == "plain" and precision in BITS:
        # OpenVINO quantizes activations to 8 bits, in groups, where it sees 8-bit weights behind DequantizeLinear: the
        # tower's are that also in int4.
        tolerance = 6e-2
    package = packages(name, ExportOptions(precision, flavour, accuracy_level=0))
    vision = Vision(package, providers=[PROVIDER], accuracy_level=0)
    decoder = Decoder(package, [PROVIDER], accuracy_level=0)
    features, logits = expected(name, precision)
    found = shown(vision, case, range(3))
    assert relative_error(found, features) < tolerance
    tokens = (arrays["ids"] == case.config["image_token_id"]).sum()
    result = decoder.run(arrays["ids"], prompt(case), arrays["positions"], found[:tokens])
    assert relative_error(result, logits) < tolerance
    padded = decoder.run_padded(arrays["batch_ids"], arrays["batch_lengths"], arrays["batch_positions"],
                                shown(vision, case, arrays["batch_images"]))
    assert np.isfinite(padded).all()
    if precision == "fp32":
        assert relative_error(padded, arrays["batch_logits"]) < tolerance
        assert relative_error(decoder.run(arrays["text_ids"], 9), arrays["text_logits"]) < tolerance


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_generated_image_token_is_a_token_like_others(packages, flavour):
    case = load_case(IMAGES[0])
    ids, found, start = case.arrays["ids"].copy(), case.arrays["features"], prompt(case)
    found = found[: (ids == case.config["image_token_id"]).sum()]
    ids[0, start + 3 : start + 5] = case.config["image_token_id"]
    decoder = Decoder(packages(IMAGES[0], ExportOptions("fp32", flavour)), [PROVIDER])
    result = decoder.run(ids, start, case.arrays["positions"], found)[0]
    reference = reference_logits(case.config, case.weights, ids[0], case.arrays["positions"][:, 0], found)
    assert relative_error(result, reference) < 1e-4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_plain_graphs_run_in_openvino_alone(packages, tmp_path, precision):
    """One subgraph each, nothing left for the CPU provider."""
    case = load_case(IMAGES[0])
    package = packages(IMAGES[0], ExportOptions(precision, "plain"))
    vision = Vision(package, providers=[PROVIDER], profile=tmp_path / "vision")
    decoder = Decoder(package, [PROVIDER], profile=tmp_path / "decoder")
    decoder.run(case.arrays["ids"], prompt(case), case.arrays["positions"], shown(vision, case))
    for model in (vision, decoder):
        events = json.loads(Path(model.session.end_profiling()).read_text())
        providers = Counter(event["args"]["provider"] for event in events
                            if event["cat"] == "Node" and event["name"].endswith("kernel_time"))
        assert set(providers) == {PROVIDER}
