"""The command line as its users meet it: one message, exit code 2, nothing left behind by what was refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from golden_cases import GOLDEN
from synthetic import qwen3_config, qwen3_shapes, write_sparse_checkpoint

from ortbench_export import cli, package

SCRIPTS = Path(cli.__file__).parents[1]


@pytest.fixture
def refused(tmp_path, capsys):
    """Run an export that must be refused: its message. The output's parent must hold nothing afterwards."""

    def run(*arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        code = cli.main(["export", *map(str, arguments), "--output", str(tmp_path / "package")])
        message = capsys.readouterr().err
        assert code == 2, message
        assert message.startswith("error: ")
        assert "Traceback" not in message
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return run


@pytest.fixture
def checkpoint(tmp_path):
    """Write a synthetic checkpoint whose config or tensors were changed."""

    def write(shapes=lambda shapes: shapes, **changes) -> Path:
        config = qwen3_config(**changes)
        write_sparse_checkpoint(tmp_path / "checkpoint", config, shapes(qwen3_shapes(config)))
        return tmp_path / "checkpoint"

    return write


def test_architectures_lists_those_known(capsys):
    assert cli.main(["architectures"]) == 0
    assert "Qwen3ForCausalLM\t" in capsys.readouterr().out


def test_module_runs_and_writes_a_package(tmp_path):
    command = [sys.executable, "-m", "ortbench_export", "export", GOLDEN / "qwen3-wide-blocks", "--output",
               tmp_path / "package", "--precision", "int4"]
    subprocess.run(command, cwd=SCRIPTS, check=True)
    assert (tmp_path / "package" / "manifest.json").is_file()


def test_no_checkpoint(refused, tmp_path):
    assert f"{tmp_path / 'nowhere' / 'config.json'} does not exist" in refused(tmp_path / "nowhere")


def test_config_without_weights(refused, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(qwen3_config()))
    assert "holds no safetensors file" in refused(tmp_path)


def test_unknown_architecture_lists_those_known(refused, checkpoint):
    message = refused(checkpoint(architectures=["LlamaForCausalLM"]))
    assert "`LlamaForCausalLM` is not known" in message
    assert "known architectures: Glm4MoeLiteForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM" in message


def test_config_that_is_not_json(refused, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in refused(tmp_path)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"hidden_size": None}, "lacks `hidden_size`"),
    ({"num_hidden_layers": 0}, "`num_hidden_layers` must be a positive integer, not 0"),
    ({"hidden_act": "gelu"}, '`hidden_act` is "gelu"'),
    ({"use_sliding_window": True}, "`use_sliding_window` is true"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rotary scaling `yarn`"),
    ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
    ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5; this exporter handles 1.0 or null only"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "`rope_parameters.partial_rotary_factor`"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, '`layer_types` is ["full_attention", "sliding_atten'),
    ({"rope_scaling": "yarn"}, "config.json: `rope_scaling` must be an object, not 'yarn'"),
    ({"rms_norm_eps": float("nan")}, "config.json: `rms_norm_eps` must be a positive number, not nan"),
    ({"rope_theta": float("inf")}, "config.json: `rope_theta` must be a positive number, not inf"),
    ({"eos_token_id": "</s>"}, "config.json: `eos_token_id` must be a token id or a list of them, not '</s>'"),
    ({"eos_token_id": [2, None]}, "`eos_token_id` must be a token id or a list of them, not [2, None]"),
    ({"bos_token_id": 1.5}, "`bos_token_id` must be a token id"),
    ({"text_config": [1]}, "`text_config` must be an object"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantized already (`awq`)"),
    ({"quantization_config": "fp8"}, "quantized already (`fp8`)"),
])
def test_config_that_cannot_be_exported(refused, checkpoint, tmp_path, changes, expected):
    folder = checkpoint()
    (folder / "config.json").write_text(json.dumps(qwen3_config(**changes)))
    assert expected in refused(folder)


def test_head_dim_that_no_fused_kernel_takes(refused, checkpoint):
    assert "wants a multiple of 16" in refused(checkpoint(head_dim=24))


def test_missing_tensor(refused, checkpoint):
    folder = checkpoint(lambda shapes: {name: shape for name, shape in shapes.items() if "1.mlp.up" not in name})
    assert "lacks tensor `model.layers.1.mlp.up_proj.weight`" in refused(folder)


def test_extra_tensor(refused, checkpoint):
    folder = checkpoint(lambda shapes: shapes | {"model.layers.0.self_attn.q_proj.lora_A": [4, 4]})
    assert "does not know: `model.layers.0.self_attn.q_proj.lora_A`" in refused(folder)


def test_misshapen_tensor(refused, checkpoint):
    folder = checkpoint(lambda shapes: shapes | {"model.norm.weight": [65]})
    message = refused(folder)
    assert "tensor `model.norm.weight`" in message
    assert "has shape [65], not [64]" in message


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_safetensors(refused, checkpoint, keep):
    folder = checkpoint()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    message = refused(folder)
    assert str(folder / "model.safetensors") in message
    assert "fetch it again" in message


def test_missing_shard(refused, checkpoint):
    folder = checkpoint()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in refused(folder)


@pytest.mark.parametrize(("file", "content", "expected"), [
    ("chat_template.jinja", b"\xff", "is not UTF-8"),
    ("chat_template.json", b'{"chat_template": ["default"]}', "must be a string or a list of named templates"),
    ("tokenizer_config.json", b"[]", "must hold a JSON object"),
])
def test_chat_template_that_is_none(refused, checkpoint, file, content, expected):
    path = checkpoint() / file
    path.write_bytes(content)
    message = refused(path.parent)
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize(("content", "expected"), [
    ([1], "must hold a JSON object"),
    ({"weight_map": ["model.safetensors"]}, "`weight_map` must be an object"),
    ({"weight_map": {"model.norm.weight": None}}, "`weight_map.model.norm.weight` must be a file's name, not None"),
    ({"weight_map": {"model.norm.weight": "../x.safetensors"}}, "must be a file's name, not '../x.safetensors'"),
])
def test_index_that_is_none(refused, checkpoint, content, expected):
    index = checkpoint() / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    message = refused(index.parent)
    assert str(index) in message
    assert expected in message


@pytest.mark.parametrize("change", [
    {"data_offsets": [0, 64, 128]}, {"data_offsets": [0, None]}, {"data_offsets": [-128, 0]},
    {"data_offsets": [128, 0]}, {"data_offsets": None},
    {"shape": [-64]}, {"shape": ["64"]}, {"shape": None}, {"dtype": ["BF16"]},
])
def test_header_that_describes_no_tensor(refused, checkpoint, change):
    file = checkpoint() / "model.safetensors"
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    header["model.norm.weight"] |= change
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[end:])
    assert f"tensor `model.norm.weight` in {file} has no type, shape and range of bytes" in refused(file.parent)


def test_shard_of_another_revision(refused, checkpoint):
    folder = checkpoint()
    index = {"weight_map": {"model.unheard_of": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks tensor `model.unheard_of`" in refused(folder)


def test_output_that_exists(refused, checkpoint, tmp_path):
    folder = checkpoint()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "precious.txt").write_text("keep me")
    assert "exists already" in refused(folder)
    assert "is not a package" in refused(folder, "--force")


def test_force_replaces_a_package(checkpoint, tmp_path):
    folder, output = checkpoint(), tmp_path / "package"
    for precision in ("fp32", "int4"):
        assert cli.main(["export", str(folder), "--output", str(output), "--precision", precision, "--force"]) == 0
    assert json.loads((output / "manifest.json").read_text())["precision"]["name"] == "int4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "package"]


def test_disk_without_room(refused, checkpoint, monkeypatch):
    monkeypatch.setattr(package.shutil, "disk_usage", lambda _: package.shutil._ntuple_diskusage(10**9, 10**9, 1000))
    message = refused(checkpoint())
    assert "GB free" in message
    assert "make room" in message


def test_write_that_fails(checkpoint, tmp_path):
    """The kernel refuses to let the file grow, as it does on a full disk or beyond a quota."""
    folder = checkpoint(vocab_size=20_000)
    command = f"ulimit -f 512; exec {sys.executable} -m ortbench_export export {folder} --output {tmp_path / 'package'}"
    result = subprocess.run(["bash", "-c", command], cwd=SCRIPTS, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert f"error: writing {tmp_path / 'package'} failed: File too large" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_options_that_contradict_each_other(refused, checkpoint, capsys):
    assert "does not go with" in refused(checkpoint(), "--precision", "fp32", "--activations", "fp16")
    for arguments in (["--random-weights"], [], ["somewhere", "--config", "x.json"]):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["export", *arguments, "--output", "nowhere"])
        assert exit_info.value.code == 2


def test_two_exports_to_one_place(checkpoint, tmp_path, capsys):
    folder = checkpoint()
    with package.package_folder(tmp_path / "package", 0, force=False, identity="other"):
        assert cli.main(["export", str(folder), "--output", str(tmp_path / "package")]) == 2
        assert "another export is writing" in capsys.readouterr().err
    assert (tmp_path / "package").is_dir()
