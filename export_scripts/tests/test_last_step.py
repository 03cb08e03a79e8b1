"""A package takes its name in two renames; whatever fails or ends there loses neither the old one nor the new one."""

import os
from pathlib import Path

import pytest
from golden_cases import GOLDEN

from ortbench_export import cli, package

CHECKPOINT = GOLDEN / "qwen3-grouped-tied"


@pytest.fixture
def export(tmp_path, capsys):
    """Export over `package`: exit code and messages."""

    def run(*more: str, force: bool = True) -> tuple[int, str]:
        code = cli.main(["export", str(CHECKPOINT), "--output", str(tmp_path / "package"), *more,
                         *(["--force"] if force else [])])
        return code, capsys.readouterr().err

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def manifest(tmp_path: Path) -> bytes:
    return (tmp_path / "package" / "manifest.json").read_bytes()


@pytest.mark.parametrize(("error", "code"), [(OSError(5, "Input/output error"), 2), (KeyboardInterrupt(), 130)])
@pytest.mark.parametrize("failing", ["package", ".package.partial"])
def test_a_failing_rename_keeps_both(tmp_path, export, monkeypatch, failing, error, code):
    export()
    before, rename = manifest(tmp_path), Path.rename

    def faulty(self, target):
        if self.name == failing:
            raise error
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", faulty)
        result, message = export("--precision", "int4")
    assert result == code
    assert "% is done and stays in" in message
    assert manifest(tmp_path) == before
    assert names(tmp_path) == [".package.partial", "package"]
    result, message = export("--precision", "int4")
    assert result == 0
    assert "going on at" in message
    assert manifest(tmp_path) != before
    assert names(tmp_path) == ["package"]


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), KeyboardInterrupt()])
def test_what_fails_behind_the_rename_is_no_failure(tmp_path, export, monkeypatch, error):
    export()

    def faulty(_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(package.shutil, "rmtree", faulty)
        result, message = export("--precision", "int4")
    assert result == 0
    assert f"note: {tmp_path / '.package.old'}, the package that was replaced, is not removed yet" in message
    assert b'"int4"' in manifest(tmp_path)
    assert names(tmp_path) == [".package.old", "package"]
    assert export()[0] == 0
    assert names(tmp_path) == ["package"]


def test_an_export_killed_between_the_renames_leaves_the_old_package(tmp_path, export):
    export()
    before = manifest(tmp_path)
    (tmp_path / "package").rename(tmp_path / ".package.old")
    result, message = export(force=False)
    assert result == 2
    assert "exists already" in message
    assert manifest(tmp_path) == before
    assert names(tmp_path) == ["package"]


def test_a_folder_that_another_export_has_just_finished_is_not_written(tmp_path, export, monkeypatch):
    flock = package.fcntl.flock

    def late(handle, operation):
        os.rename(tmp_path / ".package.partial", tmp_path / "package")
        flock(handle, operation)

    monkeypatch.setattr(package.fcntl, "flock", late)
    result, message = export()
    assert result == 2
    assert "another export is writing" in message
    assert names(tmp_path / "package") == []


def test_a_journal_that_cannot_be_opened_is_one_message(tmp_path, export):
    (tmp_path / ".package.partial" / "journal.jsonl").mkdir(parents=True)
    result, message = export()
    assert result == 2
    assert "failed: Is a directory" in message
    assert names(tmp_path) == [".package.partial"]
