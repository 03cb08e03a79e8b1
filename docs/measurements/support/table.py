# ruff: noqa: E501
"""Writes docs/support.md from the run of matrix.yaml beside this file: `python docs/measurements/support/table.py`."""

import csv
import re
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
TITLES = {
    "qwen3-tiny": "Qwen3, dense (`Qwen3ForCausalLM`)",
    "qwen3-moe-tiny": "Qwen3, mixture of experts (`Qwen3MoeForCausalLM`)",
    "glm4-moe-lite-tiny": "GLM-4.7-Flash, expanded attention (`Glm4MoeLiteForCausalLM`)",
    "glm4-moe-lite-tiny-absorbed": "GLM-4.7-Flash, absorbed attention",
    "qwen3-vl-tiny": "Qwen3-VL, text alone (`Qwen3VLForConditionalGeneration`)",
    "qwen3-vl-tiny 128x96": "Qwen3-VL, an image of 128 × 96 in the prompt",
}
HEAD = """# What runs where

Measured, not hoped: every line is a row of [summary.csv](measurements/support/summary.csv), the run of
[matrix.yaml](measurements/support/matrix.yaml) on {cpu} with {cores} cores, {threads} threads, on {day}. The models are the trained
miniatures: what runs and what falls back is theirs as much as the large ones', speeds are not.

* **tokens/s**: decoding at batch 1 (median of the run), ± the median absolute deviation.
* **as fp32**: how the {tokens} greedy tokens behind a prompt of {prompt} (random ids, an image first where there is one) compare with
  those of fp32, fused, on the CPU provider. Rounding moves tokens of a miniature easily; what it does to answers is for
  a measurement of accuracy.
* **on another provider**: nodes that the named provider left to the CPU provider, with their operators.

Parity of logits with transformers is tested apart, on random configurations: [exporter.md](exporter.md) has its figures.
"""


def main() -> None:
    with open(HERE / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    first = next(row for row in rows if row["status"] == "measured")
    text = HEAD.format(
        cpu=first["cpu_model"], cores=first["cpu_cores_online"], threads=first["threads"], day=first["started_at"][:10],
        tokens=first["generate_tokens"], prompt=first["prompt_tokens"],
    )
    for name, group in groupby(rows, lambda row: f"{row['model']} {row['image']}".strip()):
        group = list(group)
        reference = next(row["output_tokens_hash"] for row in group
                         if (row["backend"], row["precision"], row["flavour"]) == ("cpu", "fp32", "fused"))
        text += f"\n## {TITLES[name]}\n\n| precision | flavour | provider | tokens/s | as fp32 | on another provider |\n"
        text += "|---|---|---|---|---|---|\n"
        text += "".join(line(row, reference) for row in group)
    (HERE.parents[1] / "support.md").write_text(text)


def line(row: dict[str, str], reference: str) -> str:
    provider = f"{row['backend']} {row['runtime_version']}".strip()
    start = f"| {row['precision']} | {row['flavour']} | {provider} |"
    if row["status"] != "measured":
        return f"{start} {row['status']} | | {short(row['reason'])} |\n"
    speed = float(row["decode_median_tokens_per_second"])
    spread = 100 * float(row["decode_mad_tokens_per_second"]) / speed
    same = "same" if row["output_tokens_hash"] == reference else "differ"
    return f"{start} {speed:.0f} ± {spread:.0f} % | {same} | {fallback(row)} |\n"


def fallback(row: dict[str, str]) -> str:
    if row["fallback_nodes"] == "0":
        return ""
    return re.sub(r"^.*CPUExecutionProvider (\d+) ", r"\1 ", row["node_placement"])


def short(reason: str) -> str:
    """The operator and the cause, without the path that a message has in between."""
    found = re.search(r"ONNX Runtime (\S+) .* does not take the operator (`\S+?`) of [^(]*\(node `[^`]*`\): (.*)$", reason)
    return f"ONNX Runtime {found[1]} does not take {found[2]}: {found[3]}" if found else reason


main()
