"""What the command line asks for, checked and turned into the terms that blocks use."""

from dataclasses import dataclass

import numpy as np

from ortbench_export.errors import ExportError

PRECISIONS = ("fp32", "fp16", "int8", "int4")
FLAVOURS = ("fused", "plain")
ATTENTION_FORMS = ("expanded", "absorbed")
# Block size 64 falls on a slow path of the CPU kernels, so it is not offered.
BLOCK_SIZES = (32, 128)


@dataclass(frozen=True)
class Scheme:
    """Symmetric block-wise weight-only quantization: `block_size` inputs of one output row share one scale."""

    bits: int
    block_size: int
    # Whether every scale is a number that float16 holds exactly, so that it can be stored in two bytes without loss.
    half_scales: bool = False

    @property
    def zero_code(self) -> int:
        """The unsigned code that stands for zero."""
        return 1 << (self.bits - 1)

    def blocks(self, columns: int) -> int:
        """Number of scales of a row with `columns` inputs; the last block may be partly padding."""
        return -(-columns // self.block_size)


@dataclass(frozen=True)
class ExportOptions:
    """Every choice that shapes the written package."""

    precision: str = "fp32"
    flavour: str = "fused"
    block_size: int = 32
    accuracy_level: int = 4
    logits: str = "selected"
    activations: str | None = None
    context_length: int | None = None
    # Form of latent attention; None is `expanded`, and the only choice of other architectures.
    attention: str | None = None
    # `fp16` rounds the scales of blocks to numbers that float16 holds, before the codes are computed from them.
    scales: str = "fp32"

    def __post_init__(self):
        if self.activations not in (None, "fp32", "fp16"):
            raise ExportError(f"activations must be fp32 or fp16, not `{self.activations}`")
        if self.precision in ("fp32", "fp16") and self.activations not in (None, self.precision):
            raise ExportError(
                f"`--activations {self.activations}` does not go with `--precision {self.precision}`",
                "leave `--activations` out: fp32 and fp16 packages compute in their own type",
            )

    @property
    def fused(self) -> bool:
        return self.flavour == "fused"

    @property
    def scheme(self) -> Scheme | None:
        """The quantization of the matrices, or None where they are stored as floats."""
        bits = {"int8": 8, "int4": 4}.get(self.precision)
        return Scheme(bits, self.block_size, self.scales == "fp16") if bits else None

    @property
    def activation_name(self) -> str:
        """`fp32` or `fp16`."""
        return self.activations or ("fp16" if self.precision == "fp16" else "fp32")

    @property
    def dtype(self) -> np.dtype:
        """Of activations, of the cache, and of weights that are not quantized."""
        return np.dtype(np.float16 if self.activation_name == "fp16" else np.float32)

    def describe(self) -> dict:
        """The options as the manifest lists them."""
        quantized = self.scheme is not None
        return {
            "precision": self.precision,
            "flavour": self.flavour,
            "block_size": self.block_size if quantized else None,
            "accuracy_level": self.accuracy_level if quantized and self.fused else None,
            "activations": self.activation_name,
            "logits": self.logits,
            "context_length": self.context_length,
            "attention": self.attention,
            "scales": self.scales if quantized else None,
        }
