"""The latency of two graphs by ortbench and by ONNX Runtime's Python API with IoBinding, in alternation.

    python side_by_side.py --ortbench target/release/ortbench --library LIBONNXRUNTIME --graphs FOLDER [--rounds 5]
        [--threads 2] [--seconds 2]

Each round runs both in fresh processes, in the order A B, B A, … on the same files, inputs, library and threads. Both
sides time runs one by one, or as many together as ortbench does (`runs_per_timing`); a round gives the median of each
side. Printed are the medians over the rounds with their range, and the median ratio ortbench ÷ Python.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Name, file, inputs as ortbench is told, dimensions.
CASES = [
    ("add", "add.onnx", "{x: {fill: ones}, y: {fill: ones}}", "{n: 8}"),
    ("chain", "chain.onnx", "{x: {fill: x.npy}}", ""),
]


def python_loop(file: str, feeds: dict, threads: int, seconds: float, together: int) -> float:
    """The median latency of a run, in seconds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    # As ortbench does: what the first run made is the memory of the next ones.
    for output, made in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(output.name, made)
    run, clock = session.run_with_iobinding, time.perf_counter
    warm = clock()
    while clock() - warm < seconds / 20:
        run(binding)
    timings, start = [], clock()
    while clock() - start < seconds:
        before = clock()
        for _ in range(together):
            run(binding)
        timings.append((clock() - before) / together)
    return statistics.median(timings)


def child(arguments: argparse.Namespace) -> None:
    import numpy as np

    job = json.loads(arguments.child)
    folder = Path(job["folder"])
    if job["case"] == "add":
        feeds = {name: np.ones(8, dtype=np.float32) for name in "xy"}
    else:
        feeds = {"x": np.load(folder / "x.npy")}
    file = str(folder / job["file"])
    print(python_loop(file, feeds, job["threads"], job["seconds"], job["together"]))


def by_python(case: str, file: str, together: int, arguments: argparse.Namespace) -> float:
    job = {"case": case, "file": file, "folder": arguments.graphs, "together": together}
    job |= {"threads": arguments.threads, "seconds": arguments.seconds}
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def by_ortbench(case: str, file: str, inputs: str, dimensions: str, arguments: argparse.Namespace) -> tuple[float, int]:
    axes = f", dimensions: {dimensions}" if dimensions else ""
    runtime = f"{{path: {arguments.library}}}"
    text = f"""version: 1
name: graphs
models: [{{name: {case}, kind: graph, path: {file}, inputs: {inputs}}}]
backends: [{{name: cpu, runtime: {runtime}, provider: cpu}}]
matrix: {{model: {case}, backend: cpu, threads: {arguments.threads}{axes}}}
categories: speed
measurement: {{min_seconds: {arguments.seconds}}}
"""
    with tempfile.TemporaryDirectory() as results:
        # The matrix stands beside the graphs, since its paths are relative to it.
        matrix = Path(arguments.graphs) / f".{case}.yaml"
        matrix.write_text(text)
        command = [arguments.ortbench, "run", str(matrix), "--results", results, "--quiet"]
        subprocess.run(command, check=True, capture_output=True)
        matrix.unlink()
        with next(Path(results).glob("*/summary.csv")).open() as table:
            row = next(csv.DictReader(table))
    return float(row["latency_median_seconds"]), int(row["runs_per_timing"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ortbench", default="target/release/ortbench")
    parser.add_argument("--library", help="default: that of Python's onnxruntime")
    parser.add_argument("--graphs", default="graphs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    if not arguments.library:
        import onnxruntime

        folder = Path(onnxruntime.__file__).parent / "capi"
        arguments.library = str(next(folder.glob("libonnxruntime.so.*")).resolve())
    print("graph,ortbench_us,ortbench_min_us,ortbench_max_us,python_us,python_min_us,python_max_us,ratio,runs_per_timing")
    for case, file, inputs, dimensions in CASES:
        together = by_ortbench(case, file, inputs, dimensions, arguments)[1]
        ours, theirs = [], []
        for number in range(arguments.rounds):
            for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
                if side == "ours":
                    ours.append(by_ortbench(case, file, inputs, dimensions, arguments)[0])
                else:
                    theirs.append(by_python(case, file, together, arguments))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        microseconds = [[1e6 * value for value in (statistics.median(s), min(s), max(s))] for s in (ours, theirs)]
        fields = [case, *(f"{value:.3f}" for side in microseconds for value in side), f"{ratio:.4f}", str(together)]
        print(",".join(fields), flush=True)


if __name__ == "__main__":
    main()
