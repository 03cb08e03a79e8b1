"""Memory is bounded by pieces, not by models: a checkpoint many times larger than what the exporter holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import qwen3_config, write_sparse_checkpoint

import ortbench_export

SCRIPTS = Path(ortbench_export.__file__).parents[1]


@pytest.mark.parametrize(("precision", "flavour"), [("int4", "fused"), ("int4", "plain"), ("fp16", "fused")])
def test_peak_memory_stays_below_half_of_the_checkpoint(tmp_path, precision, flavour):
    config = qwen3_config(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, head_dim=128,
                          num_attention_heads=16, vocab_size=200_000, tie_word_embeddings=False)
    checkpoint_bytes = write_sparse_checkpoint(tmp_path / "checkpoint", config)
    command = [sys.executable, "-m", "ortbench_export", "export", tmp_path / "checkpoint", "--output",
               tmp_path / "package", "--precision", precision, "--flavour", flavour]
    # wait4 tells this child's own peak, whatever other children did before.
    process = subprocess.Popen(command, cwd=SCRIPTS, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    peak_bytes = usage.ru_maxrss * 1024
    assert peak_bytes < checkpoint_bytes / 2, f"{peak_bytes / 1e6:.0f} MB for {checkpoint_bytes / 1e6:.0f} MB"
