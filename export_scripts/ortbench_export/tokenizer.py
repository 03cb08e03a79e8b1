"""What travels with the weights unchanged: the tokenizer and the chat template."""

from pathlib import Path

from ortbench_export.config import read_json
from ortbench_export.errors import ExportError


def tokenizer_file(folder: Path) -> bytes | None:
    """`tokenizer.json` as it is, or None where the checkpoint has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    read_json(path)
    return path.read_bytes()


def chat_template(folder: Path) -> str | None:
    """From `chat_template.jinja`, or else from `tokenizer_config.json`; of several named ones, `default`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise ExportError(f"{path}: `chat_template` must be a string or a list of named templates")
    return template
