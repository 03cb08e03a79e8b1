"""Write a package: everything into a hidden folder beside its final place, which it takes when it is whole."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ortbench_export.errors import ExportError
from ortbench_export.manifest import PackageFile

MANIFEST = "manifest.json"
# Room that a filesystem needs beside the files themselves.
SPARE_BYTES = 16 << 20


@contextmanager
def package_folder(output: Path, needed_bytes: int, force: bool) -> Iterator[Path]:
    """A temporary folder that becomes `output` when the block ends well, and vanishes when it does not."""
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
        try:
            # An export that was killed may have left files here.
            for leftover in temporary.iterdir():
                leftover.unlink()
            _check_space(temporary, needed_bytes)
            yield temporary
            os.fsync(lock)
            _replace(temporary, output)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise ExportError(f"writing {output} failed: {error.strerror or error}",
                                  "nothing was left behind; make room or choose another `--output`") from error
            raise
    finally:
        os.close(lock)


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
    parent = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
