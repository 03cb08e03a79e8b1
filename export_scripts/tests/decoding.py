"""Run a package in ONNX Runtime as the runner would: by what its manifest says."""

import json
from pathlib import Path

import numpy as np
import onnxruntime


class Model:
    """One graph of a package in a session of one thread."""

    def __init__(self, package: Path, role: str, providers=("CPUExecutionProvider",), accuracy_level: int = 4,
                 profile: Path | None = None):
        self.manifest = json.loads((package / "manifest.json").read_text())
        (self.graph,) = (graph for graph in self.manifest["graphs"] if graph["role"] == role)
        self.inputs = {port["role"]: port for port in self.graph["inputs"] if port["layer"] is None}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # For the kernels that ONNX Runtime itself makes out of DequantizeLinear and MatMul.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self.session = onnxruntime.InferenceSession(package / self.graph["file"], options, providers=list(providers))


class Vision(Model):
    """A package's vision tower."""

    def __init__(self, package: Path, **session):
        super().__init__(package, "vision", **session)

    def features(self, pixels: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Features `[image_tokens, feature_width]` of one image's patches, whose grid is `[1, 3]`."""
        return self.session.run(["image_features"], {"pixel_values": pixels, "image_grid_thw": grid})[0]


class Decoder(Model):
    """A package's decoder graph with an appended cache. `step` takes and returns numpy arrays.

    `positions` are counted where they are not given; `features` are those of the images in the prompt.
    """

    def __init__(self, package: Path, providers=("CPUExecutionProvider",), **session):
        super().__init__(package, "decoder", providers, **session)
        self.past = [port for port in self.graph["inputs"] if port["layer"] is not None]
        self.present = [port for port in self.graph["outputs"] if port["layer"] is not None]
        self.reset()

    def reset(self, batch: int = 1) -> None:
        """Forget everything: an empty cache of `batch` rows."""
        self.cache = [np.zeros((batch, port["dims"][1], 0, port["dims"][3]), port["dtype"]) for port in self.past]

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, wanted=None,
             features: np.ndarray | None = None) -> np.ndarray:
        """Logits `[batch, sequence, vocab]` of ids `[batch, sequence]`, and the cache moves on.

        `wanted` `[batch, selected]` picks positions along the sequence; by default all of them.
        """
        feeds = self._feeds(ids, mask, positions, wanted, features)
        feeds |= {port["name"]: past for port, past in zip(self.past, self.cache, strict=True)}
        logits, *self.cache = self.session.run(["logits", *(port["name"] for port in self.present)], feeds)
        return logits

    def run(self, ids: np.ndarray, prompt: int, positions: np.ndarray | None = None,
            features: np.ndarray | None = None) -> np.ndarray:
        """All logits of ids `[batch, length]`: the first `prompt` tokens at once, the others one by one."""
        self.reset(len(ids))
        mask = np.ones_like(ids)
        positions = mask.cumsum(1) - 1 if positions is None else positions
        return np.concatenate([self.step(ids[:, start:stop], mask[:, :stop], positions[..., start:stop],
                                         features=None if start else features)
                               for start, stop in _steps(prompt, ids.shape[1])], axis=1)

    def prefill(self, ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Logits of the wanted positions of a prompt alone."""
        self.reset(len(ids))
        mask = np.ones_like(ids)
        return self.step(ids, mask, mask.cumsum(1) - 1, wanted)

    def run_padded(self, ids: np.ndarray, lengths: np.ndarray, positions: np.ndarray | None = None,
                   features: np.ndarray | None = None) -> np.ndarray:
        """All logits of a left-padded batch of ids `[batch, longest + steps]`, zero where there is padding.

        The batch is run with the padding that the package prefers; results are moved back to the left-padded places.
        """
        longest = max(lengths)
        prompts, tail = ids[:, :longest], ids[:, longest:]
        if positions is None:
            positions = (np.arange(ids.shape[1]) - (longest - lengths)[:, None]).clip(min=0)
        first = positions[..., :longest]
        real = np.arange(longest) >= longest - lengths[:, None]
        right = self.manifest["padding"][0] == "right"
        if right:
            prompts, first, real = (_to_the_left(each, longest - lengths) for each in (prompts, first, real))
        self.reset(len(ids))
        prefill = self.step(prompts, real.astype(np.int64), first, features=features)
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
            logits.append(self.step(tail[:, at : at + 1], mask, positions[..., longest + at : longest + at + 1]))
        return np.concatenate(logits, axis=1)

    def run_in_place(self, ids: np.ndarray, prompt: int, capacity: int, positions: np.ndarray | None = None,
                     features: np.ndarray | None = None) -> np.ndarray:
        """As `run`, with one buffer of `capacity` tokens bound as past and as present of each layer's cache."""
        batch, length = ids.shape
        shape = (batch, self.manifest["shape"]["kv_heads"], capacity, self.manifest["shape"]["head_dim"])
        # Whatever lies behind the real tokens must not matter.
        buffers = [onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, 7, self.manifest["cache"]["dtype"]))
                   for _ in self.past]
        mask = np.ones_like(ids)
        positions = mask.cumsum(1) - 1 if positions is None else positions
        logits = []
        for start, stop in _steps(prompt, length):
            binding = self.session.io_binding()
            feeds = self._feeds(ids[:, start:stop], mask[:, :stop], positions[..., start:stop], None,
                                None if start else features)
            for name, array in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            binding.bind_output("logits")
            for past, present, buffer in zip(self.past, self.present, buffers, strict=True):
                binding.bind_ortvalue_input(past["name"], buffer)
                binding.bind_ortvalue_output(present["name"], buffer)
            self.session.run_with_iobinding(binding)
            logits.append(binding.get_outputs()[0].numpy())
        return np.concatenate(logits, axis=1)

    def _feeds(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, wanted,
               features: np.ndarray | None) -> dict[str, np.ndarray]:
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self.inputs:
            feeds["position_ids"] = positions
        if "mrope_position_ids" in self.inputs:
            # Those of text are the same in all three axes.
            feeds["position_ids"] = np.broadcast_to(positions, (3, *ids.shape))
        if "image_features" in self.inputs:
            port = self.inputs["image_features"]
            feeds["image_features"] = np.zeros((0, port["dims"][1]), port["dtype"]) if features is None else features
        if "logits_positions" in self.inputs:
            every = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
            feeds["logits_positions"] = every if wanted is None else wanted
        return feeds


def _to_the_left(rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Roll `rows` `[…, batch, length]` by each row's steps."""
    return np.stack([np.roll(rows[..., row, :], -step, axis=-1) for row, step in enumerate(steps)], axis=-2)


def _steps(prompt: int, length: int) -> list[tuple[int, int]]:
    return [(0, prompt), *((at, at + 1) for at in range(prompt, length))]
