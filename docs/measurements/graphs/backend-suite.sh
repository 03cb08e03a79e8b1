#!/bin/sh
# The ONNX project's own test cases as graphs, on the CPU and on OpenVINO, beside ONNX Runtime's Python interface:
# `make backend-suite`. About fifteen minutes on two cores.
#
#   backend-suite.sh OUTPUT
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../.."
out=$1
python=.venv/bin/python
suite() { $python "$here/backend_suite.py" "$@"; }

suite prepare "$out"
suite python "$out" --provider CPUExecutionProvider --name cpu
# The wheel whose library `ortbench runtime install openvino` takes; it shadows the CPU's.
$python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target "$out/openvino" \
    -r "$here/openvino-requirements.txt"
PYTHONPATH=$out/openvino suite python "$out" --provider OpenVINOExecutionProvider --name openvino
for backend in cpu openvino; do
    suite matrix "$out" --backend $backend --program target/release/ortbench
    # Cells that fail are what is counted.
    target/release/ortbench run "$out/$backend.yaml" --results "$out/results-$backend" --quiet >/dev/null || true
done
newest() { ls -d "$out/results-$1"/*/ | tail -1; }
suite report "$out" --run cpu="$(newest cpu)" --run openvino="$(newest openvino)" \
    --csv "$here/backend-suite.csv" --document "$here/backend-suite.md"
echo "$here/backend-suite.md and $here/backend-suite.csv"
