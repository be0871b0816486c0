#!/usr/bin/env bash
# A look at the backward of the Hopper rungs, on an H100 from the root of a checkout, in about one and a half minutes:
# reports/h100/ladder/hopper_backward.sh. Every kernel runs in a process of its own under a time limit, as one that
# waits for ever would take the rest along. What is right is counted, and what is wrong is told.
set -uo pipefail
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1
folder=$(mktemp -d)
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$folder/extensions}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # deterministic mode, which the checks use, asks for it
look=reports/h100/ladder/hopper_backward.py
seconds() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }

# Start `hopper_backward.py` with the arguments after the seconds that it may take and the name of its log.
declare -A started
start() {
  timeout -k 2 "$1" nice -n "$2" python3 "$look" "${@:4}" > "$folder/$3.log" 2>&1 &
  started[$3]=$!
}
# Wait for it; print what it found wrong, and the stacks of the thread that ended it.
finish() {
  wait "${started[$1]}"
  local status=$?
  ((status == 0)) && return
  echo "   $1: exit status $status"
  if grep -q 'fatalSignalHandler(' "$folder/$1.log"; then
    grep -E '^first call|^BAD|Error' "$folder/$1.log" | cut -c1-158 | tail -n 5
    awk -v RS= '/fatalSignalHandler\(int|^Current thread|\nCurrent thread/' "$folder/$1.log" |
      grep -v 'omitting python' | sed -E 's/ \(0x[0-9a-f]+ in .*\// (/' | cut -c1-158 | head -n 24
  else
    grep -v '^ok' "$folder/$1.log" | cut -c1-330 | tail -n 8
  fi
  return "$status"
}
checked() { finish "$1" && echo "ok  $1: $(grep -c '^ok' "$folder/$1.log") checks"; }
table() {
  start 45 0 "$1" time "${@:2}"
  finish "$1"
  local status=$?
  grep -E '^(bf16|d[0-9]+ |against)' "$folder/$1.log" | cut -c1-200
  return "$status"
}
# Time what is named beside each other. A process that dies takes the table along: then each is timed beside the first.
timed() {
  table "$@" && return
  for name in "${@:3}"; do
    table "$1_$name" "$2" "$name"
  done
}

timeout 90 nvcc -std=c++20 -O2 -gencode arch=compute_90a,code=sm_90a -Iattn_impls/tiled/csrc \
  tests/tool/hopper/probe.cu -o "$folder/probe" > "$folder/probe.log" 2>&1 &
probe=$!
start 120 0 rungs build tiled-ws
start 140 10 async build tiled-async

wait "$probe" || tail -n 20 "$folder/probe.log"
seconds "probe built"
right=0
for check in $("$folder/probe" list); do
  said=$(timeout -k 2 8 "$folder/probe" "$check" 2>&1)
  status=$?
  if ((status == 0)) && [[ $said == ok* ]]; then
    ((right += 1))
  else
    echo "   $check: exit status $status: ${said:0:500}"
  fi
done
echo "ok  probe: $right checks"
finish rungs
seconds "rungs built"
for mode in default deterministic; do
  start 60 0 "$mode" check "$mode"
done
start 40 0 far far
for mode in default deterministic far; do
  checked "$mode"
done
seconds "rungs checked"
finish async
start 40 0 wide wide
checked wide
seconds "tiled-async built and checked"

start 40 0 kernels kernels tiled-ws sdpa-cudnn
finish kernels
grep -E '^d[0-9]+ ' "$folder/kernels.log" | cut -c1-158
seconds "kernels told"
timed peers tiled-ws tiled-async sdpa-cudnn tiled-ws!
seconds "timed beside peers"
