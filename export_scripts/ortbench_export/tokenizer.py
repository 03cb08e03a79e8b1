"""What travels with the weights unchanged: the tokenizer and the chat template."""

from pathlib import Path

from ortbench_export.config import read_json
from ortbench_export.errors import ExportError, reading

# Where a template stands beside `chat_template.jinja`, under the key `chat_template`; the first that has one counts.
TEMPLATE_FILES = ("chat_template.json", "tokenizer_config.json")


def tokenizer_file(folder: Path) -> bytes | None:
    """`tokenizer.json` as it is, or None where the checkpoint has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    read_json(path)
    return path.read_bytes()


def chat_template(folder: Path) -> str | None:
    """From `chat_template.jinja`, or else from one of TEMPLATE_FILES; of several named ones, `default`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            with reading(path):
                return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ExportError(f"{path} is not UTF-8: {error}", "fetch the file again") from error
    paths = (folder / name for name in TEMPLATE_FILES)
    return next((found for path in paths if path.is_file() and (found := _template_in(path)) is not None), None)


def _template_in(path: Path) -> str | None:
    template = read_json(path).get("chat_template")
    if isinstance(template, list) and all(isinstance(each, dict) for each in template):
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise ExportError(f"{path}: `chat_template` must be a string or a list of named templates")
    return template
