"""Random weights: reproducible, finite, and alive enough to benchmark."""

import json

import numpy as np
import pytest
from decoding import Decoder
from synthetic import qwen3_config

from ortbench_export.export import Destination, export_random
from ortbench_export.options import FLAVOURS, PRECISIONS, ExportOptions


@pytest.fixture
def random_package(tmp_path):
    config = qwen3_config(hidden_size=128, intermediate_size=256, num_hidden_layers=4, vocab_size=1000)
    (tmp_path / "shape.json").write_text(json.dumps(config))

    def export(seed: int, options: ExportOptions):
        output = tmp_path / f"{seed}-{options.precision}"
        export_random(tmp_path / "shape.json", seed, Destination(output, force=True), options)
        return output

    return export


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_finite_and_follow_the_tokens(random_package, precision, flavour):
    ids = np.random.default_rng(0).integers(0, 1000, (1, 32))
    logits = Decoder(random_package(1, ExportOptions(precision, flavour))).run(ids, 24)[0]
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 5
    assert len(set(logits.argmax(-1))) > 8


def test_the_seed_decides_the_bytes(random_package):
    options = ExportOptions("int4")
    first, again, other = ((random_package(seed, options) / "model.onnx.data").read_bytes() for seed in (1, 1, 2))
    assert first == again
    assert first != other
