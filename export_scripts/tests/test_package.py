"""What a written package promises: schema, hashes, layout, determinism, tied bytes, and its accompanying files."""

import hashlib
import json
from pathlib import Path

import jsonschema
import ml_dtypes
import onnx
import pytest
from golden_cases import GOLDEN, load_case, write_safetensors
from synthetic import qwen3_config, qwen3_shapes, write_sparse_checkpoint

import ortbench_export
from ortbench_export.export import Destination, export_checkpoint, export_random
from ortbench_export.options import FLAVOURS, PRECISIONS, ExportOptions

SCHEMA = json.loads((Path(ortbench_export.__file__).parent / "manifest.schema.json").read_text())
TIED = GOLDEN / "qwen3-grouped-tied"
EVERY = [ExportOptions(precision, flavour) for precision in PRECISIONS for flavour in FLAVOURS]


def export(output: Path, options: ExportOptions, checkpoint: Path = TIED) -> dict:
    export_checkpoint(checkpoint, Destination(output), options)
    return json.loads((output / "manifest.json").read_text())


@pytest.mark.parametrize("options", EVERY, ids=lambda options: f"{options.precision}-{options.flavour}")
def test_manifest_follows_its_schema_and_names_the_graph(tmp_path, options):
    manifest = export(tmp_path / "package", options)
    jsonschema.validate(manifest, SCHEMA)
    model = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False)
    (graph,) = manifest["graphs"]
    assert [value.name for value in model.graph.input] == [port["name"] for port in graph["inputs"]]
    assert [value.name for value in model.graph.output] == [port["name"] for port in graph["outputs"]]
    assert {opset.domain: opset.version for opset in model.opset_import} == manifest["opsets"]


def test_only_a_pack_has_the_key_of_packs(tmp_path):
    manifest = export(tmp_path / "package", ExportOptions("int4"))
    assert "pack" not in manifest
    jsonschema.validate(manifest | {"pack": {"index": "shards.json", "form": "operators"}}, SCHEMA)
    for wrong in ({"index": "shards.json"}, {"index": "shards.json", "form": "other"}, None):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest | {"pack": wrong}, SCHEMA)


def test_random_weights_are_marked_in_the_manifest(tmp_path):
    (tmp_path / "shape.json").write_text(json.dumps(qwen3_config()))
    export_random(tmp_path / "shape.json", 7, Destination(tmp_path / "package"), ExportOptions("int4"))
    manifest = json.loads((tmp_path / "package" / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["model"] == {"id": "shape", "architecture": "Qwen3ForCausalLM", "source": None, "revision": None,
                                 "weights": "random", "seed": 7}


def test_files_are_listed_with_their_sizes_and_hashes(tmp_path):
    manifest = export(tmp_path / "package", ExportOptions("int4"))
    listed = {file["path"]: file for file in manifest["files"]}
    assert set(listed) | {"manifest.json"} == {path.name for path in (tmp_path / "package").iterdir()}
    for name, file in listed.items():
        content = (tmp_path / "package" / name).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("options", EVERY, ids=lambda options: f"{options.precision}-{options.flavour}")
def test_the_same_input_gives_the_same_bytes(tmp_path, options):
    for number in ("1", "2"):
        export(tmp_path / number, options)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name


def test_plain_graphs_hold_standard_operators_alone(tmp_path):
    for precision in PRECISIONS:
        export(tmp_path / precision, ExportOptions(precision, "plain"))
        model = onnx.load(tmp_path / precision / "model.onnx")
        assert {node.domain for node in model.graph.node} == {""}
        onnx.checker.check_model(tmp_path / precision / "model.onnx", full_check=True)


def test_node_names_say_where_they_stand(tmp_path):
    export(tmp_path / "package", ExportOptions("fp32"))
    model = onnx.load(tmp_path / "package" / "model.onnx", load_external_data=False)
    assert {"/model/embed_tokens/Gather", "/model/layers.0/attn/qkv_proj/MatMul", "/lm_head/Gemm",
            "/model/layers.2/mlp/down_proj/MatMul"} <= {node.name for node in model.graph.node}


def test_tensors_are_aligned_ordered_and_tied_ones_share_bytes(tmp_path):
    config = qwen3_config(vocab_size=20_000, hidden_size=128)
    write_sparse_checkpoint(tmp_path / "checkpoint", config)
    for precision, flavour in (("fp32", "fused"), ("fp32", "plain"), ("int8", "fused"), ("int4", "fused")):
        output = tmp_path / f"{precision}-{flavour}"
        export(output, ExportOptions(precision, flavour), tmp_path / "checkpoint")
        model = onnx.load(output / "model.onnx", load_external_data=False)
        ranges = {}
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                assert entries["location"] == "model.onnx.data"
                ranges[tensor.name] = (int(entries["offset"]), int(entries["length"]))
        for offset, length in ranges.values():
            assert offset % (4096 if length >= 1 << 20 else 64) == 0
        embedding = [each for name, each in ranges.items() if name.startswith("model.embed_tokens.")]
        head = [each for name, each in ranges.items() if name.startswith("lm_head.")]
        assert embedding == head
        layers = [each for name, each in ranges.items() if name.startswith("model.layers.")]
        assert layers == sorted(layers)
        assert max(embedding) < min(layers)


def test_weights_read_per_token_count_the_head_and_one_row_of_the_embedding(tmp_path):
    config = qwen3_config(num_hidden_layers=1, tie_word_embeddings=False)
    write_sparse_checkpoint(tmp_path / "checkpoint", config)
    manifest = export(tmp_path / "package", ExportOptions("fp32"), tmp_path / "checkpoint")
    layer = 64 * 128 + 2 * 64 * 64 + 128 * 64 + 3 * 64 * 128 + 2 * 64 + 2 * 32
    assert manifest["parameters"] == {"total": layer + 64 + 2 * 256 * 64, "active_per_token": layer + 64 + 256 * 64}
    rotary_rows = 2 * 16
    assert manifest["bytes_read_per_token"]["weights"] == 4 * (layer + 64 + 256 * 64 + 64 + rotary_rows)
    assert manifest["cache"]["bytes_per_token"] == 2 * 2 * 32 * 4


def test_parameters_are_those_of_the_checkpoint(tmp_path):
    for name in ("qwen3-grouped-tied", "qwen3-ragged-untied"):
        manifest = export(tmp_path / name, ExportOptions("fp32"), GOLDEN / name)
        assert manifest["parameters"]["total"] == sum(value.size for value in load_case(name).weights.values())


def test_tokenizer_chat_template_and_special_tokens_travel_along(tmp_path):
    checkpoint = tmp_path / "my-model"
    write_sparse_checkpoint(checkpoint, qwen3_config())
    (checkpoint / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "pad_token_id": 5}))
    manifest = export(tmp_path / "package", ExportOptions(), checkpoint)
    assert manifest["tokens"] == {"bos": 1, "pad": 5, "eos": [5, 6]}
    assert (tmp_path / "package" / manifest["tokenizer"]).read_text() == '{"model": {"type": "BPE"}}'
    assert (tmp_path / "package" / manifest["chat_template"]).read_text() == "{{ messages }}"
    assert manifest["model"]["id"] == manifest["model"]["source"] == "my-model"
    assert str(tmp_path) not in (tmp_path / "package" / "manifest.json").read_text()


def test_a_folder_of_the_hugging_face_cache_is_named_after_its_repository(tmp_path):
    checkpoint = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "c1899de289a04d12100db370d81485cdf75e47ca"
    checkpoint.mkdir(parents=True)
    write_sparse_checkpoint(checkpoint, qwen3_config())
    assert export(tmp_path / "package", ExportOptions(), checkpoint)["model"]["id"] == "Qwen3-0.6B"


def test_template_files_win_over_the_tokenizer_config(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    write_sparse_checkpoint(checkpoint, qwen3_config())
    contents = {
        "tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": "oldest"}]}),
        "chat_template.json": json.dumps({"chat_template": "old"}),
        "chat_template.jinja": "new",
    }
    for (file, content), expected in zip(contents.items(), ("oldest", "old", "new"), strict=True):
        (checkpoint / file).write_text(content)
        export(tmp_path / expected, ExportOptions(), checkpoint)
        assert (tmp_path / expected / "chat_template.jinja").read_text() == expected


def test_a_head_stored_beside_a_tied_embedding_is_ignored(tmp_path):
    config = qwen3_config()
    write_sparse_checkpoint(tmp_path / "both", config, qwen3_shapes(config | {"tie_word_embeddings": False}))
    export(tmp_path / "package", ExportOptions(), tmp_path / "both")


def test_the_revision_is_that_of_the_files_however_hashing_keeps_step(tmp_path, monkeypatch):
    checkpoint = GOLDEN / "qwen3-moe-one-expert-sharded"
    index = hashlib.sha256()
    for file in sorted(checkpoint.glob("*.safetensors")):
        index.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    # Never ahead of the export; and far ahead of it, as every small checkpoint is.
    for lead_bytes in (0, 1 << 30):
        monkeypatch.setattr("ortbench_export.checkpoint.LEAD_BYTES", lead_bytes)
        manifest = export(tmp_path / str(lead_bytes), ExportOptions("int4"), checkpoint)
        assert manifest["model"]["revision"] == f"sha256:{index.hexdigest()}"


def test_values_matter_and_not_the_types_that_they_are_stored_in(tmp_path):
    case, contents = load_case("qwen3-moe-per-expert"), []
    for stored in ("bf16", "mixed"):
        checkpoint = tmp_path / stored
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text(json.dumps(case.config))
        write_safetensors(checkpoint / "model.safetensors", {
            name: value if stored == "mixed" and "gate_proj" in name else value.astype(ml_dtypes.bfloat16)
            for name, value in case.weights.items()})
        for precision in ("fp32", "int4"):
            export(tmp_path / f"{stored}-{precision}", ExportOptions(precision), checkpoint)
            contents.append((tmp_path / f"{stored}-{precision}" / "model.onnx.data").read_bytes())
    assert contents[:2] == contents[2:]
