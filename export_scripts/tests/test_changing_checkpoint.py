"""What happens to a checkpoint while it is read is said of the checkpoint, not of the package."""

import errno
import os
import shutil

import pytest
from golden_cases import GOLDEN

from ortbench_export import checkpoint as reader
from ortbench_export import cli
from ortbench_export.progress import Progress


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(GOLDEN / "qwen3-one-kv-head-sharded", tmp_path / "checkpoint")


@pytest.fixture
def message(tmp_path, checkpoint, monkeypatch, capsys):
    """Export while `change` happens, once, after the first bytes: the message."""

    def run(change) -> str:
        changes, advance = [change], Progress.advance

        def faulty(self, count):
            advance(self, count)
            if changes:
                changes.pop()()

        monkeypatch.setattr(Progress, "advance", faulty)
        assert cli.main(["export", str(checkpoint), "--output", str(tmp_path / "package")]) == 2
        return capsys.readouterr().err

    return run


def test_a_shard_that_vanishes(message, checkpoint):
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    text = message(shard.unlink)
    assert f"error: {shard} cannot be read: No such file or directory\n  hint: check the file" in text


def test_a_disk_that_fails(message, checkpoint, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    text = message(lambda: monkeypatch.setattr(reader.os, "preadv", fail))
    assert f"error: {checkpoint / 'model-0000'}" in text
    assert "cannot be read: Input/output error" in text


def test_a_shard_that_changes(message, checkpoint, tmp_path):
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    text = message(lambda: os.utime(shard, ns=(0, 0)))
    assert f"error: the checkpoint in {checkpoint} changed while it was read" in text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
