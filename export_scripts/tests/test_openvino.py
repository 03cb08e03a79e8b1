"""The same parity in OpenVINO's execution provider; runs where onnxruntime-openvino is installed instead."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from decoding import Decoder
from golden_cases import NAMES, PROMPT, load_case, relative_error
from reference import dequantized, qwen3_logits

from ortbench_export.export import Destination, export_checkpoint
from ortbench_export.options import FLAVOURS, ExportOptions

PROVIDER = "OpenVINOExecutionProvider"
pytestmark = pytest.mark.skipif(PROVIDER not in onnxruntime.get_available_providers(),
                                reason="onnxruntime-openvino is not installed")


def decoder(tmp_path, name: str, options: ExportOptions, **session) -> Decoder:
    export_checkpoint(load_case(name).folder, Destination(tmp_path / "package"), options)
    return Decoder(tmp_path / "package", [PROVIDER], **session)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_fp32_agrees_with_transformers(tmp_path, name, flavour):
    case = load_case(name)
    run = decoder(tmp_path, name, ExportOptions("fp32", flavour))
    assert relative_error(run.run(case.arrays["ids"], PROMPT), case.arrays["logits"]) < 1e-4
    padded = run.run_padded(case.arrays["batch_ids"], case.arrays["batch_lengths"])
    assert relative_error(padded, case.arrays["batch_logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("name", [name for name in NAMES if "ragged" not in name])
def test_quantized_stays_close(tmp_path, name, precision, bits, flavour):
    case = load_case(name)
    run = decoder(tmp_path, name, ExportOptions(precision, flavour, accuracy_level=0), accuracy_level=0)
    expected = qwen3_logits(case.config, dequantized(case.weights, bits, 32), case.arrays["ids"][0])
    # OpenVINO quantizes activations to 8 bits, in groups, where it sees 8-bit weights behind DequantizeLinear.
    tolerance = 6e-2 if (precision, flavour) == ("int8", "plain") else 1e-3
    assert relative_error(run.run(case.arrays["ids"], PROMPT)[0], expected) < tolerance


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_plain_graphs_run_in_openvino_alone(tmp_path, precision):
    """One subgraph, nothing left for the CPU provider."""
    case = load_case(NAMES[0])
    run = decoder(tmp_path, NAMES[0], ExportOptions(precision, "plain"), profile=tmp_path / "profile")
    run.run(case.arrays["ids"], PROMPT)
    events = json.loads(Path(run.session.end_profiling()).read_text())
    providers = Counter(event["args"]["provider"] for event in events
                        if event["cat"] == "Node" and event["name"].endswith("kernel_time"))
    assert set(providers) == {PROVIDER}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_fp16_stays_close(tmp_path, flavour):
    case = load_case(NAMES[0])
    run = decoder(tmp_path, NAMES[0], ExportOptions("fp16", flavour))
    logits = run.run(case.arrays["ids"], PROMPT)
    assert np.isfinite(logits).all()
    assert relative_error(logits, case.arrays["logits"]) < 3e-2
