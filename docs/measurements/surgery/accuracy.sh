#!/bin/sh
# What surgery does to the miniatures' answers: `accuracy.sh FOLDER`, which is made. A few minutes on two cores.
set -eu
cd "$(dirname "$0")/../../.."
out=${1:?a folder for packages and results}
bin=${BIN:-target/release/ortbench}
mkdir "$out"
out=$(cd "$out" && pwd)
strings() { python3 -c 'import json, sys
def walk(value):
    if isinstance(value, str): yield value
    for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()): yield from walk(inner)
for path in sys.argv[1:]:
    for line in open(path): print(*walk(json.loads(line)), sep="\n")' "$@"; }
{
    printf 'version: 1\nname: surgery\nmodels:\n'
    for model in qwen3-tiny qwen3-moe-tiny glm4-moe-lite-tiny; do
        source=models/packages/$model/int4-fused
        strings models/$model/tasks/documents.jsonl > "$out/$model.documents.txt"
        strings models/$model/tasks/*.jsonl > "$out/$model.all.txt"
        printf '  - {name: %s, package: %s, checkpoint: %s}\n' $model "$PWD/$source" $model
        cut() {
            name=$model-$1
            shift
            "$bin" surgery "$source" --output "$out/$name" --calibration-text "$out/$model.documents.txt" \
                --calibration-tokens 4096 "$@" > "$out/$name.txt"
            printf '  - {name: %s, package: %s, checkpoint: %s}\n' "$name" "$out/$name" $model
        }
        cut drop-1 --drop-layers 1
        cut drop-2 --drop-layers 2
        cut vocabulary --trim-vocabulary "$out/$model.all.txt"
        case $model in *moe*)
            cut experts-7 --keep-experts 7
            cut experts-6 --keep-experts 6
            cut experts-4 --keep-experts 4
            cut experts-2 --keep-experts 2
        esac
    done
    cat << 'YAML'
backends:
  - {name: cpu, runtime: cpu, provider: cpu}
YAML
    printf 'matrix:\n  model: ['
    sep=''
    for package in "$out"/*/; do printf '%s%s' "$sep" "$(basename "$package")"; sep=', '; done
    printf ', qwen3-tiny, qwen3-moe-tiny, glm4-moe-lite-tiny]\n'
    cat << YAML
  backend: cpu
  precision: int4
  flavour: fused
  threads: 2
  batch: 1
  prompt_tokens: 64
  generate_tokens: 32
categories: [speed, accuracy]
accuracy:
  tasks:
    - {task: $PWD/models/tasks/arithmetic.yaml, data: "$PWD/models/{checkpoint}/tasks/arithmetic.jsonl"}
    - {task: $PWD/models/tasks/recall.yaml, data: "$PWD/models/{checkpoint}/tasks/recall.jsonl"}
    - {task: $PWD/models/tasks/sums.yaml, data: "$PWD/models/{checkpoint}/tasks/sums.jsonl"}
    - {task: $PWD/models/tasks/documents.yaml, data: "$PWD/models/{checkpoint}/tasks/documents.jsonl", max_length: 128}
YAML
} > "$out/matrix.yaml"
"$bin" run "$out/matrix.yaml" --results "$out/results"
