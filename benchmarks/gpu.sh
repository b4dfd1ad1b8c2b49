#!/usr/bin/env bash
# Everything that needs a GPU, in eight minutes; prints one table, and leaves what it is made of in OUT (default: gpu-results).
#
#   benchmarks/gpu.sh            on a machine with a CUDA device, after `make setup-dev CPU=0`
#   DEVICE=cpu MODEL=embedded benchmarks/gpu.sh    tries the script itself where there is none
#
# A step that fails or takes too long costs its own row alone; the exit status is 1 if one did.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin} out=${OUT:-gpu-results} device=${DEVICE:-cuda} model=${MODEL:-fasterrcnn_resnet50_fpn} scale=${SCALE:-1}
mkdir -p "$out"

# step NAME SECONDS COMMAND...: runs it for at most SECONDS and keeps what it prints.
step() {
  local name=$1 seconds=$(($2 * scale)); shift 2
  echo "$name: at most $seconds s"
  rm -f "$out/$name.json"
  timeout --signal INT --kill-after 10 "$seconds" "$@" >"$out/$name.out" 2>"$out/$name.err"
  echo $? >"$out/$name.status"
}

case $device in cuda*) engines=(--engine graph --engine torch) precision=bf16 ;; *) engines=(--engine torch) precision=fp32 ;; esac

step tests 110 "$bin/pytest" -m gpu -q -p no:randomly --junit-xml "$out/tests.xml" tests
step detector 130 "$bin/streamdet" bench --device "$device" --model "$model" "${engines[@]}" --precision "$precision" \
  --batch 1 --batch 8 --batch 16 --seconds $((90 * scale)) --no-daemon --json
step kernels 60 "$bin/python" benchmarks/gpu.py kernels --device "$device" --model "$model" --seconds $((30 * scale))
step end_to_end 130 "$bin/streamdet" bench --device "$device" --model "$model" "${engines[@]:0:2}" --precision "$precision" \
  --batch 8 --seconds $((80 * scale)) --json
step decoding 40 "$bin/python" benchmarks/gpu.py decoding --device "$device" --seconds $((8 * scale))

"$bin/python" benchmarks/gpu.py table "$out" | tee "$out/table.txt"
exit "${PIPESTATUS[0]}"
