"""What the parity tests of every architecture share."""

import signal
from functools import cache
from pathlib import Path

import pytest
from golden_cases import load_case

from ortbench_export.export import Destination, export_checkpoint
from ortbench_export.options import ExportOptions

# A shell without job control starts background jobs with SIGINT ignored, and their children inherit that: exports that
# the tests interrupt would not notice.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = Path(__file__).parents[2] / "models" / "qwen3-tiny"


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Exports on demand, each once."""
    root = tmp_path_factory.mktemp("packages")

    @cache
    def package(name: str, options: ExportOptions):
        output = root / f"{len(list(root.iterdir()))}"
        export_checkpoint(load_case(name).folder, Destination(output), options, threads=1)
        return output

    return package
