"""Stream a plan to its file: one pass, in order, hashed on the way, no more than a few chunks in memory."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ortbench_export.weights.plan import Plan


def write_plan(plan: Plan, path: Path, advance: Callable[[int], None]) -> str:
    """Write every planned tensor to `path`, sync it, and return the file's SHA-256 in hex.

    `advance` is called with the bytes written since the last call.
    """
    digest = hashlib.sha256()
    # Writing and hashing release the interpreter's lock; one helper thread overlaps them with the making of the next
    # chunk, and waiting for it before handing over another keeps memory bounded.
    with open(path, "xb", buffering=0) as file, ThreadPoolExecutor(1) as background:
        pending: Future | None = None

        def store(data: memoryview) -> None:
            digest.update(data)
            while data:
                data = data[file.write(data) :]

        def hand_over(data: memoryview) -> None:
            nonlocal pending
            if pending is not None:
                pending.result()
            pending = background.submit(store, data)
            advance(len(data))

        position = 0
        for production in plan.productions:
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
        if pending is not None:
            pending.result()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _bytes_of(chunk: np.ndarray | None, name: str, remaining: int) -> memoryview:
    if chunk is None or chunk.nbytes > remaining:
        raise ValueError(f"{name}: {remaining} bytes planned, {0 if chunk is None else chunk.nbytes} produced")
    return memoryview(np.ascontiguousarray(chunk)).cast("B")
