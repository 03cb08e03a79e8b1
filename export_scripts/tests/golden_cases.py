"""The committed golden checkpoints, and a reader of safetensors that shares nothing with the exporter's."""

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

GOLDEN = Path(__file__).parent / "golden"
ALL = sorted(folder.name for folder in GOLDEN.iterdir() if (folder / "golden.npz").is_file())
MIXTURES = [name for name in ALL if "-moe-" in name]
IMAGES = [name for name in ALL if "-vl-" in name]
NAMES = [name for name in ALL if name not in (*MIXTURES, *IMAGES)]
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
PROMPT = 9


@dataclass(frozen=True)
class GoldenCase:
    """A checkpoint with the logits that transformers computed for it; see golden/make_golden*.py."""

    folder: Path
    config: dict
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]


def load_case(name: str) -> GoldenCase:
    folder = GOLDEN / name
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= read_safetensors(file)
    config = json.loads((folder / "config.json").read_text())
    with np.load(folder / "golden.npz") as arrays:
        return GoldenCase(folder, config, weights, dict(arrays))


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, as float32."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
                            dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
        for name, entry in header.items()
    }


def write_safetensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """float32, float16 and bfloat16 arrays."""
    names = {np.dtype(value): name for name, value in DTYPES.items()}
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    with open(file, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            handle.write(np.ascontiguousarray(array).view(np.uint8).data)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
