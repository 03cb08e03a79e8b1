"""Read `config.json`: every value a model needs, with an error that names the key when one is absent or odd."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from ortbench_export.errors import ExportError, reading

# Beyond it are infinity and not-a-number, which Python's JSON knows.
LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Config:
    """A parsed `config.json`, or a section of it, that remembers where it came from, for its errors."""

    path: Path
    values: dict
    # The sections that it lies in, as `text_config.`.
    within: str = ""

    def integer(self, key: str) -> int:
        """A positive integer."""
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ExportError(f"{self.path}: `{self.within}{key}` must be a positive integer, not {value!r}")
        return value

    def number(self, key: str) -> float:
        """A positive number."""
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
            raise ExportError(f"{self.path}: `{self.within}{key}` must be a positive number, not {value!r}")
        return float(value)

    def integer_of(self, *keys: str) -> int:
        """A positive integer that goes by several names, the first of them that is given."""
        return self.integer(next((key for key in keys if self.values.get(key) is not None), keys[0]))

    def integer_or(self, key: str, default: int | None) -> int | None:
        """A positive integer, or the default where it is absent or null."""
        return default if self.values.get(key) is None else self.integer(key)

    def natural(self, key: str, default: int) -> int:
        """An integer that may be zero, or the default where it is absent or null."""
        return 0 if self.values.get(key) == 0 else self.integer_or(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ExportError(f"{self.path}: `{self.within}{key}` must be true or false, not {value!r}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers, empty where it is absent or null."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise ExportError(f"{self.path}: `{self.within}{key}` must be a list of integers, not {value!r}")
        return tuple(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers."""
        value = self._required(key)
        if (not isinstance(value, list) or len(value) != count
                or not all(type(each) in (int, float) and abs(each) <= LARGEST for each in value)):
            raise ExportError(f"{self.path}: `{self.within}{key}` must be a list of {count} numbers, not {value!r}")
        return tuple(map(float, value))

    def tokens(self, key: str) -> tuple[int, ...]:
        """A token id, or a list of them."""
        value = self._required(key)
        listed = value if isinstance(value, list) else [value]
        if not all(type(each) is int and each >= 0 for each in listed):
            raise ExportError(f"{self.path}: `{self.within}{key}` must be a token id or a list of them, not {value!r}")
        return tuple(listed)

    def section(self, key: str) -> "Config":
        """An object within this one."""
        value = self._required(key)
        if not isinstance(value, dict):
            raise ExportError(f"{self.path}: `{self.within}{key}` must be an object, not {value!r}")
        return Config(self.path, value, f"{self.within}{key}.")

    def at_most(self, key: str, value: int, limit: int) -> None:
        """Refuse a number that is larger than there is room for."""
        if value > limit:
            raise ExportError(f"{self.path}: `{self.within}{key}` is {value}, more than the {limit} there are")

    def expect(self, key: str, allowed: tuple, default) -> None:
        """Refuse a value that the graph would silently ignore."""
        value = self.values.get(key, default)
        if value not in allowed:
            listed = " or ".join(json.dumps(each) for each in allowed)
            raise ExportError(
                f"{self.path}: `{self.within}{key}` is {json.dumps(value)}; this exporter handles {listed} only")

    def expect_each(self, key: str, allowed: str) -> None:
        """Refuse a list, one entry a layer, in which anything else stands."""
        value = self.values.get(key)
        if value is not None and (not isinstance(value, list) or any(each != allowed for each in value)):
            raise ExportError(f"{self.path}: `{self.within}{key}` is {json.dumps(value)}; this exporter handles layers "
                              f"of {json.dumps(allowed)} only")

    def architecture(self) -> str:
        names = self.values.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise ExportError(f"{self.path}: `architectures` must list one class name, not {names!r}")
        return names[0]

    def rope_theta(self) -> float:
        """The base of the rotary embedding, from `rope_parameters` (transformers 5) or `rope_theta`."""
        sections = [key for key in ("rope_parameters", "rope_scaling") if self.values.get(key) is not None]
        for place in (self, *map(self.section, sections)):
            place.expect("partial_rotary_factor", (1.0, None), None)
        for key in sections:
            section = self.values[key]
            kind = section.get("rope_type", section.get("type", "default"))
            if kind != "default":
                raise ExportError(
                    f"{self.path}: `{self.within}{key}` asks for rotary scaling `{kind}`; only the default is "
                    "implemented",
                    f"remove `{key}` from a copy of config.json to export the model at its original context length",
                )
        if "rope_theta" in (self.values.get("rope_parameters") or ()):
            return self.section("rope_parameters").number("rope_theta")
        return self.number("rope_theta")

    def _required(self, key: str):
        if self.values.get(key) is None:
            raise ExportError(f"{self.path} lacks `{self.within}{key}`",
                              f"copy {self.path.name} from the model's own repository")
        return self.values[key]


def read_config(path: Path) -> Config:
    """Parse `path`, refusing checkpoints that are quantized already."""
    if not path.is_file():
        raise ExportError(f"{path} does not exist", "name a Hugging Face checkpoint folder, or `--config FILE`")
    values = read_json(path)
    if values.get("quantization_config"):
        section = values["quantization_config"]
        method = section.get("quant_method", "unknown") if isinstance(section, dict) else section
        raise ExportError(f"{path}: the checkpoint is quantized already (`{method}`)",
                          "export the original fp32, fp16 or bf16 checkpoint")
    return Config(path, values)


def read_json(path: Path) -> dict:
    """A JSON object."""
    try:
        with reading(path):
            values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}", "fetch the file again") from error
    if not isinstance(values, dict):
        raise ExportError(f"{path} must hold a JSON object")
    return values


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that the runner needs beside the tokenizer."""

    bos: int | None
    pad: int | None
    eos: tuple[int, ...]


def special_tokens(config: Config) -> SpecialTokens:
    """From `generation_config.json` beside the config where it says, otherwise from the config itself, or from its
    section about text."""
    generation = config.path.parent / "generation_config.json"
    places = [Config(generation, read_json(generation))] if generation.is_file() else []
    places.append(config)
    if config.values.get("text_config") is not None:
        places.append(config.section("text_config"))

    def find(key: str) -> tuple[int, ...]:
        return next((place.tokens(key) for place in places if place.values.get(key) is not None), ())

    def single(key: str) -> int | None:
        return next(iter(find(key)), None)

    return SpecialTokens(single("bos_token_id"), single("pad_token_id"), find("eos_token_id"))
