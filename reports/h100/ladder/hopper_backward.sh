#!/usr/bin/env bash
# A first look at the backward of the Hopper rungs, on an H100 from the root of a checkout, in about two minutes:
# reports/h100/ladder/hopper_backward.sh. Every kernel runs in a process of its own under a time limit, as one that
# waits for ever would take the rest along.
set -uo pipefail
export PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1
folder=$(mktemp -d)
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$folder/extensions}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # deterministic mode, which the checks use, asks for it
look=reports/h100/ladder/hopper_backward.py
seconds() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }

timeout 90 nvcc -std=c++20 -O2 -gencode arch=compute_90a,code=sm_90a -Iattn_impls/tiled/csrc \
  tests/tool/hopper/probe.cu -o "$folder/probe" > "$folder/probe.log" 2>&1 &
probe=$!
timeout 120 python3 "$look" build tiled-ws > "$folder/build.log" 2>&1 &
hopper=$!
timeout 120 nice python3 "$look" build candidates > "$folder/candidates.log" 2>&1 &
candidates=$!
timeout 140 nice python3 "$look" build tiled-async > "$folder/async.log" 2>&1 &
async=$!

wait "$probe" || tail -n 20 "$folder/probe.log"
seconds "probe built"
for check in $("$folder/probe" list); do
  timeout -k 2 8 "$folder/probe" "$check" 2>&1 | cut -c1-700 || echo "   $check: exit status $?"
done
wait "$hopper" || tail -n 30 "$folder/build.log"
seconds "rungs built"
for mode in default deterministic; do
  timeout -k 2 40 python3 "$look" check "$mode" 2>&1 | cut -c1-420 | tail -n 60
  seconds "$mode checked: exit status ${PIPESTATUS[0]}"
done
timeout -k 2 25 python3 "$look" far 2>&1 | tail -n 3
seconds "far checked"
wait "$candidates" || tail -n 20 "$folder/candidates.log"
declare -A checks
for mode in staggered staying early staying_early; do
  timeout -k 2 40 python3 "$look" check "$mode" > "$folder/$mode.log" 2>&1 &
  checks[$mode]=$!
done
right=()
for mode in "${!checks[@]}"; do
  if wait "${checks[$mode]}"; then
    right+=("$mode")
  else
    grep -v '^ok' "$folder/$mode.log" | cut -c1-330 | tail -n 8
  fi
done
seconds "candidates checked, right: ${right[*]}"
# The times of what is there already, and of tiled-async once it is built.
timeout -k 2 45 python3 "$look" time default "${right[@]}" tiled-ws 'tiled-ws!' sdpa-cudnn 2>&1 | tail -n 20
seconds "timed"
wait "$async" || tail -n 20 "$folder/async.log"
seconds "tiled-async built"
timeout -k 2 25 python3 "$look" wide 2>&1 | tail -n 3
timeout -k 2 45 python3 "$look" time tiled-ws tiled-async sdpa-cudnn 2>&1 | tail -n 20
seconds "timed beside tiled-async"
