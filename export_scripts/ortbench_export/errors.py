"""The one exception that a user is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ExportError(Exception):
    """What failed, on which file or tensor, and why; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system reports inside the block is about reading this file."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}",
                          "check the file, and the disk that it is on") from error
