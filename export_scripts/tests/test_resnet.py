"""The residual networks are those of torchvision: as many weights, the same outputs' shape, finite numbers."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from networks.resnet import main, resnet


@pytest.mark.parametrize(("depth", "trained"), [(18, 11_689_512), (50, 25_557_032)])
def test_weights_are_as_many_as_torchvisions(depth, trained):
    constants = resnet(depth).graph.initializer
    of_training = [tensor for tensor in constants if "running_" not in tensor.name]
    assert sum(int(np.prod(tensor.dims)) for tensor in of_training) == trained


def test_it_runs_on_any_batch_and_size_and_is_drawn_from_its_seed(tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert main(["--depth", "18", "--seed", str(seed), "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    session = ort.InferenceSession(tmp_path / "a", providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).random((3, 3, 64, 96), dtype=np.float32)
    logits = session.run(None, {"image": image})[0]
    assert logits.shape == (3, 1000)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01
    # Each image by itself.
    assert np.allclose(logits[1:2], session.run(None, {"image": image[1:2]})[0], rtol=1e-3, atol=1e-4)


def test_constants_that_nothing_scales_are_ones():
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in resnet(18).graph.initializer}
    assert (constants["layer3.0.downsample.1.running_var"] == 1).all()
    assert constants["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
