"""One export from start to end: plan everything, check everything, then write."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ortbench_export.checkpoint import Checkpoint
from ortbench_export.config import Config, read_config, special_tokens
from ortbench_export.graph import Graph
from ortbench_export.manifest import ModelOrigin, PackageFile, manifest
from ortbench_export.options import ExportOptions
from ortbench_export.package import package_folder, write_file, write_manifest
from ortbench_export.progress import Progress
from ortbench_export.registry import find_architecture
from ortbench_export.shape import ModelShape
from ortbench_export.tokenizer import chat_template, tokenizer_file
from ortbench_export.weights.from_checkpoint import CheckpointSource
from ortbench_export.weights.random import RandomSource
from ortbench_export.weights.writer import write_plan

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Destination:
    """Where the package goes, and whether it may replace one that is there."""

    folder: Path
    force: bool = False


def export_checkpoint(checkpoint_folder: Path, destination: Destination, options: ExportOptions,
                      model_id: str | None = None, threads: int | None = None) -> None:
    """Write the package of a Hugging Face checkpoint folder."""
    config = read_config(checkpoint_folder / "config.json")
    architecture = find_architecture(config, options)
    checkpoint = Checkpoint(checkpoint_folder)
    try:
        source = CheckpointSource(checkpoint, threads)
        model = architecture.read(config, "lm_head.weight" not in checkpoint.entries)
        graph = Graph(options, source)
        shape = architecture.build(graph, model)
        source.refuse_extra(lambda name: architecture.ignorable(model, name))
        name = _model_name(checkpoint_folder)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as background:
            # The checkpoint's hash is taken beside the export, which reads the same bytes in another order.
            revision = background.submit(checkpoint.revision, stop)
            try:
                _write(graph, shape, config, destination,
                       lambda: ModelOrigin(model_id or name, config.architecture(), name, revision.result(), None))
            finally:
                stop.set()
    finally:
        checkpoint.close()


def export_random(config_file: Path, seed: int, destination: Destination, options: ExportOptions,
                  model_id: str | None = None) -> None:
    """Write a package of the shape that a `config.json` describes, with random weights."""
    config = read_config(config_file)
    architecture = find_architecture(config, options)
    graph = Graph(options, RandomSource(seed))
    shape = architecture.build(graph, architecture.read(config, None))
    name = config_file.resolve().parent.name if config_file.name == "config.json" else config_file.stem
    origin = ModelOrigin(model_id or name, config.architecture(), None, None, seed)
    _write(graph, shape, config, destination, lambda: origin)


def _model_name(checkpoint_folder: Path) -> str:
    """The folder's name; in Hugging Face's cache, where folders are named after revisions, the repository's."""
    folder = checkpoint_folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rsplit("--", 1)[1]
    return folder.name


def _write(graph: Graph, shape: ModelShape, config: Config, destination: Destination,
           origin: Callable[[], ModelOrigin]) -> None:
    """`origin` is asked last, when the checkpoint's hash is likely there."""
    tokenizer, template = tokenizer_file(config.path.parent), chat_template(config.path.parent)
    tokens = special_tokens(config)
    model = graph.model(DATA_FILE).SerializeToString(deterministic=True)
    needed_bytes = graph.plan.total_bytes + len(model) + len(tokenizer or b"") + len(template or "")
    with package_folder(destination.folder, needed_bytes, destination.force) as folder:
        files = [write_file(folder, MODEL_FILE, model)]
        progress = Progress(f"writing {destination.folder}", graph.plan.total_bytes)
        digest = write_plan(graph.plan, folder / DATA_FILE, progress.advance)
        files.append(PackageFile(DATA_FILE, graph.plan.total_bytes, digest))
        if tokenizer is not None:
            files.append(write_file(folder, "tokenizer.json", tokenizer))
        if template is not None:
            files.append(write_file(folder, "chat_template.jinja", template.encode()))
        write_manifest(folder, manifest(
            graph, shape, origin(), tokens, "tokenizer.json" if tokenizer is not None else None,
            "chat_template.jinja" if template is not None else None, MODEL_FILE, DATA_FILE, files,
        ))
    progress.finish()
