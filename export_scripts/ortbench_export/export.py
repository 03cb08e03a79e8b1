"""One export from start to end: plan everything, check everything, then write."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ortbench_export.checkpoint import Checkpoint
from ortbench_export.config import Config, read_config, special_tokens
from ortbench_export.graph import PackageGraphs
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
        graphs = PackageGraphs(options, source)
        shape = architecture.build(graphs, model)
        source.refuse_extra(lambda name: architecture.ignorable(model, name))
        name = _model_name(checkpoint_folder)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as background:
            # The checkpoint's hash is taken beside the export, which reads the same bytes in another order.
            revision = background.submit(checkpoint.revision, stop)
            try:
                _write(graphs, shape, config, destination,
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
    graphs = PackageGraphs(options, RandomSource(seed))
    shape = architecture.build(graphs, architecture.read(config, None))
    name = config_file.resolve().parent.name if config_file.name == "config.json" else config_file.stem
    origin = ModelOrigin(model_id or name, config.architecture(), None, None, seed)
    _write(graphs, shape, config, destination, lambda: origin)


def _model_name(checkpoint_folder: Path) -> str:
    """The folder's name; in Hugging Face's cache, where folders are named after revisions, the repository's."""
    folder = checkpoint_folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rsplit("--", 1)[1]
    return folder.name


def _write(graphs: PackageGraphs, shape: ModelShape, config: Config, destination: Destination,
           origin: Callable[[], ModelOrigin]) -> None:
    """`origin` is asked last, when the checkpoint's hash is likely there."""
    tokenizer, template = tokenizer_file(config.path.parent), chat_template(config.path.parent)
    tokens = special_tokens(config)
    models = [(graph, graph.model().SerializeToString(deterministic=True)) for graph in graphs.graphs]
    weights_bytes = sum(graph.plan.total_bytes for graph in graphs.graphs)
    needed_bytes = (weights_bytes + sum(len(model) for _, model in models) + len(tokenizer or b"")
                    + len(template or ""))
    with package_folder(destination.folder, needed_bytes, destination.force) as folder:
        files = []
        progress = Progress(f"writing {destination.folder}", weights_bytes)
        for graph, model in models:
            files.append(write_file(folder, graph.model_file, model))
            digest = write_plan(graph.plan, folder / graph.data_file, progress.advance)
            files.append(PackageFile(graph.data_file, graph.plan.total_bytes, digest))
        if tokenizer is not None:
            files.append(write_file(folder, "tokenizer.json", tokenizer))
        if template is not None:
            files.append(write_file(folder, "chat_template.jinja", template.encode()))
        write_manifest(folder, manifest(
            graphs, shape, origin(), tokens, "tokenizer.json" if tokenizer is not None else None,
            "chat_template.jinja" if template is not None else None, files,
        ))
    progress.finish()
