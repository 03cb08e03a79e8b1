"""An export that ended early goes on where it was, and what it writes in the end is what it would have written."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden_cases import GOLDEN
from synthetic import qwen3_config, write_sparse_checkpoint

from ortbench_export import cli
from ortbench_export.progress import Progress

SCRIPTS = Path(cli.__file__).parents[1]
SHARDED = GOLDEN / "qwen3-one-kv-head-sharded"
# Runs the command line and sends itself a signal when so many bytes were handed over.
FAULTY = """
import os, sys
from ortbench_export import cli
from ortbench_export.progress import Progress
number, at, advance = int(sys.argv[1]), int(sys.argv[2]), Progress.advance
def faulty(self, count):
    advance(self, count)
    if self.done_bytes >= at:
        os.kill(os.getpid(), number)
Progress.advance = faulty
sys.exit(cli.main(sys.argv[3:]))
"""


def arguments(output: Path, *more) -> list[str]:
    return [str(each) for each in ("export", SHARDED, "--output", output, "--precision", "int4", *more)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What an export that nothing disturbs writes."""
    output = tmp_path_factory.mktemp("whole") / "package"
    assert cli.main(arguments(output)) == 0
    return content(output)


@pytest.fixture
def interrupt(tmp_path, monkeypatch, capsys):
    """Run an export that is interrupted when `at` bytes were handed over: its message."""

    def run(at: int, command: list[str]) -> str:
        with monkeypatch.context() as patch:
            advance = Progress.advance

            def faulty(self, count):
                advance(self, count)
                if self.done_bytes >= at:
                    raise KeyboardInterrupt

            patch.setattr(Progress, "advance", faulty)
            assert cli.main(command) == 130
        return capsys.readouterr().err

    return run


def data_bytes(whole: dict[str, bytes], share: float) -> int:
    return int(len(whole["model.onnx.data"]) * share)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_the_same_command_goes_on_after_a_signal(tmp_path, whole, capsys, number, code, share):
    output, at = tmp_path / "package", data_bytes(whole, share)
    command = [sys.executable, "-c", FAULTY, str(int(number)), str(at), *arguments(output)]
    result = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".package.partial"]
    if code == 130:
        assert "run the same command again to go on" in result.stderr
        assert "Traceback" not in result.stderr
    assert cli.main(arguments(output)) == 0
    assert "going on at" in capsys.readouterr().err
    assert content(output) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_an_export_may_be_interrupted_again_and_again(tmp_path, whole, interrupt):
    output, done = tmp_path / "package", []
    for share in (0.2, 0.5, 0.8):
        interrupt(data_bytes(whole, share), arguments(output))
        done.append(done_bytes(tmp_path))
    assert done == sorted(set(done))
    assert cli.main(arguments(output)) == 0
    assert content(output) == whole


def done_bytes(tmp_path: Path) -> int:
    lines = (tmp_path / ".package.partial" / "journal.jsonl").read_text().split("\n")
    return max(json.loads(line).get("bytes", 0) for line in lines if line)


def test_a_whole_model_is_interrupted_while_it_is_written(tmp_path):
    """No fault is built in here: a real signal at a moment of its own, at full speed."""
    command = [sys.executable, "-m", "ortbench_export", "export", "--random-weights", "--config",
               SCRIPTS / "configs" / "qwen3-4b.json", "--precision", "int4", "--output", tmp_path / "package"]
    process = subprocess.Popen(command, cwd=SCRIPTS, stderr=subprocess.PIPE, text=True)
    data = tmp_path / ".package.partial" / "model.onnx.data"
    while not (data.is_file() and data.stat().st_size > 300 << 20):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"% is done and stays in {tmp_path / '.package.partial'}" in message
    assert not (tmp_path / "package").exists()
    shutil.rmtree(tmp_path / ".package.partial")


def test_nothing_is_left_of_an_export_that_had_not_come_far(tmp_path, interrupt):
    message = interrupt(1, arguments(tmp_path / "package"))
    assert message.endswith("interrupted: nothing was left behind\n")
    assert list(tmp_path.iterdir()) == []


def truncate(partial: Path) -> None:
    with open(partial / "model.onnx.data", "r+b") as file:
        file.truncate(done_bytes(partial.parent) - 1)


def flip(partial: Path) -> None:
    with open(partial / "model.onnx.data", "r+b") as file:
        file.seek(done_bytes(partial.parent) // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def remove(partial: Path) -> None:
    (partial / "model.onnx.data").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, remove])
def test_damage_is_found_and_written_again(tmp_path, whole, interrupt, capsys, damage):
    interrupt(data_bytes(whole, 0.7), arguments(tmp_path / "package"))
    damage(tmp_path / ".package.partial")
    assert cli.main(arguments(tmp_path / "package")) == 0
    assert "is damaged behind byte" in capsys.readouterr().err
    assert content(tmp_path / "package") == whole


@pytest.mark.parametrize("keep", [0, 40, -1, -30])
def test_a_torn_journal_costs_time_only(tmp_path, whole, interrupt, keep):
    interrupt(data_bytes(whole, 0.7), arguments(tmp_path / "package"))
    journal = tmp_path / ".package.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:keep])
    assert cli.main(arguments(tmp_path / "package")) == 0
    assert content(tmp_path / "package") == whole


@pytest.mark.parametrize("more", [["--block-size", "128"], ["--flavour", "plain"], ["--precision", "int8"]])
def test_other_options_begin_anew(tmp_path, whole, interrupt, capsys, more):
    interrupt(data_bytes(whole, 0.7), arguments(tmp_path / "package"))
    assert cli.main(arguments(tmp_path / "package", *more)) == 0
    assert "is of another export and is removed" in capsys.readouterr().err
    assert cli.main(arguments(tmp_path / "fresh", *more)) == 0
    assert content(tmp_path / "package") == content(tmp_path / "fresh")


def test_another_checkpoint_begins_anew(tmp_path, interrupt, capsys):
    config, checkpoint = qwen3_config(), tmp_path / "checkpoint"
    write_sparse_checkpoint(checkpoint, config)
    command = ["export", str(checkpoint), "--output", str(tmp_path / "package")]
    interrupt(100_000, command)
    with open(checkpoint / "model.safetensors", "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\x3f" * 100)
    assert cli.main(command) == 0
    assert "is of another export and is removed" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "fresh")]) == 0
    assert content(tmp_path / "package") == content(tmp_path / "fresh")


def test_random_weights_go_on_with_their_own_seed_only(tmp_path, interrupt, capsys):
    (tmp_path / "shape.json").write_text(json.dumps(qwen3_config()))

    def command(name: str, seed: int) -> list[str]:
        return ["export", "--random-weights", "--config", str(tmp_path / "shape.json"), "--seed", str(seed), "--output",
                str(tmp_path / name)]

    interrupt(200_000, command("package", 1))
    assert cli.main(command("package", 1)) == 0
    assert "going on at" in capsys.readouterr().err
    assert cli.main(command("fresh", 1)) == 0
    assert content(tmp_path / "package") == content(tmp_path / "fresh")
    interrupt(200_000, command("other", 1))
    assert cli.main(command("other", 2)) == 0
    assert "is of another export and is removed" in capsys.readouterr().err
    assert content(tmp_path / "other")["model.onnx.data"] != content(tmp_path / "fresh")["model.onnx.data"]


def test_a_full_disk_is_no_reason_to_begin_anew(tmp_path, capsys):
    """The kernel refuses to let the file grow, as it does on a full disk or beyond a quota."""
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "package"
    write_sparse_checkpoint(checkpoint, qwen3_config(num_hidden_layers=8, tie_word_embeddings=False))
    command = f"ulimit -f 512; exec {sys.executable} -m ortbench_export export {checkpoint} --output {output}"
    result = subprocess.run(["bash", "-c", command], cwd=SCRIPTS, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert f"error: writing {output} failed: File too large\n  hint: make room" in result.stderr
    assert "% is done and stays in" in result.stderr
    for path in (output, tmp_path / "fresh"):
        assert cli.main(["export", str(checkpoint), "--output", str(path)]) == 0
    assert "going on at" in capsys.readouterr().err
    assert content(output) == content(tmp_path / "fresh")
