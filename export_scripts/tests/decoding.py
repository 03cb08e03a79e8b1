"""Run a package in ONNX Runtime as the runner would: by what its manifest says."""

import json
from pathlib import Path

import numpy as np
import onnxruntime


class Decoder:
    """A package's decoder graph with an appended cache. `step` takes and returns numpy arrays."""

    def __init__(self, package: Path, providers=("CPUExecutionProvider",)):
        self.manifest = json.loads((package / "manifest.json").read_text())
        (graph,) = self.manifest["graphs"]
        self.inputs = {port["role"]: port for port in graph["inputs"] if port["layer"] is None}
        self.past = [port for port in graph["inputs"] if port["layer"] is not None]
        self.present = [port for port in graph["outputs"] if port["layer"] is not None]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(package / graph["file"], options, providers=list(providers))
        self.reset()

    def reset(self, batch: int = 1) -> None:
        """Forget everything: an empty cache of `batch` rows."""
        kv_heads, head_dim = self.manifest["shape"]["kv_heads"], self.manifest["shape"]["head_dim"]
        empty = np.zeros((batch, kv_heads, 0, head_dim), self.manifest["cache"]["dtype"])
        self.cache = [empty] * len(self.past)

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Logits `[batch, sequence, vocab]` of ids `[batch, sequence]`, and the cache moves on."""
        batch, sequence = ids.shape
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self.inputs:
            feeds["position_ids"] = positions
        if "logits_positions" in self.inputs:
            feeds["logits_positions"] = np.tile(np.arange(sequence, dtype=np.int64), (batch, 1))
        feeds |= {port["name"]: past for port, past in zip(self.past, self.cache, strict=True)}
        logits, *self.cache = self.session.run(["logits", *(port["name"] for port in self.present)], feeds)
        return logits

    def run(self, ids: np.ndarray, prompt: int) -> np.ndarray:
        """All logits of ids `[batch, length]`: the first `prompt` tokens at once, the others one by one."""
        batch, length = ids.shape
        self.reset(batch)
        positions = np.tile(np.arange(length, dtype=np.int64), (batch, 1))
        mask = np.ones((batch, length), dtype=np.int64)
        logits = [self.step(ids[:, :prompt], mask[:, :prompt], positions[:, :prompt])]
        logits += [self.step(ids[:, at : at + 1], mask[:, : at + 1], positions[:, at : at + 1])
                   for at in range(prompt, length)]
        return np.concatenate(logits, axis=1)
