"""What fixtures/make_synthetic_checkpoint.py writes can be exported, whatever the architecture."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden_cases import GOLDEN

from ortbench_export import cli

SCRIPT = Path(__file__).parents[1] / "fixtures" / "make_synthetic_checkpoint.py"


@pytest.mark.parametrize("name", ["qwen3-grouped-tied", "qwen3-moe-per-expert", "glm4-moe-lite-groups",
                                  "qwen3-vl-grouped-tied"])
def test_shortened_checkpoint_can_be_exported(tmp_path, name):
    shutil.copy(GOLDEN / name / "config.json", tmp_path / "config.json")
    command = [sys.executable, SCRIPT, "--config", tmp_path / "config.json", "--layers", "1", "--out", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    assert cli.main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "package")]) == 0
    manifest = json.loads((tmp_path / "package" / "manifest.json").read_text())
    assert manifest["shape"]["layers"] == 1
    if manifest["image"]:
        assert manifest["image"]["deepstack"] == 1
        assert manifest["image"]["max_pixels"] == 16_777_216
