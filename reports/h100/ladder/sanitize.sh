#!/usr/bin/env bash
# compute-sanitizer's memcheck and racecheck on every rung of the ladder, a process for each, as many at a time as half
# the cores: reports/h100/ladder/sanitize.sh [IMPLEMENTATION...] from the root of a checkout. Logs lie in $OUT, or in a
# temporary folder; exit status 1 where a tool found something.
set -uo pipefail
rungs=("$@")
(($#)) || rungs=(tiled-{global,smem,pad,coalesced,unroll,regs,mma,async,wgmma,ws,overlap,hopper})
folder=${OUT:-$(mktemp -d)}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTORCH_NO_CUDA_MEMORY_CACHING=1 # so that memcheck knows each tensor's end
failed=0

look() { # TOOL RUNG
  local log=$folder/$1-$2.log
  timeout -k 5 "${LIMIT:-250}" compute-sanitizer --tool "$1" --error-exitcode 9 \
    python3 reports/h100/ladder/sanitized.py "$2" > "$log" 2>&1
  local status=$?
  echo "$1 $2: exit status $status, $(grep -c ' finite$' "$log") calls, $(grep 'SUMMARY' "$log" | tr '\n' ' ')"
  return "$status"
}

# Builds them. A process that did many backwards may abort at its exit (pytorch/pytorch#38228), after all is done.
python3 reports/h100/ladder/sanitized.py "${rungs[@]}" > "$folder/plain.log" 2>&1
jobs=()
for tool in memcheck racecheck; do
  for rung in "${rungs[@]}"; do
    while (($(jobs -rp | wc -l) >= ($(nproc) + 1) / 2)); do sleep 0.2; done
    look "$tool" "$rung" &
    jobs+=($!)
  done
done
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
exit "$failed"
