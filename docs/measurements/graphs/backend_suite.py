"""The ONNX project's own test cases as graphs of this program, and through ONNX Runtime's Python interface.

    python backend_suite.py prepare FOLDER
    python backend_suite.py python FOLDER --provider CPUExecutionProvider --name cpu
    python backend_suite.py matrix FOLDER --backend cpu --program ORTBENCH
    python backend_suite.py report FOLDER --run cpu=RESULTS --run openvino=RESULTS --csv FILE --document FILE

`prepare` writes every case of `onnx.backend.test` that downloads nothing into FOLDER: the model, and its inputs and
expected outputs as NumPy's archives. `python` runs them through the `onnxruntime` that this interpreter imports, and
compares as the suite does. `matrix` writes FOLDER/BACKEND.yaml without the cases that the program refuses, whose
reasons it keeps; `ortbench run` then runs it. `report` puts both side by side.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import multiprocessing
import re
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

CASES = "cases.json"
BFLOAT16_RTOL = 2**-6
"""Of outputs in bfloat16 at least, as in the suite."""


# Cases -----------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write every case, and the list of them."""
    warnings.simplefilter("ignore")
    cases = []
    for case in collected():
        case["name"] = short(case["name"])
        try:
            cases.append(write(case, folder / "cases" / case["name"]))
        except Exception as error:
            cases.append({"name": case["name"], "unwritten": f"{type(error).__name__}: {error}"})
    (folder / CASES).write_text(json.dumps(cases, indent=0))
    print(f"{len(cases)} cases in {folder}")


def short(name: str) -> str:
    """A name that a model of a matrix can have: at most 64 letters."""
    name = name.replace(".test_", ".", 1)
    return name if len(name) <= 64 else f"{name[:55]}-{zlib.crc32(name.encode()):08x}"


def collected():
    """Every case as a dictionary: name, model (bytes), inputs, outputs, rtol, atol."""
    import onnx
    from onnx.backend.test.case.model import collect_testcases as model_cases
    from onnx.backend.test.case.node import collect_testcases as node_cases
    from onnx.backend.test.loader import DATA_DIR, load_model_tests
    from onnx.backend.test.runner import Runner

    seen = set()
    for case in [*node_cases(), *model_cases()]:
        if case.model is None or not case.data_sets:
            continue  # to be downloaded
        seen.add(case.name)
        inputs, outputs = case.data_sets[0]
        yield {"name": f"{case.kind}.{case.name}", "model": case.model, "inputs": inputs, "outputs": outputs,
               "rtol": case.rtol, "atol": case.atol}
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        for case in sorted(load_model_tests(kind=kind), key=lambda case: case.name):
            if case.model_dir is None or case.name in seen:
                continue
            model = onnx.load(Path(case.model_dir) / "model.onnx")
            data = Path(case.model_dir) / "test_data_set_0"
            inputs, outputs = (
                [loaded(data / f"{what}_{place}.pb", value) for place, value in enumerate(values)
                 if (data / f"{what}_{place}.pb").is_file()]
                for what, values in (("input", model.graph.input), ("output", model.graph.output)))
            yield {"name": f"{kind}.{case.name}", "model": model, "inputs": inputs, "outputs": outputs,
                   "rtol": case.rtol, "atol": case.atol}
    for path in sorted((Path(DATA_DIR) / "light").glob("light_*.onnx")):
        model = onnx.load(path)
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [Runner.generate_dummy_data(value) for value in model.graph.input if value.name not in constants]
        files = [path.with_name(f"{path.stem}_output_{place}.pb") for place in range(len(model.graph.output))]
        if all(file.is_file() for file in files):
            outputs = [loaded(file, value) for file, value in zip(files, model.graph.output, strict=True)]
            yield {"name": f"light.{path.stem}", "model": model, "inputs": inputs, "outputs": outputs,
                   "rtol": 1e-3, "atol": 1e-7}


def loaded(path: Path, value):
    """A tensor's file; of other types what says that they are others."""
    import onnx

    if not value.type.HasField("tensor_type"):
        return value.type.WhichOneof("value")
    return onnx.TensorProto.FromString(path.read_bytes())


def write(case: dict, folder: Path) -> dict:
    """Write one case; what the list says of it."""
    model = case["model"]
    constants = {tensor.name for tensor in model.graph.initializer}
    graph_inputs = [value for value in model.graph.input if value.name not in constants]
    if len(case["inputs"]) > len(graph_inputs):
        graph_inputs = list(model.graph.input)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    entry = {"name": case["name"], "rtol": case["rtol"], "atol": case["atol"],
             "nodes": sorted({node.op_type for node in model.graph.node})}
    for what, values, data in (("inputs", graph_inputs, case["inputs"]),
                               ("outputs", list(model.graph.output), case["outputs"])):
        arrays, entry[what] = {}, []
        for place, (value, datum) in enumerate(zip(values, data, strict=False)):
            array, bits = as_array(datum)
            entry[what].append({"name": value.name, "array": None if array is None else f"a{place}", "bits": bits})
            if array is not None:
                arrays[f"a{place}"] = array
        np.savez(folder / f"{what}.npz", **arrays)
    return entry


def as_array(datum) -> tuple[np.ndarray | None, str | None]:
    """An array that NumPy can store, and the type that it stands for where NumPy has none; None for others."""
    from onnx import TensorProto, numpy_helper

    if isinstance(datum, TensorProto):
        datum = numpy_helper.to_array(datum)
    if not isinstance(datum, (np.ndarray, np.generic, bool, int, float)):
        return None, None
    array = np.asarray(datum)
    if array.dtype == object:
        words = [word.decode() if isinstance(word, bytes) else str(word) for word in array.ravel()]
        return np.array(words, dtype=np.str_).reshape(array.shape), None
    name = array.dtype.name
    if name == "bfloat16":
        return array.view(np.uint16), name
    # Types of ml_dtypes have no place in NumPy's files.
    return (array, None) if array.dtype.kind in "biufcU" and array.dtype.isbuiltin == 1 else (None, name)


def arrays_of(folder: Path, case: dict, what: str) -> list:
    """The arrays of a case's inputs or outputs in order."""
    with np.load(folder / "cases" / case["name"] / f"{what}.npz") as archive:
        return [None if value["array"] is None else archive[value["array"]] for value in case[what]]


# ONNX Runtime's own interface ------------------------------------------------------------------------------------


def run_python(folder: Path, provider: str, name: str) -> None:
    """Run every case through the Python interface, each process until it crashes."""
    cases = json.loads((folder / CASES).read_text())
    results, context = {}, multiprocessing.get_context("spawn")
    left = [case for case in cases if "unwritten" not in case]
    while left:
        pool = ProcessPoolExecutor(1, mp_context=context)
        try:
            for case in list(left):
                results[case["name"]] = pool.submit(one_in_python, folder, case, provider).result(timeout=120)
                left.pop(0)
        except (BrokenProcessPool, TimeoutError) as error:
            results[left.pop(0)["name"]] = ["crashed", type(error).__name__]
        finally:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
    (folder / f"python-{name}.json").write_text(json.dumps(results, indent=0))
    print(name, dict(collections.Counter(result for result, _ in results.values())))


def one_in_python(folder: Path, case: dict, provider: str) -> list[str]:
    """How one case ends, and why."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    values = case["inputs"] + case["outputs"]
    if any(value["array"] is None or value["bits"] for value in values):
        return ["not asked", "an input or output of a type that the Python interface or NumPy does not have"]
    try:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        path = folder / "cases" / case["name"] / "model.onnx"
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:
        return ["failed to load", str(error)]
    try:
        inputs = arrays_of(folder, case, "inputs")
        fed = {value["name"]: array for value, array in zip(case["inputs"], inputs, strict=True)}
        found = session.run([value["name"] for value in case["outputs"]], fed)
    except Exception as error:
        return ["failed to run", str(error)]
    for value, expected, array in zip(case["outputs"], arrays_of(folder, case, "outputs"), found, strict=True):
        why = difference(np.asarray(array), expected, case["rtol"], case["atol"])
        if why:
            return ["differs", f"{value['name']}: {why}"]
    return ["passes", ""]


def difference(found: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> str:
    """What the suite would complain of; nothing where it would not."""
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, not {list(expected.shape)}"
    if expected.dtype.kind == "U":
        return "" if (found.astype(str) == expected).all() else "other strings"
    if found.dtype != expected.dtype:
        return f"type {found.dtype}, not {expected.dtype}"
    near = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    return "" if near.all() else f"{np.count_nonzero(~near)} of {near.size} elements"


# The program -----------------------------------------------------------------------------------------------------


def write_matrix(folder: Path, backend: str, program: str) -> None:
    """Write the matrix of all cases that the program accepts; keep why it does not accept the others."""
    cases = json.loads((folder / CASES).read_text())
    refused = {case["name"]: f"not written: {case['unwritten']}" for case in cases if "unwritten" in case}
    path = folder / f"{backend}.yaml"
    while True:
        lines = ["version: 1", f"name: backend-suite-{backend}",
                 f"backends: [{{name: {backend}, runtime: {backend}, provider: {backend}}}]", "categories: [accuracy]",
                 "measurement: {profile: quick, timeout_seconds: 120}",
                 f"matrix: {{model: '*', backend: {backend}, threads: 2}}", "models:"]
        written = [case for case in cases if case["name"] not in refused]
        first = len(lines) + 1
        lines += [f"  - {entry(case)}" for case in written]
        lines[5] = lines[5].replace("'*'", json.dumps([case["name"] for case in written]))
        path.write_text("\n".join(lines) + "\n")
        plan = subprocess.run([program, "plan", str(path)], capture_output=True, text=True, check=False)
        if plan.returncode == 0:
            break
        found = {}
        for line, message in re.findall(rf"{re.escape(path.name)}:(\d+):\d+: (.*)", plan.stderr):
            if int(line) >= first:
                found.setdefault(written[int(line) - first]["name"], message)
        if not found:
            sys.exit(plan.stderr[-4000:])
        refused.update(found)
    (folder / f"refused-{backend}.json").write_text(json.dumps(refused, indent=0))
    print(f"{len(written)} cases in {path}, {len(refused)} refused")


def entry(case: dict) -> str:
    """A case as a model of a matrix, on one line."""
    place = f"cases/{case['name']}"
    inputs = {value["name"]: {"fill": f"{place}/inputs.npz", "array": value["array"]}
              for value in case["inputs"] if value["array"]}
    outputs = {}
    for value in case["outputs"]:
        if value["array"]:
            rtol = max(case["rtol"], BFLOAT16_RTOL) if value["bits"] == "bfloat16" else case["rtol"]
            outputs[value["name"]] = {"expected": f"{place}/outputs.npz", "array": value["array"],
                                      "rtol": rtol, "atol": case["atol"]}
    model = {"name": case["name"], "kind": "graph", "path": f"{place}/model.onnx"}
    model |= {"inputs": inputs} if inputs else {}
    model |= {"outputs": outputs} if outputs else {}
    # JSON is YAML, but for numbers as 1e-07, which are texts there.
    return re.sub(r"(\d)e-0?(\d+)", r"\1.0e-\2", json.dumps(model))


# The report ------------------------------------------------------------------------------------------------------

MARK = "<!-- What follows is written by backend_suite.py. -->"
"""In the document: what stands before it stays."""

KINDS = ("passes", "differs", "failed to run", "failed to load", "refused", "crashed", "not asked", "not compared")


def report(folder: Path, backends: list[str], results: list[Path], table: Path, document: Path) -> None:
    """Write every case's end into a CSV, and what it comes to into a document."""
    cases = json.loads((folder / CASES).read_text())
    ends = {backend: ends_of(folder, backend, run) for backend, run in zip(backends, results, strict=True)}
    python = {backend: json.loads((folder / f"python-{backend}.json").read_text()) for backend in backends}
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ["", "_reason", "_nodes", "_python", "_python_reason"]
        writer.writerow(["case", "operators", *(f"{backend}{column}" for backend in backends for column in columns)])
        for case in cases:
            row = [case["name"], " ".join(case.get("nodes", []))]
            for backend in backends:
                end, why, nodes = ends[backend].get(case["name"], ("missing", "", ""))
                theirs = python[backend].get(case["name"], ["missing", ""])
                # Said once where both ended alike.
                told_there = "" if theirs[0] == end else brief(tidy(theirs[1], folder))
                row += [end, brief(tidy(why, folder)), nodes, theirs[0], told_there]
            writer.writerow(row)
    lines = [f"{len(cases)} cases.", "", "| | " + " | ".join(f"{b} | {b}, Python" for b in backends) + " |",
             "|---" * (1 + 2 * len(backends)) + "|"]
    for kind in KINDS:
        counts = []
        for backend in backends:
            counts += [sum(end[0] == kind for end in ends[backend].values()),
                       sum(end[0] == kind for end in python[backend].values())]
        lines.append(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
    for backend in backends:
        lines += ["", f"## {backend}", ""]
        whole = [nodes for end, _, nodes in ends[backend].values() if end == "passes"]
        elsewhere = sum("," in nodes or (backend != "cpu" and "CPUExecution" in nodes) for nodes in whole)
        if backend != "cpu":
            lines += [f"Of {len(whole)} cases that pass, {elsewhere} have nodes that ran on the CPU provider.", ""]
        lines += ["Why cases do not pass:", "", "| cases | end | why | of them pass in Python | such as |",
                  "|---|---|---|---|---|"]
        groups = collections.defaultdict(list)
        for name, (end, why, _) in ends[backend].items():
            if end != "passes":
                groups[end, group(tidy(why, folder))].append(name)
        for (end, why), names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
            theirs = sum(python[backend].get(name, [""])[0] == "passes" for name in names)
            lines.append(f"| {len(names)} | {end} | {why} | {theirs} | `{names[0]}` |")
        apart = [(name, end, python[backend][name]) for name, end in ends[backend].items()
                 if end[0] != "refused" and name in python[backend] and python[backend][name][0] != "not asked"
                 and (end[0] == "passes") != (python[backend][name][0] == "passes")]
        lines += ["", f"Cases that ran here and ended otherwise than in Python: {len(apart)}.", ""]
        for name, end, theirs in apart:
            lines.append(f"* `{name}`: {end[0]} ({brief(tidy(end[1], folder))}); Python: {theirs[0]} "
                         f"({brief(tidy(theirs[1], folder))})")
    written = document.read_text() if document.is_file() else MARK
    document.write_text(written.split(MARK)[0] + MARK + "\n\n" + "\n".join(lines) + "\n")


def ends_of(folder: Path, backend: str, run: Path) -> dict[str, tuple[str, str, str]]:
    """How each case ended, why, and where its nodes ran."""
    ends = {name: ("refused", why, "")
            for name, why in json.loads((folder / f"refused-{backend}.json").read_text()).items()}
    with (run / "summary.csv").open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            nodes = row["node_placement"]
            if row["status"] == "measured":
                end = {"pass": "passes", "fail": "differs"}.get(row["accuracy_gate"], "not compared")
                ends[row["model"]] = (end, "" if end == "passes" else told(row), nodes)
            else:
                loads = "cannot load" in row["reason"] or "does not take the operator" in row["reason"]
                crashed = "signal" in row["reason"].lower() and not loads
                end = "failed to load" if loads else "crashed" if crashed else "failed to run"
                ends[row["model"]] = (end, row["reason"], nodes)
    return ends


def told(row: dict) -> str:
    """What of a row says how far its outputs are."""
    return f"{row['output_differences']}; {row['worst_output']} {row['worst_element']}".strip("; ")


def tidy(text: str, folder: Path) -> str:
    """On one line, without folders of this machine."""
    text = re.sub(r"`?[^\s`]*?/cases/([^/\s`]+)/model\.onnx`?", r"`\1`", text.replace(str(folder.resolve()), ""))
    # Signatures of C++ functions say nothing more.
    text = re.sub(r"/onnxruntime(_src)?/\S+( [^\n]*?\))?", "", text)
    return re.sub(r"\s+", " ", text.removeprefix("accuracy: ")).strip()


def brief(text: str) -> str:
    """Beginning and end: OpenVINO says the cause last."""
    return text if len(text) <= 300 else f"{text[:120]} … {text[-170:]}"


def group(why: str) -> str:
    """The same for like reasons."""
    for pattern, words in GROUPS:
        found = re.search(pattern, why)
        if found:
            return words.format(*found.groups())
    return "other: " + re.sub(r"[`'\"][^`'\"]*[`'\"]|\d+", "…", why)[:160].replace("|", "/")


GROUPS = (
    (r"is an? (sequence|optional value|map|sparse tensor)", "an input or output is of the kind: {0}"),
    (r"a tensor of (\w+), which is not run", "an input or output of {0}"),
    (r"does not support the following ONNX operations: ([\w, .]+)", "OpenVINO does not know the operator {0}"),
    (r"Unsupported model IR version: (\d+)", "a newer IR version ({0}) than the runtime knows"),
    (r"Opset (\d+) is under development", "a newer opset ({0}) than the runtime knows"),
    (r"no kernel for this operator", "an operator without a kernel for its types"),
    (r"Unrecognized attribute", "an attribute that the runtime does not know"),
    (r"not registered|is not a registered", "an operator that the runtime does not have"),
    (r"Type Error|INVALID_GRAPH|invalid model", "types that the runtime's definition of the operator does not allow"),
    (r"Invalid rank for output|Got invalid dimensions for output", "an output of another shape than its graph says"),
    (r"OVCore::CompileModel", "OpenVINO cannot compile the graph"),
    (r"OVInferRequest|OpenVINO-EP-subgraph", "OpenVINO cannot run the graph"),
    (r"Batchwise recurrent operations", "a layout of recurrent operators that the runtime does not have"),
    (r"ShapeInferenceError", "a shape that the runtime's definition of the operator does not allow"),
    (r"(ReduceMax|ConvInteger|Attention) node", "inputs that the kernel does not take ({0})"),
    (r"locale", "a locale that the machine does not have"),
    (r"of \d+ differ", "elements beyond the tolerance"),
    (r"shape", "another shape"),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "python", "matrix", "report"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name == "python":
            command.add_argument("--provider", required=True)
            command.add_argument("--name", required=True)
        if name == "matrix":
            command.add_argument("--backend", required=True)
            command.add_argument("--program", required=True)
        if name == "report":
            command.add_argument("--run", action="append", required=True, metavar="BACKEND=FOLDER")
            command.add_argument("--csv", type=Path, required=True)
            command.add_argument("--document", type=Path, required=True)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.command == "prepare":
        prepare(given.folder)
    elif given.command == "python":
        run_python(given.folder, given.provider, given.name)
    elif given.command == "matrix":
        write_matrix(given.folder, given.backend, given.program)
    else:
        runs = [run.split("=", 1) for run in given.run]
        report(given.folder, [name for name, _ in runs], [Path(run) for _, run in runs], given.csv, given.document)


if __name__ == "__main__":
    main()
