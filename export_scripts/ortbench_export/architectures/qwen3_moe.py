"""Qwen3 mixtures: Qwen3's attention, and in most layers experts behind a softmax router."""

from dataclasses import dataclass

from ortbench_export.architectures import qwen3
from ortbench_export.blocks.experts import ExpertsShape, mixture
from ortbench_export.blocks.router import RouterShape
from ortbench_export.config import Config
from ortbench_export.graph import PackageGraphs
from ortbench_export.shape import ModelShape, ParameterCount


@dataclass(frozen=True)
class Qwen3Moe:
    """What `config.json` says: the dense model, the experts, and which layers have them."""

    dense: qwen3.Qwen3
    experts: ExpertsShape
    sparse_layers: frozenset[int]


def read(config: Config, tied_by_default: bool | None) -> Qwen3Moe:
    """`tied_by_default` answers for a config that does not say whether the head is tied; None: it must say."""
    dense = qwen3.read(config, tied_by_default)
    experts, chosen = config.integer_of("num_experts", "num_local_experts"), config.integer("num_experts_per_tok")
    config.at_most("num_experts_per_tok", chosen, experts)
    router = RouterShape(dense.decoder.hidden, experts, chosen, config.flag("norm_topk_prob", False))
    step = config.integer_or("decoder_sparse_step", 1)
    without = config.integers("mlp_only_layers")
    sparse = frozenset(layer for layer in range(dense.decoder.layers)
                       if layer not in without and (layer + 1) % step == 0)
    return Qwen3Moe(dense, ExpertsShape(router, config.integer("moe_intermediate_size")), sparse)


def build(graphs: PackageGraphs, model: Qwen3Moe) -> ModelShape:
    """Assemble the decoder; what the manifest says about its shape."""
    graph = graphs.begin("decoder")

    def feed_forward(layer: int, x: str) -> str:
        if layer not in model.sparse_layers:
            return qwen3.dense(graph, model.dense, layer, x)
        return mixture(graph, f"/model/layers.{layer}/mlp", f"model.layers.{layer}.mlp", x, model.experts,
                       model.dense.decoder.feed_forward_gain)

    qwen3.assemble(graph, model.dense, feed_forward)
    router = model.experts.router
    return qwen3.shape(graph, model.dense, _parameters(model), experts=router.experts,
                       experts_per_token=router.chosen, expert_intermediate_size=model.experts.width)


def ignorable(model: Qwen3Moe, name: str) -> bool:
    """Tensors that some checkpoints carry beside the weights."""
    return qwen3.ignorable(model.dense, name)


def _parameters(model: Qwen3Moe) -> ParameterCount:
    decoder, router, expert = model.dense.decoder, model.experts.router, model.experts.parameters
    sparse = len(model.sparse_layers)
    multiplied = (decoder.layers * qwen3.attention_parameters(model.dense) + decoder.hidden
                  + (decoder.layers - sparse) * 3 * decoder.hidden * model.dense.intermediate
                  + sparse * (router.hidden * router.experts + router.chosen * expert))
    idle = sparse * (router.experts - router.chosen) * expert
    return ParameterCount.of(multiplied, idle, decoder.table, decoder.tied)
