"""Floats as checkpoints store them. numpy has no bfloat16: its bits travel as uint16 until they are widened."""

import numpy as np

BFLOAT16 = np.dtype("<u2")


def widen(stored: np.ndarray) -> np.ndarray:
    """float32 of float32 (the same array), float16 or the bits of bfloat16."""
    if stored.dtype != BFLOAT16:
        return stored.astype(np.float32, copy=False)
    # bfloat16 is the upper half of a float32.
    wide = stored.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
