#!/usr/bin/env bash
# compute-sanitizer's memcheck and racecheck on every rung of the ladder, a process for each, as many at a time as half
# the cores: reports/h100/ladder/sanitize.sh [IMPLEMENTATION...] from the root of a checkout. Logs lie in $OUT, or in a
# temporary folder; exit status 1 where a tool found something.
set -uo pipefail
rungs=("$@")
(($#)) || rungs=(tiled-{global,smem,pad,coalesced,unroll,regs,mma,async,wgmma,ws,overlap,hopper})
folder=${OUT:-$(mktemp -d)}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTORCH_NO_CUDA_MEMORY_CACHING=1 # so that memcheck knows each tensor's end
failed=0 every_lane=-DATTN_EVERY_LANE_ARRIVES

look() { # TOOL RUNG
  local log=$folder/$1-$2.log
  [[ $1 = racecheck ]] && export NVCC_APPEND_FLAGS=$every_lane TORCH_EXTENSIONS_DIR=$folder/racecheck_extensions
  timeout -k 5 "${LIMIT:-250}" compute-sanitizer --tool "$1" \
    python3 reports/h100/ladder/sanitized.py "$2" > "$log" 2>&1
  # By what it says, not by its exit status: a process that did many backwards may abort at its exit, after all is done
  # (pytorch/pytorch#38228).
  local calls clean
  calls=$(grep -c ' finite$' "$log")
  clean=$(grep -cE 'SUMMARY: 0 (errors|hazards)' "$log")
  echo "$1 $2: $calls calls, $(grep 'SUMMARY' "$log" | tr '\n' ' ')"
  ((calls && clean)) && grep -q '^done$' "$log"
}

# Builds them, and once more as racecheck must have them: csrc/hopper/barrier.h says why.
python3 reports/h100/ladder/sanitized.py "${rungs[@]}" > "$folder/plain.log" 2>&1 &
NVCC_APPEND_FLAGS=$every_lane TORCH_EXTENSIONS_DIR=$folder/racecheck_extensions \
  python3 reports/h100/ladder/sanitized.py "${rungs[@]}" > "$folder/plain_for_racecheck.log" 2>&1
wait
for log in "$folder"/plain*.log; do
  grep -q '^done$' "$log" || { tail -n 20 "$log" && exit 1; }
done
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
