"""The architectures this exporter knows, by the class that `config.json` names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ortbench_export.architectures import glm4_moe_lite, qwen3, qwen3_moe, qwen3_vl
from ortbench_export.config import Config
from ortbench_export.errors import ExportError
from ortbench_export.graph import PackageGraphs
from ortbench_export.options import ExportOptions
from ortbench_export.shape import ModelShape


@dataclass(frozen=True)
class Architecture:
    """How one architecture is read from its configuration and built; `read`'s result is passed to the others."""

    describes: str
    read: Callable[[Config, bool | None], Any]
    build: Callable[[PackageGraphs, Any], ModelShape]
    ignorable: Callable[[Any, str], bool]
    latent_attention: bool = False


ARCHITECTURES = {
    "Qwen3ForCausalLM": Architecture("Qwen3, dense", qwen3.read, qwen3.build, qwen3.ignorable),
    "Qwen3MoeForCausalLM": Architecture("Qwen3, mixture of experts", qwen3_moe.read, qwen3_moe.build,
                                        qwen3_moe.ignorable),
    "Qwen3VLForConditionalGeneration": Architecture("Qwen3-VL, dense, text and images", qwen3_vl.read, qwen3_vl.build,
                                                    qwen3_vl.ignorable),
    "Glm4MoeLiteForCausalLM": Architecture("GLM-4.7-Flash, mixture of experts with latent attention",
                                           glm4_moe_lite.read, glm4_moe_lite.build, glm4_moe_lite.ignorable,
                                           latent_attention=True),
}


def find_architecture(config: Config, options: ExportOptions) -> Architecture:
    """The registry's row for a configuration, or an error that lists those known or an option that does not apply."""
    name = config.architecture()
    if name not in ARCHITECTURES:
        raise ExportError(f"{config.path}: architecture `{name}` is not known",
                          f"known architectures: {', '.join(sorted(ARCHITECTURES))}")
    architecture = ARCHITECTURES[name]
    if options.attention is not None and not architecture.latent_attention:
        raise ExportError(f"`{name}` has no latent attention, so `--attention {options.attention}` does not apply",
                          "leave `--attention` out")
    return architecture
