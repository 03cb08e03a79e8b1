"""Mixtures in OpenVINO's execution provider; runs where onnxruntime-openvino is installed instead."""

import numpy as np
import onnxruntime
import pytest
from decoding import Decoder
from golden_cases import PROMPT, load_case, relative_error
from test_mixtures import FORMS, HALF_TOLERANCE, INT8_ACTIVATIONS_TOLERANCE, expected

from ortbench_export.export import Destination, export_checkpoint
from ortbench_export.options import ExportOptions

PROVIDER = "OpenVINOExecutionProvider"
pytestmark = pytest.mark.skipif(PROVIDER not in onnxruntime.get_available_providers(),
                                reason="onnxruntime-openvino is not installed")


# Its ONNX Runtime (1.24) does not know QMoE's `accuracy_level`, so fused int8 and int4 packages do not load. In int8 it
# quantizes activations, which sends single tokens to other experts: most positions must agree, not all.
@pytest.mark.parametrize(("precision", "flavour", "tolerance"), [
    ("fp32", "fused", 1e-4), ("fp32", "plain", 1e-4), ("fp16", "fused", HALF_TOLERANCE),
    ("fp16", "plain", HALF_TOLERANCE), ("int8", "plain", INT8_ACTIVATIONS_TOLERANCE), ("int4", "plain", 1e-3),
])
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_agrees_with_the_reference(tmp_path, name, form, precision, flavour, tolerance):
    case = load_case(name)
    options = ExportOptions(precision, flavour, accuracy_level=0, attention=form)
    export_checkpoint(case.folder, Destination(tmp_path / "package"), options)
    decoder = Decoder(tmp_path / "package", [PROVIDER], accuracy_level=0)
    result = decoder.run(case.arrays["ids"], PROMPT)
    reference = expected(name, precision, form == "absorbed")
    errors = np.abs(result - reference).max(-1) / np.abs(reference).max()
    assert (np.median(errors) if precision == "int8" else errors.max()) < tolerance
    padded = decoder.run_padded(case.arrays["batch_ids"], case.arrays["batch_lengths"])
    assert np.isfinite(padded).all()
    if precision == "fp32":
        assert relative_error(padded, case.arrays["batch_logits"]) < tolerance
