"""The command line. Exit codes: 0 done, 2 an input or an option is wrong, 130 interrupted."""

import argparse
import signal
import sys
from pathlib import Path

from ortbench_export import __version__
from ortbench_export.errors import ExportError
from ortbench_export.export import Destination, export_checkpoint, export_random
from ortbench_export.options import ATTENTION_FORMS, BLOCK_SIZES, FLAVOURS, PRECISIONS, ExportOptions
from ortbench_export.registry import ARCHITECTURES

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if given.command == "architectures":
            for name, architecture in sorted(ARCHITECTURES.items()):
                print(f"{name}\t{architecture.describes}")
        else:
            _export(given, parser)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {interrupt or 'nothing was left behind'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _export(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    options = ExportOptions(given.precision, given.flavour, given.block_size, given.accuracy_level, given.logits,
                            given.activations, given.context_length, given.attention, given.scales)
    destination = Destination(given.output, given.force)
    if given.random_weights:
        if given.checkpoint is not None or given.config is None:
            parser.error("--random-weights takes --config FILE and no CHECKPOINT")
        export_random(given.config, given.seed, destination, options, given.model_id)
    else:
        if given.checkpoint is None or given.config is not None:
            parser.error("name a CHECKPOINT folder, or --random-weights with --config FILE")
        export_checkpoint(given.checkpoint, destination, options, given.model_id)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ortbench_export", description="Export language models to ONNX packages.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("architectures", help="list the architectures that can be exported")
    export = commands.add_parser("export", help="write one package")
    export.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT",
                        help="a Hugging Face checkpoint folder: config.json and safetensors files")
    export.add_argument("--output", required=True, type=Path, metavar="DIR", help="the package's folder")
    export.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the matrices (default: fp32)")
    export.add_argument("--flavour", choices=FLAVOURS, default="fused",
                        help="fused: ONNX Runtime's contrib operators; plain: standard operators (default: fused)")
    export.add_argument("--block-size", type=int, choices=BLOCK_SIZES, default=32,
                        help="inputs that share one scale in int8 and int4 (default: 32)")
    export.add_argument("--accuracy-level", type=int, choices=range(5), default=4,
                        help="of MatMulNBits: 4 lets kernels quantize activations to int8, 0 never (default: 4)")
    export.add_argument("--scales", choices=("fp32", "fp16"), default="fp32",
                        help="of int8 and int4 blocks; fp16 rounds them so that two bytes hold them (default: fp32)")
    export.add_argument("--activations", choices=("fp32", "fp16"),
                        help="type of activations and cache in int8 and int4 packages (default: fp32)")
    export.add_argument("--logits", choices=("selected", "all"), default="selected",
                        help="of the positions that the input logits_positions names, or of all (default: selected)")
    export.add_argument("--context-length", type=_positive, metavar="N",
                        help="shorten the rotary tables to N positions (default: as config.json says)")
    export.add_argument("--attention", choices=ATTENTION_FORMS,
                        help="latent attention only: cache keys and values of every head, or the latent that they are "
                        "made of (default: expanded)")
    export.add_argument("--model-id", metavar="NAME", help="the model's name (default: the folder's)")
    export.add_argument("--random-weights", action="store_true", help="draw weights instead of reading a checkpoint")
    export.add_argument("--config", type=Path, metavar="FILE",
                        help="the config.json that gives random weights their shape")
    export.add_argument("--seed", type=_natural, default=0, metavar="N", help="of random weights (default: 0)")
    export.add_argument("--force", action="store_true", help="replace a package that exists")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a natural number")
    return int(text)


def _interrupt(_signal, _frame):
    raise KeyboardInterrupt
