"""Read Hugging Face checkpoints: `config.json` beside one or several safetensors files.

Tensors are read with positioned reads into fresh arrays, never mapped, so that resident memory is what the caller
asked for and not what the kernel chose to keep.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ortbench_export.config import read_json
from ortbench_export.errors import ExportError, reading
from ortbench_export.floats import BFLOAT16
from ortbench_export.journal import Journal

INDEX = "model.safetensors.index.json"
FLOAT_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16}
BYTES_PER_ELEMENT = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# The format allows 100 MB of header; anything above it is not a safetensors file.
LARGEST_HEADER_BYTES = 100_000_000
HASHED_BLOCK_BYTES = 4 << 20
# Hashing runs at most so far ahead of the export: it fetches what the export reads soon, and both find it in memory.
LEAD_BYTES = 2 << 30
SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `offset` counts bytes from the start of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """A folder's tensors by name. Opening reads headers only."""

    def __init__(self, folder: Path):
        self.folder = folder
        weight_map = _weight_map(folder)
        self.files = _weight_files(folder, weight_map)
        self.entries: dict[str, Entry] = {}
        for file in self.files:
            for name, entry in _read_header(file).items():
                if name in self.entries:
                    raise ExportError(f"tensor `{name}` stands in both {self.entries[name].file} and {file}",
                                      "keep one copy of the checkpoint's shards in the folder")
                self.entries[name] = entry
        _check_index(folder, weight_map or {}, self.entries)
        self._handles: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._read_bytes = 0

    def rows(self, name: str, start: int, stop: int, columns: int) -> np.ndarray:
        """Rows `start:stop` of a tensor as they are stored (see `widen`), `[stop - start, columns]` whatever axes it
        has: a row is the next `columns` numbers. Safe from several threads."""
        entry = self.entries[name]
        stored = FLOAT_TYPES[entry.dtype]
        raw = np.empty((stop - start) * columns, dtype=stored)
        self._read_into(entry.file, raw, entry.offset + start * columns * stored.itemsize, name)
        return raw.reshape(stop - start, columns)

    def identity(self) -> str:
        """The weight files as the filesystem describes them: names, sizes, and when they were changed."""
        described = []
        for file in self.files:
            with reading(file):
                status = file.stat()
            described.append((file.name, status.st_size, status.st_mtime_ns))
        return json.dumps(described)

    def revision(self, stop: threading.Event, hurry: threading.Event, journal: Journal) -> str | None:
        """`sha256:` over the sorted list of weight files and their hashes; None once `stop` is set. Keeps step with the
        readers of tensors until `hurry` is set. Hashes that the journal knows are not taken again."""
        index, hashed_bytes, block = hashlib.sha256(), 0, memoryview(bytearray(HASHED_BLOCK_BYTES))
        for file in self.files:
            if file.name not in journal.checkpoint_hashes:
                digest = hashlib.sha256()
                with reading(file), open(file, "rb", buffering=0) as handle:
                    while count := handle.readinto(block):
                        digest.update(block[:count])
                        hashed_bytes += count
                        while hashed_bytes > self._read_bytes + LEAD_BYTES and not hurry.wait(SECONDS_BETWEEN_LOOKS):
                            pass
                        if stop.is_set():
                            return None
                journal.note_checkpoint_hash(file.name, digest.hexdigest())
            index.update(f"{file.name} {journal.checkpoint_hashes[file.name]}\n".encode())
        return f"sha256:{index.hexdigest()}"

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _read_into(self, file: Path, array: np.ndarray, offset: int, name: str) -> None:
        with self._lock, reading(file):
            if file not in self._handles:
                self._handles[file] = os.open(file, os.O_RDONLY)
            handle = self._handles[file]
            self._read_bytes += array.nbytes
        view = memoryview(array).cast("B")
        while view:
            with reading(file):
                count = os.preadv(handle, [view], offset)
            if count == 0:
                raise ExportError(f"{file} ended while tensor `{name}` was read", "the file changed: fetch it again")
            view = view[count:]
            offset += count


@contextmanager
def revision_of(checkpoint: Checkpoint | None, journal: Journal) -> Iterator[Callable[[], str | None]]:
    """Take the revision in the background while the block runs, which reads the same bytes in another order; what is
    yielded waits for it. None of no checkpoint."""
    if checkpoint is None:
        yield lambda: None
        return
    stop, hurry = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as background:
        revision = background.submit(checkpoint.revision, stop, hurry, journal)

        def wait() -> str | None:
            hurry.set()
            return revision.result()

        try:
            yield wait
        finally:
            stop.set()
            hurry.set()


def _weight_map(folder: Path) -> dict[str, str] | None:
    """File names by tensor, from the index of a sharded checkpoint."""
    index = folder / INDEX
    if not index.is_file():
        return None
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise ExportError(f"{index} is not a weights index: `weight_map` must be an object", "fetch the file again")
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ExportError(f"{index} is not a weights index: `weight_map.{name}` must be a file's name, not "
                              f"{file!r}", "fetch the file again")
    return files


def _weight_files(folder: Path, weight_map: dict[str, str] | None) -> list[Path]:
    """The folder's safetensors files, sorted by name; shards are listed by their index where there is one."""
    if weight_map is None:
        files = sorted(folder.glob("*.safetensors"))
    else:
        files = [folder / name for name in sorted(set(weight_map.values()))]
    if not files:
        raise ExportError(
            f"{folder} holds no safetensors file",
            "name a folder with `config.json` and `model.safetensors`; convert .bin checkpoints with the "
            "safetensors package first",
        )
    for file in files:
        if not file.is_file():
            raise ExportError(f"{file} is missing, though {INDEX} names it", "fetch the missing shard")
    return files


def _check_index(folder: Path, weight_map: dict[str, str], entries: dict[str, Entry]) -> None:
    for name, file in sorted(weight_map.items()):
        if name not in entries:
            raise ExportError(f"{folder / file} lacks tensor `{name}`, though {INDEX} places it there",
                              "the shard belongs to another revision: fetch it again")


def _read_header(file: Path) -> dict[str, Entry]:
    truncated = "the file is truncated or damaged: fetch it again and compare its size with the source's"
    with reading(file), open(file, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        prefix = handle.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, LARGEST_HEADER_BYTES):
            raise ExportError(f"{file} ({size} bytes) is no whole safetensors file: its header does not fit", truncated)
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise ExportError(f"{file} has a header that is not safetensors JSON: {error}", truncated) from error
    if not isinstance(header, dict):
        raise ExportError(f"{file} has a header that is not safetensors JSON: it must be an object", truncated)
    header.pop("__metadata__", None)
    result = {}
    for name, value in header.items():
        match value:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
                    0 <= begin <= end and all(type(each) is int and each >= 0 for each in shape)):
                pass
            case _:
                raise ExportError(f"tensor `{name}` in {file} has no type, shape and range of bytes: {value}",
                                  truncated)
        if dtype in BYTES_PER_ELEMENT and end - begin != prod(shape) * BYTES_PER_ELEMENT[dtype]:
            raise ExportError(f"tensor `{name}` in {file}: {end - begin} bytes do not hold {dtype} {shape}", truncated)
        if 8 + length + end > size:
            raise ExportError(f"{file} ends at byte {size}, before tensor `{name}` does ({8 + length + end})",
                              truncated)
        result[name] = Entry(file, dtype, tuple(shape), 8 + length + begin)
    return result
