"""The tables of README.md from what measure.sh left in a folder.

    python table.py RESULTS

Figures of several rounds of one arm stand side by side, in the order in which they ran.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

COLUMNS = ("arm", "decode, tokens/s", "TTFT, s", "read a token, MB", "reading, GB/s", "share of the disk's bound",
           "expert hits", "peak anonymous, MiB", "peak file, MiB", "peak of the group, MiB")
MIB = 1 << 20


def main() -> None:
    folder = Path(sys.argv[1])
    tables: dict[tuple[str, str], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for path in dict.fromkeys((folder / "runs.txt").read_text().split()):
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                tables[table_of(row)][arm_of(row)].append(ours(row))
    for path in sorted(folder.glob("*-[0-9]*iB-*.json")):
        shape, limit, _round = path.stem.rsplit("-", 2)
        tables[(shape, limit)]["llama.cpp, Q4_0, mmap"].append(peer(path))
    for (shape, limit), arms in sorted(tables.items()):
        print(f"\n### {shape}, {limit}\n")
        print("| " + " | ".join(COLUMNS) + " |")
        print("|---" * len(COLUMNS) + "|")
        for arm, rounds in arms.items():
            cells = [" / ".join(dict.fromkeys(row.get(column, "") for row in rounds)) for column in COLUMNS[1:]]
            print(f"| {arm} | " + " | ".join(cells) + " |")


def amount(text: str) -> str:
    if not text:
        return "no limit"
    size = int(text) / MIB
    return f"{size / 1024:g}GiB" if size >= 2048 else f"{size:g}MiB"


def table_of(row: dict) -> tuple[str, str]:
    shape = row["model"].removesuffix("-pack").removesuffix("-mapped").removesuffix("-skewed")
    return shape, amount(row["process_memory_limit_bytes"])


def arm_of(row: dict) -> str:
    residency = row["residency"]
    if residency in ("", "none"):
        arm = "ONNX Runtime, weights mapped" if row["model"].endswith("-mapped") else "ONNX Runtime"
    else:
        arm = f"pack, `{residency}`"
    if row["model"].endswith("-skewed"):
        arm += ", skewed router"
    extras = [f"{name} {row[name]}" for name in ("batch", "micro_batch", "offload", "guess", "prompt_tokens")
              if row.get(name) not in (None, "", "none", "0") and (name, row[name]) not in
              (("batch", "1"), ("prompt_tokens", "16"))]
    return ", ".join([arm, *extras])


def ours(row: dict) -> dict:
    if row["status"] != "measured":
        return {COLUMNS[1]: f"{row['status']}: {row.get('reason', '')}"[:90]}

    def number(name: str, scale: float = 1, digits: int = 2) -> str:
        value = row.get(name)
        return f"{float(value) / scale:.{digits}f}" if value else ""

    return dict(zip(COLUMNS[1:], (
        decode(row),
        number("ttft_median_seconds"),
        number("bytes_read_per_token", 1e6, 0),
        number("disk_read_bytes_per_second", 1e9),
        number("disk_bound_share"),
        number("expert_hit_rate"),
        number("peak_anon_bytes", MIB, 0),
        number("peak_file_bytes", MIB, 0),
        number("cgroup_peak_bytes", MIB, 0),
    ), strict=True))


def decode(row: dict) -> str:
    """Tokens a second and their spread, relative to the median, of the time per token."""
    if not row.get("tpot_median_seconds"):
        return row.get("output_median_tokens_per_second", "")[:6]
    seconds, spread = float(row["tpot_median_seconds"]), float(row["tpot_mad_seconds"] or 0)
    return f"{int(row['batch']) / seconds:.2f} ± {100 * spread / seconds:.0f} %"


def peer(path: Path) -> dict:
    text = path.read_text()
    if not text.strip():
        return {COLUMNS[1]: "ended without a result"}
    found = json.loads(text)
    if not found.get("runs"):
        return {COLUMNS[1]: f"ended with {found.get('exit_code')}, {found.get('oom_kills')} kills for memory"}
    runs = found["runs"]
    seconds = sorted(second for run in runs for second in run["decode_seconds"])
    read = sum(run["decode_read_bytes_per_token"] for run in runs) / len(runs)
    ttft = sorted(run["ttft_seconds"] for run in runs)
    return dict(zip(COLUMNS[1:], (
        f"{1 / seconds[len(seconds) // 2]:.3f}", f"{ttft[len(ttft) // 2]:.2f}", f"{read / 1e6:.0f}", "", "", "",
        f"{found['RssAnon_peak_bytes'] / MIB:.0f}", f"{found['RssFile_peak_bytes'] / MIB:.0f}",
        f"{found['cgroup_peak_bytes'] / MIB:.0f}",
    ), strict=True))


if __name__ == "__main__":
    main()
