#!/bin/sh
# Items a second, batched against one sequence after the other, in alternation: `make bench-scoring`.
set -eu
cd "$(dirname "$0")/../../.."
measure() { cargo bench --locked --quiet --bench scoring -- "$@"; }
for model in qwen3-tiny qwen3-moe-tiny glm4-moe-lite-tiny; do
    for kind in fp32-fused int4-fused fp32-plain; do
        for task in arithmetic recall; do
            measure "models/packages/$model/$kind" "models/tasks/$task.yaml" \
                --data "models/$model/tasks/$task.jsonl" --items 150 --rounds 5
        done
    done
done
measure models/packages/qwen3-tiny/fp32-plain models/tasks/recall.yaml --data models/qwen3-tiny/tasks/recall.jsonl \
    --items 150 --rounds 6 --provider openvino
full=models/packages/full-shape/qwen3-4b/int4-fused
measure $full mmlu --items 3 --rounds 3
measure $full hellaswag --items 3 --rounds 3
measure $full mmlu-5-shot --items 2 --rounds 1
