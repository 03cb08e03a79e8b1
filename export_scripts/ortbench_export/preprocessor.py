"""How a checkpoint wants its images: `preprocessor_config.json`, refused where the runner would do otherwise."""

from dataclasses import dataclass

from ortbench_export.config import Config, read_json
from ortbench_export.errors import ExportError

# Where newer checkpoints keep it: a section of the file about the whole processor.
PROCESSOR_SECTION = ("processor_config.json", "image_processor")
BICUBIC = 3


@dataclass(frozen=True)
class Preprocessing:
    """An image is resized to between these many pixels, scaled to 0 … 1, and normalised channel by channel."""

    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# What Qwen3-VL is published with.
PUBLISHED = Preprocessing(65_536, 16_777_216, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def read_preprocessing(config: Config, vision: Config, published_by_default: bool) -> Preprocessing:
    """From the file beside `config`, whose section `vision` it must agree with; without one, the published values, or
    an error."""
    found = _find(config)
    if found is None:
        if published_by_default:
            return PUBLISHED
        raise ExportError(f"{config.path.parent} holds no `preprocessor_config.json`",
                          "copy it from the model's own repository: it says how images are scaled")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        found.expect(key, (True,), True)
    found.expect("resample", (BICUBIC,), BICUBIC)
    found.expect("rescale_factor", (1 / 255,), 1 / 255)
    for key, name in (("patch_size", "patch_size"), ("temporal_patch_size", "temporal_patch_size"),
                      ("merge_size", "spatial_merge_size")):
        found.expect(key, (vision.integer(name),), vision.integer(name))
    result = Preprocessing(_pixels(found, "min_pixels", "shortest_edge"), _pixels(found, "max_pixels", "longest_edge"),
                           found.numbers("image_mean", 3), found.numbers("image_std", 3))
    if result.min_pixels > result.max_pixels or min(result.std) <= 0:
        raise ExportError(f"{found.path}: {result} cannot be met by any image")
    return result


def _find(config: Config) -> Config | None:
    path = config.path.parent / "preprocessor_config.json"
    if path.is_file():
        return Config(path, read_json(path))
    name, section = PROCESSOR_SECTION
    path = config.path.parent / name
    return Config(path, read_json(path)).section(section) if path.is_file() else None


def _pixels(found: Config, own: str, edge: str) -> int:
    """`min_pixels` and `max_pixels` win over what `size` calls edges, which are numbers of pixels as well."""
    return found.integer(own) if found.values.get(own) is not None else found.section("size").integer(edge)
