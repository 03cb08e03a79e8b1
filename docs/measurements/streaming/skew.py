"""Packs of random weights whose routers prefer some experts, as trained ones do.

    python skew.py fit
    python skew.py copy PACK OUTPUT [--spread S] [--seed N]

Random routers choose almost uniformly, which is the worst case for a cache of experts. `copy` makes a copy of a pack
(hard links to whatever stays as it is) in which the logits of each expert are multiplied by exp(S·z), z drawn from a
normal distribution for every expert of every layer: experts with large factors have large logits, of either sign, and
the highest ones choose. `fit` simulates routing of random states and finds the S whose hit rates in a
least-recently-used cache come closest to those reported for a trained model.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

SPREAD = 1.0
"""The spread that `copy` takes by default: see skew.md."""

ALIGNMENT = 4096
"""Records begin at multiples of this many bytes, and shards end at one."""

LABEL = "random, router skewed"

REPORTED = {8: 0.37, 15: 0.53, 24: 0.735, 30: 0.76, 49: 0.89}
"""Hit rates of a least-recently-used cache by experts a layer, reported for Qwen3-30B-A3B with its own weights
on text."""


# --- fit --------------------------------------------------------------------------------------------------------------


def routing(rng: np.random.Generator, tokens: int, spread: float, correlation: float, common: float = 0.0,
            hidden: int = 256, experts: int = 128, chosen: int = 8) -> np.ndarray:
    """Experts `[tokens, chosen]` of random directions: each state is `correlation` times the one before plus noise, and
    `common` is the share of their variance that all tokens have in common."""
    router = rng.standard_normal((hidden, experts)) * np.exp(spread * rng.standard_normal(experts))
    noise = rng.standard_normal((tokens, hidden))
    states = np.empty_like(noise)
    state = rng.standard_normal(hidden)
    for token, each in enumerate(noise):
        state = correlation * state + np.sqrt(1 - correlation**2) * each
        states[token] = state
    states = np.sqrt(1 - common) * states + np.sqrt(common) * rng.standard_normal(hidden)
    return np.argpartition(-(states @ router), chosen - 1, axis=1)[:, :chosen]


def hit_rates(choices: np.ndarray, slots: list[int], cold: int = 100) -> np.ndarray:
    """Hit rates of a least-recently-used cache of one layer after its first `cold` tokens; all of a token's experts are
    looked up before any of them moves."""
    recent: list[int] = []
    hits, wanted = np.zeros(len(slots)), 0
    limits = np.array(slots)
    for token, experts in enumerate(choices.tolist()):
        if token >= cold:
            wanted += len(experts)
            for expert in experts:
                if expert in recent:
                    hits += recent.index(expert) < limits
        recent = experts + [expert for expert in recent if expert not in experts]
    return hits / wanted


def curve(spread: float, correlation: float, common: float = 0.0, tokens: int = 600, layers: int = 4) -> np.ndarray:
    """Hit rates at the reported sizes, over some layers."""
    slots = list(REPORTED)
    return np.mean([hit_rates(routing(np.random.default_rng(layer), tokens, spread, correlation, common), slots)
                    for layer in range(layers)], axis=0)


def fit() -> None:
    reported = np.array(list(REPORTED.values()))

    def error(rates: np.ndarray) -> float:
        return float(np.sqrt(np.mean((rates - reported) ** 2)))

    def show(what: str, rates: np.ndarray) -> None:
        print(f"{what:44s}" + "".join(f"{rate:8.3f}" for rate in rates) + f"{error(rates):8.3f}", flush=True)

    print(f"{'experts a layer':44s}" + "".join(f"{size:8d}" for size in REPORTED) + "     rms")
    show("reported", reported)
    show("uniform", curve(0, 0))
    grids = {
        "spread": itertools.product(np.arange(0.8, 2.01, 0.1), [0.0], [0.0]),
        "correlation of successive tokens": itertools.product([0.0], np.arange(0.5, 0.91, 0.05), [0.0]),
        "direction that all tokens share": itertools.product([0.0], [0.0], np.arange(0.3, 0.91, 0.1)),
        "spread and correlation": itertools.product(np.arange(0.5, 1.41, 0.1), np.arange(0.2, 0.71, 0.1), [0.0]),
        "spread and shared direction": itertools.product(np.arange(0.3, 1.31, 0.2), [0.0], np.arange(0.1, 0.71, 0.1)),
    }
    for name, grid in grids.items():
        best = min(((curve(*point), point) for point in grid), key=lambda found: error(found[0]))
        values = ", ".join(f"{value:.2f}" for value in best[1])
        show(f"{name} ({values})", best[0])


# --- copy -------------------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """What is wrong with the pack, for its reader."""


def routers(model) -> dict[str, tuple[str, str, bool]]:
    """For each mixture, in order, its router: `record` or `constant`, its name, whether its product alone chooses."""
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    attributes = {id(node): {each.name: each for each in node.attribute} for node in model.graph.node}
    found = {}
    for node in model.graph.node:
        if (node.domain, node.op_type) != ("ortbench", "Experts"):
            continue
        # Back to the product that choice and mixing begin with.
        waiting, seen = [node.input[1]], set()
        products = []
        while waiting:
            maker = makers.get(waiting.pop())
            if maker is None or id(maker) in seen:
                continue
            seen.add(id(maker))
            if maker.op_type == "MatMul":
                products.append(maker)
            else:
                waiting.extend(maker.input)
        name = attributes[id(node)]["record"].s.decode()
        if len(products) != 1:
            raise Wrong(f"the experts `{name}` are chosen by {len(products)} products")
        weights = products[0].input[1]
        plain = makers[node.input[1]] is products[0]
        if weights in constants:
            found[name] = ("constant", weights, plain)
        elif makers[weights].op_type.startswith("Weight"):
            found[name] = ("record", attributes[id(makers[weights])]["record"].s.decode(), plain)
        else:
            raise Wrong(f"the router of `{name}` is no constant")
    if not found:
        raise Wrong("it has no mixtures of experts")
    return found


def external(tensor) -> dict[str, str]:
    """Where a constant's bytes are: nothing for one inside the graph."""
    return {entry.key: entry.value for entry in tensor.external_data}


def copy(pack: Path, output: Path, spread: float, seed: int) -> None:
    import onnx
    import xxhash

    def xxh3(data: bytes) -> str:
        return xxhash.xxh3_64_hexdigest(data)

    manifest = json.loads((pack / "manifest.json").read_text())
    if manifest.get("pack", {}).get("form") != "operators":
        raise Wrong("it is no pack of the form `operators`")
    if manifest["model"]["weights"] != "random":
        raise Wrong(f"its weights are `{manifest['model']['weights']}`: only plain random ones are skewed")
    if output.exists():
        raise Wrong(f"`{output}` exists already")
    index = json.loads((pack / "shards.json").read_text())
    model = onnx.load(pack / "model.onnx", load_external_data=False)
    records = {record["name"]: record for record in index["records"]}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dims_of = {}

    # The new values, by record and by place in the file of constants.
    new_records: dict[str, bytes] = {}
    new_constants: dict[tuple[str, int], bytes] = {}
    new_routers: list[tuple[str, np.ndarray]] = []
    for layer, (mixture, (kind, name, plain)) in enumerate(routers(model).items()):
        if kind == "record":
            record = records[name]
            if record.get("codec"):
                raise Wrong(f"`{name}` is compressed: pack the model without a codec")
            dims, data_type = record["what"]["dims"], record["what"]["data_type"]
            place = (index["files"][record["file"]]["file"], record["offset"], record["bytes"])
        else:
            tensor, where = constants[name], external(constants[name])
            if not where:
                raise Wrong(f"`{name}` lies inside of the graph: the model is too small")
            dims, data_type = list(tensor.dims), tensor.data_type
            place = (where["location"], int(where["offset"]), int(where["length"]))
        if data_type != onnx.TensorProto.FLOAT:
            raise Wrong(f"`{name}` is not float32")
        with open(pack / place[0], "rb") as file:
            file.seek(place[1])
            weights = np.frombuffer(file.read(place[2]), "<f4").reshape(dims)
        factors = np.exp(spread * np.random.default_rng([seed, layer]).standard_normal(dims[1]))
        skewed = (weights * factors.astype(np.float32)).astype("<f4")
        dims_of[mixture] = dims
        if plain or index.get("routers"):
            new_routers.append((mixture, skewed))
        if kind == "record":
            new_records[name] = skewed.tobytes()
        else:
            new_constants[place[0], place[1]] = skewed.tobytes()

    output.mkdir(parents=True)
    (output / "shards").mkdir()
    written: dict[str, str] = {}

    def write(path: str, data: bytes) -> None:
        (output / path).write_bytes(data)
        written[path] = hashlib.sha256(data).hexdigest()

    # Records that changed lie in a file of their own. Records are in order by file and offset, so a file that is left
    # for it and continued is listed again.
    if new_records:
        path, data, files, listed = "shards/skewed.bin", bytearray(), [], []
        for record in index["records"]:
            file = index["files"][record["file"]]
            if record["name"] in new_records:
                new = new_records[record["name"]]
                record.update(offset=len(data), hash=xxh3(new))
                data += new + bytes(-len(new) % ALIGNMENT)
                file = {"file": path, "bytes": 0}
            if not listed or listed[-1] != file["file"]:
                listed.append(file["file"])
                files.append(file)
            record["file"] = len(files) - 1
        for file in files:
            if file["file"] == path:
                file["bytes"] = len(data)
        index["files"] = files
        write(path, bytes(data))
    for path in sorted({path for path, _ in new_constants}):
        shutil.copyfile(pack / path, output / path)
        with open(output / path, "r+b") as file:
            for (changed, offset), data in new_constants.items():
                if changed == path:
                    file.seek(offset)
                    file.write(data)
        with open(output / path, "rb") as file:
            written[path] = hashlib.file_digest(file, "sha256").hexdigest()
    copies(index, pack, new_routers, dims_of, write, xxh3)
    write("shards.json", json.dumps(index, separators=(",", ":")).encode() + b"\n")

    entries = {entry["path"]: entry for entry in manifest["files"]}
    for path in entries:
        if path not in written:
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(pack / path, output / path)
    for path, digest in written.items():
        entry = entries.setdefault(path, {"path": path})
        entry.update(bytes=(output / path).stat().st_size, sha256=digest)
    manifest["files"] = list(entries.values())
    if spread:
        manifest["model"]["weights"] = LABEL
        manifest["model"]["id"] += f"-skewed-{spread:g}"
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def copies(index: dict, pack: Path, skewed: list[tuple[str, np.ndarray]], dims_of: dict[str, list[int]], write,
           xxh3) -> None:
    """`routers.bin`: copies of the routers, for guesses; made anew for a pack that has none."""
    described = {router["mixture"]: router for router in index.get("routers", [])}
    old = (pack / "routers.bin").read_bytes() if described else b""
    data, entries = bytearray(), []
    for mixture, weights in skewed:
        router = described.get(mixture)
        if described and router is None:
            continue
        data += bytes(-len(data) % 64)
        hidden, experts = dims_of[mixture]
        entry = {"mixture": mixture, "hidden": hidden, "experts": experts}
        new = weights.tobytes()
        if router and router.get("bias"):
            entry["bias"] = True
            new += old[router["offset"] + len(new):][:4 * experts]
        entry.update(offset=len(data), hash=xxh3(new))
        data += new
        entries.append(entry)
    if not entries:
        return
    index["routers"] = entries
    write("routers.bin", bytes(data))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fit", help="find the spread that fits reported hit rates")
    copying = commands.add_parser("copy", help="copy a pack with skewed routers")
    copying.add_argument("pack", type=Path)
    copying.add_argument("output", type=Path, help="a folder that does not exist, on the same file system")
    copying.add_argument("--spread", type=float, default=SPREAD, help=f"S, 0 for a plain copy (default: {SPREAD})")
    copying.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.command == "fit":
        fit()
        return 0
    try:
        copy(given.pack, given.output, given.spread, given.seed)
    except Wrong as wrong:
        print(f"error: cannot skew `{given.pack}`: {wrong}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
