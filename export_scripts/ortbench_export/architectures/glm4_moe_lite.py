"""GLM-4.7-Flash: latent attention, first layers dense, then experts behind a sigmoid router beside a shared expert."""

from dataclasses import dataclass

from ortbench_export.blocks import decoder as stack
from ortbench_export.blocks.experts import ExpertsShape, mixture
from ortbench_export.blocks.latent_attention import LatentShape, begin_latent_attention, latent_attention
from ortbench_export.blocks.mlp import swiglu
from ortbench_export.blocks.router import RouterShape
from ortbench_export.config import Config
from ortbench_export.errors import ExportError
from ortbench_export.graph import Graph, PackageGraphs
from ortbench_export.shape import ModelShape, ParameterCount


@dataclass(frozen=True)
class Glm4MoeLite:
    """What `config.json` says. `shared_width` is that of all shared experts together; `extra_layers` predict further
    tokens and are not exported."""

    decoder: stack.DecoderShape
    attention: LatentShape
    intermediate: int
    experts: ExpertsShape
    shared_width: int
    sparse_layers: frozenset[int]
    rope_theta: float
    extra_layers: int


def read(config: Config, tied_by_default: bool | None) -> Glm4MoeLite:
    """`tied_by_default` answers for a config that does not say whether the head is tied; None: it must say."""
    config.expect("hidden_act", ("silu",), "silu")
    config.expect("attention_bias", (False,), False)
    config.expect("topk_method", ("noaux_tc",), "noaux_tc")
    config.expect("scoring_func", ("sigmoid",), "sigmoid")
    decoder = stack.read_decoder(config, tied_by_default)
    attention = LatentShape(
        decoder.hidden, config.integer("num_attention_heads"), config.integer_or("q_lora_rank", None),
        config.integer("kv_lora_rank"), config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim"),
        config.integer("v_head_dim"), config.flag("rope_interleave", True),
    )
    if attention.rope % 2:
        raise ExportError(f"{config.path}: `qk_rope_head_dim` {attention.rope} is odd; rotary embedding needs pairs")
    width = config.integer("moe_intermediate_size")
    return Glm4MoeLite(
        decoder, attention, config.integer("intermediate_size"), ExpertsShape(_router(config, decoder.hidden), width),
        width * config.integer("n_shared_experts"), _sparse_layers(config, decoder.layers), config.rope_theta(),
        config.natural("num_nextn_predict_layers", 0),
    )


def build(graphs: PackageGraphs, model: Glm4MoeLite) -> ModelShape:
    """Assemble the decoder; what the manifest says about its shape."""
    graph = graphs.begin("decoder")
    decoder, attention, options = model.decoder, model.attention, graph.options
    stack.decoder(
        graph, decoder,
        lambda: begin_latent_attention(graph, attention, decoder.positions(graph), model.rope_theta),
        lambda layer, x, state: latent_attention(graph, layer, f"model.layers.{layer}.self_attn", x, attention, state,
                                                 decoder.attention_gain),
        lambda layer, x: _feed_forward(graph, model, layer, x),
    )
    kv_heads, *widths = attention.cached(options.attention)
    return ModelShape(
        layers=decoder.layers, hidden_size=decoder.hidden, intermediate_size=model.intermediate,
        attention_heads=attention.heads, kv_heads=kv_heads, head_dim=attention.key,
        attention_width=attention.multiplied(options.attention), vocab_size=decoder.vocab,
        context_length=decoder.positions(graph), parameters=_parameters(model), embedding_precision=options.precision,
        lm_head_precision=options.precision,
        cache_bytes_per_token=decoder.layers * kv_heads * sum(widths) * options.dtype.itemsize, cache_in_place=False,
        experts=model.experts.router.experts, experts_per_token=model.experts.router.chosen,
        expert_intermediate_size=model.experts.width,
    )


def ignorable(model: Glm4MoeLite, name: str) -> bool:
    """Tensors that some checkpoints carry beside the weights, those of the extra layers among them."""
    extra = range(model.decoder.layers, model.decoder.layers + model.extra_layers)
    return stack.ignorable(model.decoder, name) or name.startswith(tuple(f"model.layers.{layer}." for layer in extra))


def _router(config: Config, hidden: int) -> RouterShape:
    experts, chosen = config.integer_of("n_routed_experts", "num_local_experts"), config.integer("num_experts_per_tok")
    groups, chosen_groups = config.integer_or("n_group", 1), config.integer_or("topk_group", 1)
    config.at_most("topk_group", chosen_groups, groups)
    if experts % groups or (groups > chosen_groups and experts // groups < 2):
        raise ExportError(f"{config.path}: {experts} experts do not make {groups} groups of at least two (`n_group`)")
    config.at_most("num_experts_per_tok", chosen, experts // groups * chosen_groups)
    return RouterShape(hidden, experts, chosen, config.flag("norm_topk_prob", True), sigmoid=True,
                       scale=config.number("routed_scaling_factor"), groups=groups, chosen_groups=chosen_groups)


def _sparse_layers(config: Config, layers: int) -> frozenset[int]:
    """From `mlp_layer_types` (transformers 5), or the number of dense layers before the first mixture."""
    types = config.values.get("mlp_layer_types")
    if types is None:
        return frozenset(range(config.natural("first_k_dense_replace", 1), layers))
    if not isinstance(types, list) or len(types) != layers or any(kind not in ("dense", "sparse") for kind in types):
        raise ExportError(f"{config.path}: `mlp_layer_types` must say `dense` or `sparse` of each of {layers} layers")
    return frozenset(layer for layer, kind in enumerate(types) if kind == "sparse")


def _feed_forward(graph: Graph, model: Glm4MoeLite, layer: int, x: str) -> str:
    name, source_name = f"/model/layers.{layer}/mlp", f"model.layers.{layer}.mlp"
    hidden, gain = model.decoder.hidden, model.decoder.feed_forward_gain
    if layer not in model.sparse_layers:
        return swiglu(graph, name, source_name, x, hidden, model.intermediate, gain)
    mixed = mixture(graph, name, source_name, x, model.experts, gain)
    shared = swiglu(graph, f"{name}/shared_experts", f"{source_name}.shared_experts", x, hidden, model.shared_width,
                    gain)
    return graph.node("Add", f"{name}/Add", [mixed, shared])


def _parameters(model: Glm4MoeLite) -> ParameterCount:
    decoder, router, expert = model.decoder, model.experts.router, model.experts.parameters
    sparse = len(model.sparse_layers)
    layer = model.attention.parameters + 2 * decoder.hidden
    always = (router.hidden + 1) * router.experts + 3 * decoder.hidden * model.shared_width
    multiplied = (decoder.layers * layer + decoder.hidden
                  + (decoder.layers - sparse) * 3 * decoder.hidden * model.intermediate
                  + sparse * (always + router.chosen * expert))
    return ParameterCount.of(multiplied, sparse * (router.experts - router.chosen) * expert, decoder.table,
                             decoder.tied)
