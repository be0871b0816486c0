#!/usr/bin/env bash
# What took the runs in this folder, on an H100 from a checkout: reports/h100/run.sh [OUTPUT_FOLDER]
# README.md beside this says what each run is and what was left out.
set -uo pipefail
out=${1:-reports/h100}
mkdir -p "$out"

perf() { # perf NAME ARGUMENTS...: one run, its JSON and its log
  local name=$1
  shift
  python3 -m pytest tests/perf -m perf --benchmark-json="$out/$name.json" "$@" > "$out/$name.log" 2>&1
  tail -n 3 "$out/$name.log"
}

correctness() { # correctness NAME ARGUMENTS...
  local name=$1
  shift
  python3 -m pytest tests/correctness -m correctness -rfs "$@" > "$out/$name.log" 2>&1
  tail -n 3 "$out/$name.log"
}

peers=(naive sdpa-math sdpa-flash sdpa-efficient sdpa-cudnn flash-attn flex)
perf lab5 --attn-grid lab5 "${peers[@]/#/--attn-impl=}" -k "not (flash-attn and -d32-)"
correctness correctness -k "not flash-attn and not flex"
correctness correctness-flash-attn -k "flash-attn and not flash-attn-4"
perf hw4 --attn-grid hw4 --attn-direction fwd -k "not tiled-torch and not flex"
library=(naive sdpa-flash sdpa-efficient sdpa-cudnn flash-attn)
paper=(--attn-grid fa-paper --attn-direction fwd,bwd -k "not (flash-attn and d256)")
perf fa-paper "${paper[@]}" "${library[@]/#/--attn-impl=}"
perf fa-paper-tiled "${paper[@]}" --attn-brief "${library[@]/#/--attn-impl=}" --attn-impl=tiled-mma --attn-impl=tiled-async
