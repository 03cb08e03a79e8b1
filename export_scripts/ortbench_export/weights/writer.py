"""Stream a plan to its file: one pass, in order, hashed on the way, no more than a few chunks in memory."""

import hashlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import numpy as np

from ortbench_export.journal import Journal, Mark
from ortbench_export.progress import Progress
from ortbench_export.weights.plan import Plan

READ_BYTES = 4 << 20


def write_plan(plan: Plan, path: Path, journal: Journal, progress: Progress) -> str:
    """Write every planned tensor to `path`, sync it, and return the file's SHA-256 in hex.

    What is there already, as far as the journal vouches for it, is not made again. Every production that was written
    is marked in the journal.
    """
    # Writing and hashing release the interpreter's lock; one helper thread overlaps them with the making of the next
    # chunk, and waiting for it before handing over another keeps memory bounded.
    with open(path, "a+b", buffering=0) as file, ThreadPoolExecutor(1) as background:
        pending: Future = background.submit(lambda: None)
        marks = journal.marks(path.name)
        if marks:
            progress.note("checking what is there")
        position, digest = _written(file, path, marks)
        progress.resume(position)

        def in_background(work: Callable, *arguments) -> None:
            nonlocal pending
            pending.result()
            pending = background.submit(work, *arguments)

        def store(data: memoryview) -> None:
            digest.update(data)
            while data:
                data = data[file.write(data) :]

        def mark(position: int) -> None:
            journal.mark(path.name, Mark(position, digest.hexdigest()))

        def hand_over(data: memoryview) -> None:
            in_background(store, data)
            progress.advance(len(data))

        for production in plan.productions:
            if plan.end(production) <= position:
                continue
            chunks = production.chunks()
            for tensor in production.tensors:
                offset = plan.placements[tensor.name].offset
                hand_over(memoryview(bytes(offset - position)))
                position = offset + tensor.nbytes
                remaining = tensor.nbytes
                while remaining:
                    chunk = _bytes_of(next(chunks, None), tensor.name, remaining)
                    remaining -= len(chunk)
                    hand_over(chunk)
            if next(chunks, None) is not None:
                raise ValueError(f"{production.tensors[-1].name}: more bytes were produced than planned")
            in_background(mark, position)
        pending.result()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _written(file: FileIO, path: Path, marks: list[Mark]):
    """Shorten the file to the longest beginning that a mark describes: its length and its SHA-256."""
    good, digest = 0, hashlib.sha256()
    running, position = digest.copy(), 0
    file.seek(0)
    for mark in marks:
        while position < mark.bytes and (block := file.read(min(READ_BYTES, mark.bytes - position))):
            running.update(block)
            position += len(block)
        if running.hexdigest() != mark.sha256:
            print(f"note: {path} is damaged behind byte {good}: what follows is written again", file=sys.stderr)
            break
        good, digest = position, running.copy()
    file.truncate(good)
    return good, digest


def _bytes_of(chunk: np.ndarray | None, name: str, remaining: int) -> memoryview:
    if chunk is None or chunk.nbytes > remaining:
        raise ValueError(f"{name}: {remaining} bytes planned, {0 if chunk is None else chunk.nbytes} produced")
    return memoryview(np.ascontiguousarray(chunk)).cast("B")
