"""Write a package: everything into a hidden folder beside its final place, which it takes when it is whole.

What an export that ended early has written stays in that folder, with its journal, for the next one to go on from.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ortbench_export.errors import ExportError
from ortbench_export.journal import JOURNAL, Journal
from ortbench_export.manifest import PackageFile

MANIFEST = "manifest.json"
# Room that a filesystem needs beside the files themselves.
SPARE_BYTES = 16 << 20


@contextmanager
def package_folder(output: Path, needed_bytes: int, force: bool, identity: str) -> Iterator[tuple[Path, Journal]]:
    """A temporary folder, and its journal, that becomes `output` when the block ends well. When it does not, the folder
    stays if there is something to go on from, for an export of the same `identity`, and vanishes otherwise."""
    output = output.absolute()
    _check_output(output, force)
    temporary = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(exist_ok=True)
        lock = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise ExportError(f"cannot create {temporary}: {error.strerror}", "choose another `--output`") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ExportError(f"another export is writing {output}", "wait for it, or choose another `--output`") \
                from None
        yield from _fill(temporary, output, needed_bytes, identity)
    finally:
        os.close(lock)


def _fill(temporary: Path, output: Path, needed_bytes: int, identity: str) -> Iterator[tuple[Path, Journal]]:
    """The part of `package_folder` that has the folder for itself."""
    journal = Journal(temporary / JOURNAL, identity)
    try:
        if journal.forgotten:
            print(f"note: what lies in {temporary} is of another export and is removed", file=sys.stderr)
        for leftover in temporary.iterdir():
            if leftover.name not in {JOURNAL, *journal.files}:
                leftover.unlink()
        _check_space(temporary, needed_bytes - journal.done_bytes)
        yield temporary, journal
        journal.path.unlink()
        _sync_folder(temporary)
        _replace(temporary, output)
    except BaseException as error:
        left = "nothing was left behind"
        if journal.done_bytes:
            left = (f"{100 * journal.done_bytes // needed_bytes} % is done and stays in {temporary}: run the same "
                    "command again to go on, or remove that folder")
        else:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise ExportError(f"writing {output} failed: {error.strerror or error}",
                              f"make room or choose another `--output`; {left}") from error
        if isinstance(error, ExportError) and journal.done_bytes:
            raise ExportError(error.message, "; ".join(filter(None, [error.hint, left]))) from error
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(left) from None
        raise
    finally:
        journal.close()


def write_file(folder: Path, name: str, content: bytes) -> PackageFile:
    """Write one small file, synced before it takes its name."""
    temporary = folder / f".{name}.partial"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / name)
    return PackageFile(name, len(content), hashlib.sha256(content).hexdigest())


def write_manifest(folder: Path, values: dict) -> None:
    """The last file of a package."""
    write_file(folder, MANIFEST, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _check_output(output: Path, force: bool) -> None:
    if not output.exists() and not output.is_symlink():
        return
    if not force:
        raise ExportError(f"{output} exists already", "remove it, choose another `--output`, or pass `--force`")
    is_package = output.is_dir() and ((output / MANIFEST).is_file() or not any(output.iterdir()))
    if not is_package:
        raise ExportError(f"{output} is not a package, so `--force` does not replace it", "choose another `--output`")


def _check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise ExportError(
            f"the package needs {needed_bytes / 1e9:.2f} GB and {folder.parent} has {free / 1e9:.2f} GB free",
            "make room, or choose an `--output` on another disk",
        )


def _replace(temporary: Path, output: Path) -> None:
    if not output.exists():
        temporary.rename(output)
    else:
        old = output.with_name(f".{output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
        temporary.rename(output)
        shutil.rmtree(old)
    _sync_folder(output.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
