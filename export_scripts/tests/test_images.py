"""Qwen3-VL: exported towers and decoders against transformers (golden) and against the numpy reference."""

from functools import cache

import numpy as np
import pytest
from decoding import Decoder, Vision
from golden_cases import IMAGES, load_case, relative_error
from reference import rounded_to_half
from reference_images import dequantized, features, logits, scaled

from ortbench_export.options import FLAVOURS, ExportOptions

# float16 holds 11 bits; a tiny model passes some dozen roundings from patches to logits.
HALF_TOLERANCE = 2e-2
# accuracy_level 4 rounds activations to 8 bits within each block, in the tower and in the decoder.
INT8_ACTIVATIONS_TOLERANCE = 6e-2
BITS = {"int8": 8, "int4": 4}


def images(case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scaled patches and grid of each image."""
    ends = case.arrays["grids"].prod(1).cumsum()
    return [(scaled(case.arrays["pixels"][end - grid.prod() : end]), grid)
            for grid, end in zip(case.arrays["grids"], ends, strict=True)]


def shown(vision: Vision, case, which=(0, 1)) -> np.ndarray:
    """What the tower makes of some images, in their order in a prompt."""
    every = images(case)
    return np.concatenate([vision.features(every[index][0], every[index][1][None]) for index in which])


def run(package, case, **session) -> np.ndarray:
    """Logits of the sequence with two images: tower, prefill and cached steps."""
    arrays = case.arrays
    return Decoder(package, **session).run(arrays["ids"], prompt(case), arrays["positions"],
                                           shown(Vision(package, **session), case))


def prompt(case) -> int:
    return case.arrays["ids"].shape[1] - 16


@cache
def expected(name: str, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """The reference's features of all images, and its logits of the sequence with two of them."""
    case = load_case(name)
    weights = case.weights
    if precision == "fp16":
        weights = rounded_to_half(weights)
    elif precision != "fp32":
        weights = dequantized(weights, BITS[precision], 8, 32)
    found = [features(case.config, weights, *image) for image in images(case)]
    arrays = case.arrays
    return np.concatenate(found), logits(case.config, weights, arrays["ids"][0], arrays["positions"][:, 0],
                                         np.concatenate(found[:2]))[None]


@pytest.mark.parametrize("name", IMAGES)
def test_numpy_reference_agrees_with_transformers(name):
    case = load_case(name)
    found, result = expected(name, "fp32")
    assert relative_error(found, case.arrays["features"]) < 1e-5
    assert relative_error(result, case.arrays["logits"]) < 1e-5


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", IMAGES)
def test_fp32_agrees_with_transformers(packages, name, flavour):
    case = load_case(name)
    package = packages(name, ExportOptions("fp32", flavour))
    assert relative_error(shown(Vision(package), case, range(3)), case.arrays["features"]) < 1e-4
    assert relative_error(run(package, case), case.arrays["logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", IMAGES)
def test_fp32_agrees_on_text_alone(packages, name, flavour):
    arrays = load_case(name).arrays
    decoder = Decoder(packages(name, ExportOptions("fp32", flavour)))
    result = decoder.run(arrays["text_ids"], arrays["text_ids"].shape[1] - 16)
    assert relative_error(result, arrays["text_logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", IMAGES)
def test_fp32_agrees_on_a_padded_batch(packages, name, flavour):
    """Rows that show one image, none, and two."""
    case = load_case(name)
    arrays, package = case.arrays, packages(name, ExportOptions("fp32", flavour))
    result = Decoder(package).run_padded(arrays["batch_ids"], arrays["batch_lengths"], arrays["batch_positions"],
                                         shown(Vision(package), case, arrays["batch_images"]))
    assert relative_error(result, arrays["batch_logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", IMAGES)
def test_fp16_stays_close(packages, name, flavour):
    case = load_case(name)
    found, result = expected(name, "fp16")
    package = packages(name, ExportOptions("fp16", flavour))
    assert relative_error(shown(Vision(package), case, range(3)), found) < HALF_TOLERANCE
    assert relative_error(run(package, case), result) < HALF_TOLERANCE


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", IMAGES)
def test_quantized_equals_the_dequantized_reference(packages, name, precision, flavour):
    """Also in int4 the tower's matrices have 8 bits."""
    case = load_case(name)
    found, result = expected(name, precision)
    package = packages(name, ExportOptions(precision, flavour, accuracy_level=0))
    assert relative_error(shown(Vision(package, accuracy_level=0), case, range(3)), found) < 1e-4
    assert relative_error(run(package, case, accuracy_level=0), result) < 1e-4


@pytest.mark.parametrize("name", IMAGES)
def test_int8_activations_stay_close(packages, name):
    package = packages(name, ExportOptions("int4", "fused", accuracy_level=4))
    assert relative_error(run(package, load_case(name)), expected(name, "int4")[1]) < INT8_ACTIVATIONS_TOLERANCE


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_one_buffer_as_past_and_present_gives_the_same_logits(packages, precision):
    case = load_case(IMAGES[0])
    arrays, package = case.arrays, packages(IMAGES[0], ExportOptions(precision, "fused"))
    result = Decoder(package).run_in_place(arrays["ids"], prompt(case), 40, arrays["positions"],
                                           shown(Vision(package), case))
    np.testing.assert_array_equal(result, run(package, case))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_prefill_in_chunks_may_cut_an_image(packages, flavour):
    """Each chunk takes the features of its own image tokens."""
    case = load_case(IMAGES[0])
    arrays, package = case.arrays, packages(IMAGES[0], ExportOptions("fp32", flavour))
    found, ids, positions = shown(Vision(package), case), arrays["ids"], arrays["positions"]
    image, decoder, result = ids[0] == case.config["image_token_id"], Decoder(package), []
    for start, stop in ((0, 6), (6, prompt(case)), (prompt(case), ids.shape[1])):
        rows = found[image[:start].sum() : image[:stop].sum()]
        result.append(decoder.step(ids[:, start:stop], np.ones_like(ids[:, :stop]), positions[..., start:stop],
                                   features=rows))
    assert 0 < image[:6].sum() < image.sum()
    assert relative_error(np.concatenate(result, axis=1), arrays["logits"]) < 1e-4


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_generated_image_token_is_a_token_like_others(packages, flavour):
    """With an image before it, and without."""
    case = load_case(IMAGES[0])
    arrays, decoder = case.arrays, Decoder(packages(IMAGES[0], ExportOptions("fp32", flavour)))
    found = arrays["features"][: (arrays["ids"] == case.config["image_token_id"]).sum()]
    for ids, positions, rows in ((arrays["ids"].copy(), arrays["positions"], found),
                                 (arrays["text_ids"].copy(), None, None)):
        start = ids.shape[1] - 16
        ids[0, start + 3 : start + 5] = case.config["image_token_id"]
        result = decoder.run(ids, start, positions, rows)[0]
        places = np.tile(np.arange(ids.shape[1]), (3, 1)) if positions is None else positions[:, 0]
        assert relative_error(result, logits(case.config, case.weights, ids[0], places, rows)) < 1e-4


def test_an_image_token_beyond_the_features_is_an_error(packages):
    case = load_case(IMAGES[0])
    decoder = Decoder(packages(IMAGES[0], ExportOptions("fp32")))
    found = case.arrays["features"]
    ids = np.array([[case.config["image_token_id"]] * 3])
    decoder.step(ids, np.ones_like(ids), np.arange(3)[None], features=found[:3])
    decoder.reset()
    with pytest.raises(Exception, match="out of data bounds"):
        decoder.step(ids, np.ones_like(ids), np.arange(3)[None], features=found[:2])
