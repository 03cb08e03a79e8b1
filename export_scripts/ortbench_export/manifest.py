"""Put together `manifest.json`, all that the runner knows about a package."""

from dataclasses import asdict, dataclass

from ortbench_export import __version__
from ortbench_export.config import SpecialTokens
from ortbench_export.graph import PackageGraphs
from ortbench_export.shape import ModelShape

FORMAT = "ortbench-package"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class ModelOrigin:
    """Which model this is and where its weights came from; `seed` is None unless they are random."""

    id: str
    architecture: str
    source: str | None
    revision: str | None
    seed: int | None


@dataclass(frozen=True)
class PackageFile:
    """A file of the package with its size in bytes and its SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


def manifest(graphs: PackageGraphs, shape: ModelShape, origin: ModelOrigin, tokens: SpecialTokens,
             tokenizer: str | None, chat_template: str | None, files: list[PackageFile]) -> dict:
    """The manifest of a package: a decoder and the graphs that feed it."""
    options, scheme = graphs.options, graphs.options.scheme
    decoder, vision = graphs.of("decoder"), graphs.of("vision")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": {
            "id": origin.id,
            "architecture": origin.architecture,
            "source": origin.source,
            "revision": origin.revision,
            "weights": "checkpoint" if origin.seed is None else "random",
            "seed": origin.seed,
        },
        "shape": {
            "layers": shape.layers,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "attention_heads": shape.attention_heads,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "attention_width": shape.attention_width,
            "vocab_size": shape.vocab_size,
            "context_length": shape.context_length,
            "experts": shape.experts,
            "experts_per_token": shape.experts_per_token,
            "expert_intermediate_size": shape.expert_intermediate_size,
        },
        "image": asdict(shape.image) if shape.image else None,
        "parameters": {"total": shape.parameters.total, "active_per_token": shape.parameters.active_per_token},
        "precision": {
            "name": options.precision,
            "block_size": scheme.block_size if scheme else None,
            "symmetric": True if scheme else None,
            "accuracy_level": options.accuracy_level if scheme and options.fused else None,
            "embedding": shape.embedding_precision,
            "lm_head": shape.lm_head_precision,
            "vision": vision.options.precision if vision else None,
            "activations": options.activation_name,
        },
        "flavour": options.flavour,
        "opsets": decoder.opsets(),
        "graphs": [{
            "role": graph.role,
            "file": graph.model_file,
            "external_data": [graph.data_file],
            "inputs": [port.describe() for port in graph.inputs],
            "outputs": [port.describe() for port in graph.outputs],
        } for graph in graphs.graphs],
        "cache": {
            "dtype": options.dtype.name,
            "bytes_per_token": shape.cache_bytes_per_token,
            "update": "in_place_or_append" if shape.cache_in_place else "append",
        },
        # GroupQueryAttention counts a row's tokens from its start; other graphs append behind the whole batch.
        "padding": ["right"] if shape.cache_in_place else ["left"],
        "tokens": {"bos": tokens.bos, "pad": tokens.pad, "eos": list(tokens.eos)},
        "tokenizer": tokenizer,
        "chat_template": chat_template,
        "bytes_read_per_token": {"weights": decoder.plan.bytes_read_per_token()},
        "files": [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in files],
        "exporter": {"name": "ortbench_export", "version": __version__, "options": options.describe()},
    }
