"""What a package of a model of images promises, how its random weights behave, and what is refused."""

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from decoding import Decoder, Vision
from golden_cases import GOLDEN, IMAGES, load_case, read_safetensors, write_safetensors

import ortbench_export
from ortbench_export import cli
from ortbench_export.export import Destination, export_random
from ortbench_export.options import FLAVOURS, PRECISIONS, ExportOptions

ROOT = Path(ortbench_export.__file__).parent
SCHEMA = json.loads((ROOT / "manifest.schema.json").read_text())
NAME = "qwen3-vl-grouped-tied"


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("precision", "vision"), [("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8"),
                                                   ("int4", "int8")])
def test_manifest_follows_its_schema_and_names_both_graphs(packages, precision, vision, flavour):
    package = packages(NAME, ExportOptions(precision, flavour))
    manifest = json.loads((package / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["precision"]["vision"] == vision
    assert [graph["role"] for graph in manifest["graphs"]] == ["decoder", "vision"]
    assert {file["path"] for file in manifest["files"]} == \
        {"model.onnx", "model.onnx.data", "vision.onnx", "vision.onnx.data"}
    for graph in manifest["graphs"]:
        model = onnx.load(package / graph["file"], load_external_data=False)
        assert [value.name for value in model.graph.input] == [port["name"] for port in graph["inputs"]]
        assert [value.name for value in model.graph.output] == [port["name"] for port in graph["outputs"]]
        assert {opset.domain: opset.version for opset in model.opset_import} == manifest["opsets"]


def test_manifest_describes_images_and_their_roles(packages):
    manifest = json.loads((packages(NAME, ExportOptions("fp32")) / "manifest.json").read_text())
    tower = sum(value.size for name, value in load_case(NAME).weights.items() if name.startswith("model.visual."))
    assert manifest["image"] == {
        "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 64, "max_pixels": 4096,
        "mean": [0.5] * 3, "std": [0.5] * 3, "resample": "bicubic", "image_token": 7, "vision_start": 8,
        "vision_end": 9, "feature_width": 3 * 64, "deepstack": 2, "layers": 3, "hidden_size": 32,
        "intermediate_size": 64, "heads": 2, "parameters": tower,
    }
    assert manifest["tokens"] == {"bos": 0, "pad": None, "eos": [1, 2]}
    decoder, vision = ({port["role"]: port for port in graph["inputs"] + graph["outputs"]}
                       for graph in manifest["graphs"])
    assert decoder["mrope_position_ids"]["dims"] == [3, "batch", "sequence"]
    assert decoder["image_features"]["dims"] == vision["image_features"]["dims"] == ["image_tokens", 192]
    assert vision["pixel_values"]["dims"] == ["patches", 96]
    assert vision["image_grid"]["dims"] == [1, 3]


@pytest.mark.parametrize("name", IMAGES)
def test_parameters_are_those_of_the_checkpoint(packages, name):
    manifest = json.loads((packages(name, ExportOptions("fp32")) / "manifest.json").read_text())
    weights = load_case(name).weights
    total = sum(value.size for value in weights.values())
    text = total - manifest["image"]["parameters"]
    untied = weights["lm_head.weight"].size if "lm_head.weight" in weights else 0
    assert manifest["parameters"] == {"total": total, "active_per_token": text - untied}
    # Of the tower a decoded token reads nothing.
    assert manifest["bytes_read_per_token"]["weights"] < 4 * text + 4096


def test_plain_graphs_hold_standard_operators_alone(packages):
    for precision in PRECISIONS:
        package = packages(NAME, ExportOptions(precision, "plain"))
        for file in ("model.onnx", "vision.onnx"):
            assert {node.domain for node in onnx.load(package / file).graph.node} == {""}
            onnx.checker.check_model(package / file, full_check=True)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_random_weights_follow_tokens_and_images(tmp_path, precision, flavour):
    config = load_case(NAME).config
    config["text_config"] |= {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 1000}
    config["vision_config"] |= {"hidden_size": 64, "num_heads": 4, "out_hidden_size": 128}
    (tmp_path / "shape.json").write_text(json.dumps(config))
    export_random(tmp_path / "shape.json", 1, Destination(tmp_path / "package"), ExportOptions(precision, flavour))
    generator = np.random.default_rng(0)
    vision, decoder = Vision(tmp_path / "package"), Decoder(tmp_path / "package")
    first, second = (vision.features(generator.uniform(-1, 1, (24, 96)).astype(np.float32), np.array([[1, 4, 6]]))
                     for _ in range(2))
    assert np.isfinite(first).all()
    ids = generator.integers(11, 1000, (1, 32))
    ids[0, 4:10] = config["image_token_id"]
    results = [decoder.run(ids, 24, features=features)[0] for features in (first, second)]
    for result in results:
        assert np.isfinite(result).all()
        assert 0.5 < result.std() < 5
        assert len(set(result.argmax(-1))) > 8
    # Another picture, other words; and what stands before it knows nothing of it.
    assert np.abs(results[0] - results[1])[4:].max() > 0.1
    np.testing.assert_array_equal(results[0][:4], results[1][:4])
    # No file beside the configuration says how images are scaled: as published.
    assert decoder.manifest["image"]["min_pixels"] == 65_536


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a golden checkpoint that may be changed."""
    shutil.copytree(GOLDEN / NAME, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def refused(folder: Path, capsys, *arguments: str) -> str:
    code = cli.main(["export", str(folder), "--output", str(folder.parent / "package"), *arguments])
    message = capsys.readouterr().err
    assert code == 2, message
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint"]
    return message


@pytest.mark.parametrize(("section", "changes", "expected"), [
    ("text_config", {"hidden_size": None}, "lacks `text_config.hidden_size`"),
    ("text_config", {"rope_parameters": None, "rope_theta": 1e4}, "lacks `text_config.rope_scaling`"),
    ("text_config", {"hidden_act": "gelu"}, '`text_config.hidden_act` is "gelu"'),
    ("vision_config", {"depth": 0}, "`vision_config.depth` must be a positive integer"),
    ("vision_config", {"hidden_act": "silu"}, '`vision_config.hidden_act` is "silu"'),
    ("vision_config", {"in_channels": 4}, "`vision_config.in_channels` is 4"),
    ("vision_config", {"out_hidden_size": 32}, "`vision_config.out_hidden_size` is 32"),
    ("vision_config", {"num_heads": 3}, "`vision_config.hidden_size` 32 does not divide into 3 heads"),
    ("vision_config", {"num_position_embeddings": 17}, "17 is not the square of a side"),
    ("vision_config", {"deepstack_visual_indexes": [2, 0]}, "[2, 0] do not ascend within 3 layers"),
    ("vision_config", {"deepstack_visual_indexes": [3]}, "[3] do not ascend within 3 layers"),
    ("vision_config", {"rope_parameters": {"rope_type": "yarn"}}, 'rope_parameters.rope_type` is "yarn"'),
    (None, {"image_token_id": 128}, "`image_token_id` is 128, no token of the 128 there are"),
    (None, {"vision_config": [1]}, "`vision_config` must be an object"),
])
def test_config_that_cannot_be_exported(checkpoint, capsys, section, changes, expected):
    config = json.loads((checkpoint / "config.json").read_text())
    (config[section] if section else config).update(changes)
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert expected in refused(checkpoint, capsys)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"mrope_section": [4, 2, 1]}, "`text_config.rope_parameters.mrope_section` [4, 2, 1] does not divide the 8"),
    ({"mrope_section": None}, "mrope_section` [] does not divide"),
    ({"mrope_interleaved": False}, "`text_config.rope_parameters.mrope_interleaved` is false"),
    ({"rope_type": "yarn"}, "`text_config.rope_parameters` asks for rotary scaling `yarn`"),
])
def test_positions_that_cannot_be_exported(checkpoint, capsys, changes, expected):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["rope_parameters"].update(changes)
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert expected in refused(checkpoint, capsys)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"do_normalize": False}, "`do_normalize` is false"),
    ({"resample": 2}, "`resample` is 2"),
    ({"patch_size": 16}, "`patch_size` is 16; this exporter handles 4 only"),
    ({"size": {"height": 4}}, "lacks `size.shortest_edge`"),
    ({"image_mean": [0.5]}, "`image_mean` must be a list of 3 numbers"),
    ({"min_pixels": 5000}, "cannot be met by any image"),
])
def test_scaling_of_images_that_the_runner_does_not_know(checkpoint, capsys, changes, expected):
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    message = refused(checkpoint, capsys)
    assert str(path) in message
    assert expected in message


def test_scaling_of_images_is_read_from_either_file(checkpoint, capsys):
    path = checkpoint / "preprocessor_config.json"
    values = json.loads(path.read_text()) | {"min_pixels": 256, "max_pixels": 1024}
    path.unlink()
    assert "holds no `preprocessor_config.json`" in refused(checkpoint, capsys)
    (checkpoint / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    output = checkpoint.parent / "package"
    assert cli.main(["export", str(checkpoint), "--output", str(output)]) == 0
    image = json.loads((output / "manifest.json").read_text())["image"]
    assert (image["min_pixels"], image["max_pixels"]) == (256, 1024)


@pytest.mark.parametrize(("change", "expected"), [
    (lambda weights: weights.pop("model.visual.blocks.1.attn.qkv.bias"),
     "lacks tensor `model.visual.blocks.1.attn.qkv.bias`"),
    (lambda weights: weights.update({"model.visual.blocks.3.norm1.bias": np.zeros(32, np.float32)}),
     "does not know: `model.visual.blocks.3.norm1.bias`"),
    (lambda weights: weights.update({"model.visual.patch_embed.proj.weight": np.zeros((32, 96), np.float32)}),
     "has shape [32, 96], not [32, 3, 2, 4, 4]"),
])
def test_tensors_of_the_tower_are_checked(checkpoint, capsys, change, expected):
    file = checkpoint / "model.safetensors"
    weights = read_safetensors(file)
    change(weights)
    write_safetensors(file, weights)
    assert expected in refused(checkpoint, capsys)
