"""A package whose weights ONNX Runtime maps in the order of its kernels: the stock runtime out of the page cache.

    python prepack.py PACKAGE OUTPUT [--no-comparison]

ONNX Runtime's CPU provider maps a package's weights, and then copies each matrix into anonymous memory in its kernels'
order (prepacking). It can write those copies beside the weights instead and map them too. This does so for one part of
the graph after the other (the embedding, each layer, what follows the layers), so that no more than a part is held in
memory, and writes a package that differs from PACKAGE only in where its weights lie and in the copies beside them.

What was written holds for this version of ONNX Runtime on this kind of processor alone: elsewhere a session prepacks
again, into anonymous memory, without a word. So both are noted (`prepacked.json`), and the result is checked: a session
on it must hold little anonymous memory, and its logits must be those of PACKAGE, bit for bit.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import platform
import re
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnxruntime as ort

NOTE = "prepacked.json"
INLINE_BELOW_BYTES = 1024
"""Smaller constants stand in the graph."""

SHARED_FROM_BYTES = 64 << 10
"""Constants of this size that several parts use are stored with the first part only."""

ROOM = 2.5
"""Bytes written for a byte of the package, while a part lies there twice."""

CHUNK_BYTES = 4 << 20
PROMPT_TOKENS = 16
ANONYMOUS_BYTES = 64 << 20
ANONYMOUS_SHARE = 0.1
"""A session on the result may add this much anonymous memory, and this share of the weights: far less than prepacked
matrices, enough for the graph itself."""

LAYER = re.compile(r"layers[./](\d+)")


class Refused(Exception):
    """What is printed instead of a traceback."""


# --- parts ------------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """Nodes of one layer, or of what comes before or after the layers."""

    name: str
    nodes: list[onnx.NodeProto]

    def reads(self) -> set[str]:
        return {name for node in self.nodes for name in node.input if name}

    def makes(self) -> set[str]:
        return {name for node in self.nodes for name in node.output if name}


def parts(graph: onnx.GraphProto) -> list[Part]:
    """The graph's nodes by the layer in their names. Sessions on parts never run, so no order need be kept."""
    found: dict[str, Part] = {}
    layer = None
    for node in graph.node:
        named = LAYER.search(node.name)
        layer = int(named[1]) if named else layer
        name = f"layer-{layer:03}" if named else "before" if layer is None else "after"
        found.setdefault(name, Part(name, [])).nodes.append(node)
    return list(found.values())


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Of a constant: as the file says, or as it stands in the graph."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return tensor.ByteSize()
    return int(next(entry.value for entry in tensor.external_data if entry.key == "length"))


def as_input(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def with_graph(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], constants: Iterable[onnx.TensorProto],
               inputs: Iterable[onnx.ValueInfoProto], outputs: Iterable[str]) -> onnx.ModelProto:
    """A model of other contents with the same operator sets. Outputs have no types: ONNX Runtime derives them."""
    made = onnx.ModelProto()
    made.ir_version = model.ir_version
    made.opset_import.extend(model.opset_import)
    made.graph.name = model.graph.name
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(constants)
    made.graph.input.extend(inputs)
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return made


def types_between(model: onnx.ModelProto, cut: list[Part]) -> dict[str, onnx.ValueInfoProto]:
    """Element types of the tensors that pass between parts, from a session on the graph without its weights."""
    graph = model.graph
    passed = sorted({name for part in cut for name in part.reads() - part.makes()} & set().union(
        *(part.makes() for part in cut)))
    large = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    small = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    bare = with_graph(model, graph.node, small, [*graph.input, *map(as_input, large)], passed)
    session = ort.InferenceSession(bare.SerializeToString(), unoptimized(), providers=["CPUExecutionProvider"])
    kinds = {"float": onnx.TensorProto.FLOAT, "double": onnx.TensorProto.DOUBLE}
    types = {}
    for output in session.get_outputs():
        kind = output.type.removeprefix("tensor(").removesuffix(")")
        element = kinds[kind] if kind in kinds else onnx.TensorProto.DataType.Value(kind.upper())
        types[output.name] = onnx.helper.make_tensor_value_info(output.name, element, None)
    return types


# --- prepacking -------------------------------------------------------------------------------------------------------


def unoptimized() -> ort.SessionOptions:
    """Graph optimizations could rename constants; the runner's session makes its own on the whole graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return options


def prepack(source: Path, file: str, folder: Path) -> tuple[list[str], int]:
    """Writes `file` and its weights, prepacked, into `folder`: the names of the weights' files, in order, and how many
    constants have a prepacked copy."""
    model = onnx.load(source / file, load_external_data=False)
    cut = parts(model.graph)
    types = types_between(model, cut)
    types.update({value.name: value for value in model.graph.input})
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    files, written = [], set()
    for part in cut:
        read, made = part.reads(), part.makes()
        own = [constants[name] for name in constants if name in read]
        shared = [tensor for tensor in own if tensor.name in written and stored_bytes(tensor) >= SHARED_FROM_BYTES]
        given = {tensor.name for tensor in shared}
        own = [tensor for tensor in own if tensor.name not in given]
        inputs = [types[name] for name in sorted(read - made - set(constants))] + list(map(as_input, shared))
        elsewhere = {name for other in cut if other is not part for name in other.reads()}
        segment = with_graph(model, part.nodes, own, inputs, sorted(made & (elsewhere | outputs)))
        name = f"{Path(file).stem}.{part.name}.data"
        changed = prepack_part(segment, source, folder, name)
        for tensor in own:
            if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in written:
                tensor.CopyFrom(changed[tensor.name])
        written.update(tensor.name for tensor in own)
        if (folder / name).exists():
            files.append(name)
        print(f"{file} {part.name}: {size(folder / name) / 1e6:.0f} MB", file=sys.stderr)
    (folder / file).write_bytes(model.SerializeToString())
    packed = sum(any(entry.key.startswith("prepacked") for entry in tensor.external_data)
                 for tensor in model.graph.initializer)
    return files, packed


def prepack_part(segment: onnx.ModelProto, source: Path, folder: Path, data: str) -> dict[str, onnx.TensorProto]:
    """Lets ONNX Runtime write one part's weights to `data`, and returns its constants as they lie there."""
    saved, raw = folder / "part.onnx", folder / "part.data"
    options = unoptimized()
    options.optimized_model_filepath = str(saved)
    for key, value in {
        "session.model_external_initializers_file_folder_path": str(source),
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": raw.name,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(INLINE_BELOW_BYTES),
    }.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(segment.SerializeToString(), options, providers=["CPUExecutionProvider"])
    del session
    gc.collect()
    changed = {tensor.name: tensor for tensor in onnx.load(saved, load_external_data=False).graph.initializer}
    if raw.exists():
        with open(raw, "rb") as source_file, open(folder / data, "wb") as target:
            for tensor in changed.values():
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    align(tensor, source_file, target, data)
        raw.unlink()
    saved.unlink()
    return changed


def align(tensor: onnx.TensorProto, source: BinaryIO, target: BinaryIO, name: str) -> None:
    """Moves a constant and its prepacked copies to `target`, each at an offset that packages have for its size.

    ONNX Runtime puts the copies wherever the constant ends, and some of its kernels' layouts depend on the address: a
    copy that is not aligned as memory from its allocator is read wrongly, without an error."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    entries["location"] = name
    entries["offset"] = str(move(source, target, int(entries["offset"]), int(entries["length"])))
    entries.pop("checksum", None)
    for key in [key for key in entries if key.startswith("prepacked")]:
        kernel, *blobs = entries[key].split("|")
        for index, blob in enumerate(blobs):
            offset, length, rest = blob.split(";", 2)
            blobs[index] = f"{move(source, target, int(offset), int(length))};{length};{rest}"
        entries[key] = "|".join([kernel, *blobs])
    del tensor.external_data[:]
    tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items())


def move(source: BinaryIO, target: BinaryIO, offset: int, length: int) -> int:
    """Copies a range to the end of `target`, aligned, and returns where it lies."""
    alignment = 4096 if length >= 1 << 20 else 64
    start = -(-target.tell() // alignment) * alignment
    target.write(bytes(start - target.tell()))
    source.seek(offset)
    for done in range(0, length, CHUNK_BYTES):
        target.write(source.read(min(CHUNK_BYTES, length - done)))
    return start


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# --- package ----------------------------------------------------------------------------------------------------------


def processor() -> str:
    """The processor's name and, since kernels are chosen by them, its vector extensions."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^([^\t\n:]+)\t*: (.*)$", text, re.MULTILINE))
    flags = sorted(flag for flag in fields.get("flags", "").split() if flag.startswith(("avx", "amx", "fma", "sse4")))
    return " ".join([fields.get("model name", platform.machine()), *flags])


def entry(folder: Path, name: str) -> dict:
    digest = hashlib.sha256()
    with open(folder / name, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return {"path": name, "bytes": size(folder / name), "sha256": digest.hexdigest()}


def write(source: Path, folder: Path) -> dict:
    """Fills `folder`, and returns the note."""
    text = (source / "manifest.json").read_bytes()
    manifest = json.loads(text)
    if manifest["format"] != "ortbench-package" or manifest.get("pack"):
        raise Refused(f"{source} is not a package of ONNX graphs and weights; name the one that the exporter wrote")
    # onnxruntime-genai's graph lies over the weights that are not taken along.
    graphs = {name for graph in manifest["graphs"] for name in [graph["file"], *graph["external_data"]]}
    others = [file["path"] for file in manifest["files"]
              if file["path"] not in graphs and not file["path"].startswith("genai")]
    stored = sum(file["bytes"] for file in manifest["files"])
    free = shutil.disk_usage(folder).free
    if free < ROOM * stored:
        raise Refused(f"the result needs up to {ROOM * stored / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB")
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    files, packed = [], 0
    for graph in manifest["graphs"]:
        graph["external_data"], count = prepack(source, graph["file"], folder)
        files += [graph["file"], *graph["external_data"]]
        packed += count
    note = {
        "onnxruntime": ort.__version__,
        "processor": processor(),
        "source_manifest_sha256": hashlib.sha256(text).hexdigest(),
        "prepacked_constants": packed,
    }
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    manifest["files"] = [entry(folder, name) for name in [*files, *others, NOTE]]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return note


# --- check ------------------------------------------------------------------------------------------------------------


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1])


def decoder(package: Path) -> dict:
    graphs = json.loads((package / "manifest.json").read_bytes())["graphs"]
    return next(graph for graph in graphs if graph["role"] == "decoder")


def run(package: Path) -> tuple[int, list[np.ndarray]]:
    """Anonymous memory that loading the decoder adds, in bytes, and its logits: of a prompt, and of one token more."""
    graph = decoder(package)
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    before = anonymous_bytes()
    session = ort.InferenceSession(package / graph["file"], options, providers=["CPUExecutionProvider"])
    added = anonymous_bytes() - before
    names = [port["name"] for port in graph["outputs"]]
    cache, logits = {}, []
    for past, tokens in ((0, PROMPT_TOKENS), (PROMPT_TOKENS, 1)):
        made = dict(zip(names, session.run(names, dict(feeds(graph, past, tokens, cache))), strict=True))
        cache = {(port["role"].removeprefix("present_"), port["layer"]): made[port["name"]]
                 for port in graph["outputs"]}
        logits += [made[port["name"]] for port in graph["outputs"] if port["role"] == "logits"]
    return added, logits


def feeds(graph: dict, past: int, tokens: int, cache: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Inputs of a run of `tokens` behind `past` others; logits are asked for at every position."""
    ids = (np.arange(past, past + tokens, dtype=np.int64) * 37 + 11)[None] % 200
    positions = np.arange(past, past + tokens, dtype=np.int64)[None]
    for port in graph["inputs"]:
        role, layer, sizes = port["role"], port["layer"], {"batch": 1, "past": past, "image_tokens": 0}
        if role in ("past_key", "past_value"):
            empty = np.zeros([sizes.get(dim, dim) for dim in port["dims"]], port["dtype"]) if past == 0 else None
            yield port["name"], cache[role.removeprefix("past_"), layer] if past else empty
        elif role == "image_features":
            yield port["name"], np.zeros([sizes.get(dim, dim) for dim in port["dims"]], port["dtype"])
        else:
            yield port["name"], {
                "input_ids": ids,
                "attention_mask": np.ones((1, past + tokens), np.int64),
                "position_ids": positions,
                "mrope_position_ids": np.repeat(positions[None], 3, 0),
                "logits_positions": np.arange(tokens, dtype=np.int64)[None],
            }[role]


def apart(package: Path) -> tuple[int, list[np.ndarray]]:
    """`run` in a process of its own, whose memory is nobody else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(run, package).result()
        except BrokenProcessPool as error:
            raise Refused(f"the process that ran {package} was killed, for memory perhaps: `--no-comparison` runs "
                          "the result alone") from error


def check(source: Path, folder: Path, compare: bool) -> None:
    weights = sum(size(source / name) for name in decoder(source)["external_data"])
    added, logits = apart(folder)
    print(f"anonymous memory after loading: {added / 1e6:.0f} MB, of {weights / 1e6:.0f} MB of weights",
          file=sys.stderr)
    if added > ANONYMOUS_BYTES + ANONYMOUS_SHARE * weights:
        raise Refused("a session on the result prepacks into anonymous memory: its graph optimizations may have "
                      "changed what the copies were made for")
    if not compare:
        return
    before, expected = apart(source)
    print(f"the source package's: {before / 1e6:.0f} MB", file=sys.stderr)
    if not all(np.array_equal(one, other) for one, other in zip(logits, expected, strict=True)):
        raise Refused("the result's logits are not those of the source")
    print("logits are equal, bit for bit", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, metavar="PACKAGE")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--no-comparison", action="store_true", help="do not run PACKAGE, whose weights must fit the "
                        "memory, prepacked; OUTPUT is run all the same")
    given = parser.parse_args()
    source, output = given.package.resolve(), given.output.absolute()
    folder = output.with_name(f".{output.name}.partial")
    try:
        if output.exists():
            raise Refused(f"{output} exists already: remove it or choose another OUTPUT")
        if not (source / "manifest.json").is_file():
            raise Refused(f"{source} has no manifest.json: name a package's folder")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note = write(source, folder)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"{note['prepacked_constants']} constants prepacked; peak memory {held / 1e6:.0f} MB, mapped files "
              "included", file=sys.stderr)
        check(source, folder, not given.no_comparison)
        folder.rename(output)
    except Refused as error:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(f"error: {error}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    main()
