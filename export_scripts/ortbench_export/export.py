"""One export from start to end: plan everything, check everything, then write."""

from dataclasses import dataclass, replace
from pathlib import Path

from ortbench_export import genai
from ortbench_export.checkpoint import Checkpoint, revision_of
from ortbench_export.config import Config, read_config, special_tokens
from ortbench_export.errors import ExportError
from ortbench_export.graph import Graph, PackageGraphs
from ortbench_export.journal import export_identity
from ortbench_export.manifest import ModelOrigin, PackageFile, manifest
from ortbench_export.options import ExportOptions
from ortbench_export.package import package_folder, write_file, write_manifest
from ortbench_export.progress import Progress
from ortbench_export.registry import Architecture, find_architecture
from ortbench_export.shape import ModelShape
from ortbench_export.tokenizer import chat_template, tokenizer_file
from ortbench_export.weights.from_checkpoint import CheckpointSource
from ortbench_export.weights.random import RandomSource
from ortbench_export.weights.tensors import WeightSource
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
        graphs, genai_graph, shape = _build(architecture, model, options, source)
        source.refuse_extra(lambda name: architecture.ignorable(model, name))
        name = _model_name(checkpoint_folder)
        origin = ModelOrigin(model_id or name, config.architecture(), name, None, None)
        _write(graphs, genai_graph, shape, config, destination, origin, checkpoint)
    finally:
        checkpoint.close()


def export_random(config_file: Path, seed: int, destination: Destination, options: ExportOptions,
                  model_id: str | None = None) -> None:
    """Write a package of the shape that a `config.json` describes, with random weights."""
    config = read_config(config_file)
    architecture = find_architecture(config, options)
    graphs, genai_graph, shape = _build(architecture, architecture.read(config, None), options, RandomSource(seed))
    name = config_file.resolve().parent.name if config_file.name == "config.json" else config_file.stem
    origin = ModelOrigin(model_id or name, config.architecture(), None, None, seed)
    _write(graphs, genai_graph, shape, config, destination, origin, None)


def _model_name(checkpoint_folder: Path) -> str:
    """The folder's name; in Hugging Face's cache, where folders are named after revisions, the repository's."""
    folder = checkpoint_folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rsplit("--", 1)[1]
    return folder.name


def _build(architecture: Architecture, model, options: ExportOptions,
           source: WeightSource) -> tuple[PackageGraphs, Graph | None, ModelShape]:
    """The package's graphs; one for onnxruntime-genai over the same weights, where it can run one; the shape."""
    graphs = PackageGraphs(options, source)
    shape = architecture.build(graphs, model)
    if not genai.loads(options, shape):
        return graphs, None, shape
    own = graphs.of("decoder")
    if options.logits == "all":
        return graphs, own, shape
    others = PackageGraphs(replace(options, logits="all"), source)
    architecture.build(others, model)
    if others.of("decoder").plan.placements != own.plan.placements:
        raise ValueError("`--logits` moved the weights")
    return graphs, others.of("decoder"), shape


def _genai_files(graph: Graph, own: Graph, shape: ModelShape, config: Config) -> dict[str, bytes]:
    """What a package whose decoder is `own` holds for onnxruntime-genai, by file name."""
    folder = config.path.parent
    graph_file = own.model_file if graph is own else genai.GRAPH_FILE
    files = {} if graph is own else {graph_file: _serialized(graph)}
    files[genai.CONFIG_FILE] = genai.genai_config(config.architecture(), shape, special_tokens(config), graph_file,
                                                  folder)
    tokenizer_config = folder / genai.TOKENIZER_CONFIG_FILE
    if tokenizer_config.is_file():
        files[tokenizer_config.name] = tokenizer_config.read_bytes()
    return files


def _serialized(graph: Graph) -> bytes:
    return graph.model().SerializeToString(deterministic=True)


def _write(graphs: PackageGraphs, genai_graph: Graph | None, shape: ModelShape, config: Config,
           destination: Destination, origin: ModelOrigin, checkpoint: Checkpoint | None) -> None:
    """Write everything; the `revision` of the checkpoint, where there is one, is found on the way."""
    tokenizer, template = tokenizer_file(config.path.parent), chat_template(config.path.parent)
    tokens = special_tokens(config)
    small = {graph.model_file: _serialized(graph) for graph in graphs.graphs}
    source = graphs.source.identity()
    identity = export_identity(source, [*small.values(), config.path.read_bytes()])
    if genai_graph is not None:
        small |= _genai_files(genai_graph, graphs.of("decoder"), shape, config)
    if tokenizer is not None:
        small["tokenizer.json"] = tokenizer
    if template is not None:
        small["chat_template.jinja"] = template.encode()
    weights_bytes = sum(graph.plan.total_bytes for graph in graphs.graphs)
    needed_bytes = weights_bytes + sum(map(len, small.values()))
    with (package_folder(destination.folder, needed_bytes, destination.force, identity) as (folder, journal),
          revision_of(checkpoint, journal) as revision):
        files = [write_file(folder, name, content) for name, content in small.items()]
        progress = Progress(f"writing {destination.folder}", weights_bytes)
        for graph in graphs.graphs:
            digest = write_plan(graph.plan, folder / graph.data_file, journal, progress)
            files.append(PackageFile(graph.data_file, graph.plan.total_bytes, digest))
        origin = replace(origin, revision=revision())
        if graphs.source.identity() != source:
            journal.forget()
            raise ExportError(f"the checkpoint in {config.path.parent} changed while it was read",
                              "run the export again")
        write_manifest(folder, manifest(
            graphs, shape, origin, tokens,
            "tokenizer.json" if tokenizer is not None else None,
            "chat_template.jinja" if template is not None else None, files,
        ))
    progress.finish()
