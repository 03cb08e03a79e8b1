"""How far an unfinished export has come, so that the next one of the same package goes on from there.

A file of JSON lines beside what is being written: whose export it is, then, again and again, how many bytes a file
has and their SHA-256. Nothing is synced on its behalf: whoever goes on reads the bytes again and trusts those that have
the recorded hash, so that a torn line, a truncated file or a crash of the machine costs time only.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

JOURNAL = "journal.jsonl"


class Mark(NamedTuple):
    """The first `bytes` bytes of a file have this SHA-256 (hex) once they are written."""

    bytes: int
    sha256: str


class Journal:
    """The journal at `path`. What it says is kept if it is of the export `identity`, and forgotten otherwise. Notes
    may come from several threads."""

    def __init__(self, path: Path, identity: str):
        self.path = path
        self._marks: dict[str, list[Mark]] = {}
        # SHA-256 of the checkpoint's files, as far as they were hashed.
        self.checkpoint_hashes: dict[str, str] = {}
        owner, *records = _read(path) or [None]
        ours = {"export": identity}
        self.forgotten = path.exists() and owner != ours
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if owner == ours else os.O_TRUNC), 0o644)
        if owner != ours:
            self._append(ours)
            return
        for record in records:
            if "file" in record:
                self._marks.setdefault(record["file"], []).append(Mark(record["bytes"], record["sha256"]))
            else:
                self.checkpoint_hashes[record["checkpoint"]] = record["sha256"]

    def marks(self, name: str) -> list[Mark]:
        """What was written of a file, shortest first."""
        return sorted(set(self._marks.get(name, [])))

    def mark(self, name: str, mark: Mark) -> None:
        """Note that a file has come so far."""
        self._marks.setdefault(name, []).append(mark)
        self._append({"file": name, "bytes": mark.bytes, "sha256": mark.sha256})

    def note_checkpoint_hash(self, name: str, sha256: str) -> None:
        self.checkpoint_hashes[name] = sha256
        self._append({"checkpoint": name, "sha256": sha256})

    def forget(self) -> None:
        """There is nothing to go on from."""
        self._marks.clear()
        self.checkpoint_hashes.clear()

    @property
    def files(self) -> set[str]:
        """Names of the files that have marks."""
        return set(self._marks)

    @property
    def done_bytes(self) -> int:
        """Bytes that need not be made again, all files together."""
        return sum(max(marks).bytes for marks in self._marks.values())

    def close(self) -> None:
        os.close(self._file)

    def _append(self, record: dict) -> None:
        # The line break comes first, so that a torn line before this one ends.
        os.write(self._file, f"\n{json.dumps(record)}".encode())


def export_identity(source: str, inputs: Iterable[bytes]) -> str:
    """Stands for everything that decides the bytes of the weights: their source, the other `inputs`, the program."""
    digest = hashlib.sha256(_program())
    for part in (source.encode(), *inputs):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


@cache
def _program() -> bytes:
    """The exporter's own files and numpy's version: either may change how a number is rounded."""
    root = Path(__file__).parent
    return b"\0".join([np.__version__.encode(), *(path.read_bytes() for path in sorted(root.rglob("*.py")))])


def _read(path: Path) -> list[dict]:
    """The whole lines of a journal."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
