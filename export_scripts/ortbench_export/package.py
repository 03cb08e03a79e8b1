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
from contextlib import contextmanager, suppress
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
            alone = False
        else:
            # Another export may have finished since the folder was opened, and renamed it.
            alone = _stands_at(lock, temporary)
        if not alone:
            raise ExportError(f"another export is writing {output}", "wait for it, or choose another `--output`")
        yield from _fill(temporary, lock, output, needed_bytes, force, identity)
    finally:
        os.close(lock)


def _fill(temporary: Path, lock: int, output: Path, needed_bytes: int, force: bool,
          identity: str) -> Iterator[tuple[Path, Journal]]:
    """The part of `package_folder` that has the folder for itself."""
    journal, whole, fresh = None, False, not any(temporary.iterdir())
    try:
        _settle(output)
        _check_output(output, force)
        journal = Journal(temporary / JOURNAL, identity)
        if journal.forgotten:
            print(f"note: what lies in {temporary} is of another export and is removed", file=sys.stderr)
        for leftover in temporary.iterdir():
            if leftover.name not in {JOURNAL, *journal.files}:
                leftover.unlink()
        _check_space(temporary, needed_bytes - journal.done_bytes)
        yield temporary, journal
        whole = True
        _sync_folder(temporary)
        _place(temporary, output)
    except BaseException as error:
        if whole and _stands_at(lock, output):
            # Only tidying was cut short; the next export does it.
            return
        with suppress(OSError):
            _settle(output)
        done, left = journal.done_bytes if journal else 0, "nothing was left behind"
        if done:
            left = (f"{100 * done // needed_bytes} % is done and stays in {temporary}: run the same command again to "
                    "go on, or remove that folder")
        elif journal or fresh:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            left = f"{temporary} stays as it was"
        if isinstance(error, OSError):
            raise ExportError(f"writing {output} failed: {error.strerror or error}",
                              f"make room or choose another `--output`; {left}") from error
        if isinstance(error, ExportError) and done:
            raise ExportError(error.message, "; ".join(filter(None, [error.hint, left]))) from error
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(left) from None
        raise
    finally:
        if journal:
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


def _place(temporary: Path, output: Path) -> None:
    """Give the package its name. It is there with the second rename, and what comes after must not fail any more."""
    old = _old(output)
    if output.exists():
        output.rename(old)
    temporary.rename(output)
    with suppress(OSError, KeyboardInterrupt):
        (output / JOURNAL).unlink(missing_ok=True)
        _sync_folder(output.parent)
        _settle(output)
    if old.exists():
        print(f"note: {old}, the package that was replaced, is not removed yet", file=sys.stderr)


def _settle(output: Path) -> None:
    """Finish what an export that ended within `_place` had begun: the old package comes back unless there is a new."""
    old = _old(output)
    if old.is_symlink() and output.exists():
        old.unlink()
    elif old.exists() and output.exists():
        shutil.rmtree(old)
    elif old.exists():
        old.rename(output)


def _old(output: Path) -> Path:
    """Where a package is while another takes its place."""
    return output.with_name(f".{output.name}.old")


def _stands_at(folder: int, path: Path) -> bool:
    """Whether an open folder has this path."""
    try:
        return os.path.samestat(os.fstat(folder), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
