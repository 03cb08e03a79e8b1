#!/bin/sh
# Models larger than memory, side by side: `make bench-streaming`. Needs to be root (control groups), 45 GB of disk, two
# cores, and about two hours. One shape after the other, so that no more than one is on the disk.
#
#   measure.sh OUTPUT [dense|qwen3-coder-30b-a3b|glm-4.7-flash]…
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../.."
out=$1
shift
mkdir -p "$out"
python=$out/llama/bin/python
shapes=models/packages/full-shape
llama=$out/llama
if ! [ -x "$llama/bin/python" ]; then
    python3 -m venv "$llama"
    for needs in llama skew; do
        "$llama/bin/pip" install --quiet --require-hashes -r "$here/$needs-requirements.txt"
    done
fi

# One matrix, or the cells of it that fit the pattern; its folder of results is noted.
run() {
    target/release/ortbench run "$1" --results "$out/runs" --allow-unsupported --quiet ${2:+--cell "$2"} | tail -1 >>"$out/runs.txt"
}
# llama.cpp under a limit: tokens drawn, another prompt each request.
peer() {
    "$llama/bin/python" "$here/llama.py" run "$out/$1.gguf" --memory-limit "$2" --rotate --prompt 16 --generate "$3" \
        --repetitions 1 --timeout 600 >"$out/$1-$2-$4.json" || true
}
gguf() {
    [ -f "$out/$1.gguf" ] || "$llama/bin/python" "$here/llama.py" write "export_scripts/configs/$1.json" "$out/$1.gguf"
}

[ $# -gt 0 ] || set -- dense qwen3-coder-30b-a3b glm-4.7-flash
for shape in "$@"; do
    case $shape in
    dense)
        make $shapes/qwen3-4b/int4-fused-pack/manifest.json $shapes/qwen3-4b/int4-fused-mapped/manifest.json
        gguf qwen3-4b
        for limit in 1300MiB 650MiB; do
            run "$here/dense.yaml" "*$limit*"
            peer qwen3-4b $limit 9 1
        done
        # Those without a limit.
        for cell in '*t2-resident-b*' '*t2-mapped-b*' '*cpu-t2-b*'; do
            run "$here/dense.yaml" "$cell"
        done
        run "$here/pipeline.yaml"
        rm -r $shapes/qwen3-4b/int4-fused-mapped "$out/qwen3-4b.gguf"
        ;;
    *)
        make $shapes/$shape/int4-fused-pack/manifest.json
        # The package is written anew in less than a minute; the disk has no room for all of its forms.
        rm -rf $shapes/$shape/int4-fused
        $python "$here/skew.py" copy $shapes/$shape/int4-fused-pack $shapes/$shape/int4-fused-pack-skewed --spread 1
        gguf $shape
        sed "s/MODEL/$shape/g; s#\.\./\.\./\.\./#$PWD/#" "$here/mixture.yaml" >"$out/$shape.yaml"
        for limit in 4GiB 2GiB 8GiB; do
            run "$out/$shape.yaml" "*$limit*"
            peer $shape $limit 9 1
        done
        for cell in '*t2-resident-b*' '*t2-mapped-b*'; do
            run "$out/$shape.yaml" "$cell"
        done
        rm -r $shapes/$shape "$out/$shape.gguf"
        ;;
    esac
done
