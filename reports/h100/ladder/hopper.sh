#!/usr/bin/env bash
# A first look at the Hopper rungs, on an H100 from the root of a checkout, in about two minutes:
# reports/h100/ladder/hopper.sh [RUNG...]. Every kernel runs in a process of its own under a time limit, as one that
# waits for ever would take the rest along.
set -uo pipefail
rungs=("${@:-tiled-wgmma tiled-ws tiled-overlap tiled-hopper}")
read -ra rungs <<< "${rungs[*]}"
export PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1
folder=$(mktemp -d)
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$folder/extensions}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # deterministic mode, which the checks use, asks for it
seconds() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }

timeout 90 nvcc -std=c++20 -O2 -gencode arch=compute_90a,code=sm_90a -Iattn_impls/tiled/csrc \
  tests/tool/hopper/probe.cu -o "$folder/probe" > "$folder/probe.log" 2>&1 &
probe=$!
timeout 120 python3 reports/h100/ladder/hopper.py build "${rungs[0]}" > "$folder/build.log" 2>&1 &
hopper=$!
timeout 120 python3 reports/h100/ladder/hopper.py build tiled-async > "$folder/async.log" 2>&1 &
async=$!

wait "$probe" || tail -n 20 "$folder/probe.log"
seconds "probe built"
for check in $("$folder/probe" list); do
  timeout -k 2 8 "$folder/probe" "$check" || echo "   $check: exit status $?"
done
wait "$hopper" || tail -n 30 "$folder/build.log"
seconds "rungs built"
for rung in "${rungs[@]}"; do
  timeout -k 2 30 python3 reports/h100/ladder/hopper.py check "$rung" 2>&1 | cut -c1-330 | tail -n 60
  seconds "$rung checked: exit status ${PIPESTATUS[0]}"
done
wait "$async" || tail -n 20 "$folder/async.log"
peers=(tiled-async sdpa-cudnn sdpa-flash)
if ! timeout -k 2 50 python3 reports/h100/ladder/hopper.py time "${rungs[@]}" "${peers[@]}" 2>&1 | tail -n 20; then
  for rung in "${rungs[@]}"; do  # one of them failed: the others still have a number
    timeout -k 2 30 python3 reports/h100/ladder/hopper.py time "$rung" "${peers[@]}" 2>&1 | tail -n 20
  done
fi
seconds "timed"
