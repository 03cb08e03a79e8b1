"""Run a package in ONNX Runtime as the runner would: by what its manifest says."""

import json
from pathlib import Path

import numpy as np
import onnxruntime


class Decoder:
    """A package's decoder graph with an appended cache. `step` takes and returns numpy arrays."""

    def __init__(self, package: Path, providers=("CPUExecutionProvider",), accuracy_level: int = 4,
                 profile: Path | None = None):
        self.manifest = json.loads((package / "manifest.json").read_text())
        (graph,) = self.manifest["graphs"]
        self.inputs = {port["role"]: port for port in graph["inputs"] if port["layer"] is None}
        self.past = [port for port in graph["inputs"] if port["layer"] is not None]
        self.present = [port for port in graph["outputs"] if port["layer"] is not None]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # For the kernels that ONNX Runtime itself makes out of DequantizeLinear and MatMul.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self.session = onnxruntime.InferenceSession(package / graph["file"], options, providers=list(providers))
        self.reset()

    def reset(self, batch: int = 1) -> None:
        """Forget everything: an empty cache of `batch` rows."""
        self.cache = [np.zeros((batch, port["dims"][1], 0, port["dims"][3]), port["dtype"]) for port in self.past]

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, wanted=None) -> np.ndarray:
        """Logits `[batch, sequence, vocab]` of ids `[batch, sequence]`, and the cache moves on.

        `wanted` `[batch, selected]` picks positions along the sequence; by default all of them.
        """
        feeds = self._feeds(ids, mask, positions, wanted)
        feeds |= {port["name"]: past for port, past in zip(self.past, self.cache, strict=True)}
        logits, *self.cache = self.session.run(["logits", *(port["name"] for port in self.present)], feeds)
        return logits

    def run(self, ids: np.ndarray, prompt: int) -> np.ndarray:
        """All logits of ids `[batch, length]`: the first `prompt` tokens at once, the others one by one."""
        self.reset(len(ids))
        mask = np.ones_like(ids)
        positions = mask.cumsum(1) - 1
        return np.concatenate([self.step(ids[:, start:stop], mask[:, :stop], positions[:, start:stop])
                               for start, stop in _steps(prompt, ids.shape[1])], axis=1)

    def prefill(self, ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Logits of the wanted positions of a prompt alone."""
        self.reset(len(ids))
        mask = np.ones_like(ids)
        return self.step(ids, mask, mask.cumsum(1) - 1, wanted)

    def run_padded(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """All logits of a left-padded batch of ids `[batch, longest + steps]`, zero where there is padding.

        The batch is run with the padding that the package prefers; results are moved back to the left-padded places.
        """
        longest = max(lengths)
        prompts, tail = ids[:, :longest], ids[:, longest:]
        real = np.arange(longest) >= longest - lengths[:, None]
        right = self.manifest["padding"][0] == "right"
        if right:
            prompts = np.stack([np.roll(row, length - longest) for row, length in zip(prompts, lengths, strict=True)])
            real = real[:, ::-1]
        mask = real.astype(np.int64)
        self.reset(len(ids))
        prefill = self.step(prompts, mask, (mask.cumsum(1) - 1).clip(min=0))
        # What stands at padded places is undefined, and not a number at times (GroupQueryAttention before 1.31).
        logits = [np.where(real[..., None], prefill, 0)]
        if right:
            logits[0] = np.stack([np.roll(row, longest - length, axis=0)
                                  for row, length in zip(logits[0], lengths, strict=True)])
        for at in range(tail.shape[1]):
            # A row of ones grows by one; with left padding its zeros stay in front.
            total = longest + at + 1
            grown = np.arange(total) < (lengths + at + 1)[:, None]
            mask = (grown if right else grown[:, ::-1]).astype(np.int64)
            logits.append(self.step(tail[:, at : at + 1], mask, (lengths + at)[:, None]))
        return np.concatenate(logits, axis=1)

    def run_in_place(self, ids: np.ndarray, prompt: int, capacity: int) -> np.ndarray:
        """As `run`, with one buffer of `capacity` tokens bound as past and as present of each layer's cache."""
        batch, length = ids.shape
        shape = (batch, self.manifest["shape"]["kv_heads"], capacity, self.manifest["shape"]["head_dim"])
        # Whatever lies behind the real tokens must not matter.
        buffers = [onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, 7, self.manifest["cache"]["dtype"]))
                   for _ in self.past]
        mask = np.ones_like(ids)
        positions = mask.cumsum(1) - 1
        logits = []
        for start, stop in _steps(prompt, length):
            binding = self.session.io_binding()
            for name, array in self._feeds(ids[:, start:stop], mask[:, :stop], positions[:, start:stop], None).items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            binding.bind_output("logits")
            for past, present, buffer in zip(self.past, self.present, buffers, strict=True):
                binding.bind_ortvalue_input(past["name"], buffer)
                binding.bind_ortvalue_output(present["name"], buffer)
            self.session.run_with_iobinding(binding)
            logits.append(binding.get_outputs()[0].numpy())
        return np.concatenate(logits, axis=1)

    def _feeds(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, wanted) -> dict[str, np.ndarray]:
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self.inputs:
            feeds["position_ids"] = positions
        if "logits_positions" in self.inputs:
            every = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
            feeds["logits_positions"] = every if wanted is None else wanted
        return feeds


def _steps(prompt: int, length: int) -> list[tuple[int, int]]:
    return [(0, prompt), *((at, at + 1) for at in range(prompt, length))]
