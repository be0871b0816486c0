#!/usr/bin/env bash
# Build the candidates for tiled-hopper, check each and time them, on an H100 from the root of a checkout, in about
# two minutes: reports/h100/ladder/tuning/hopper_forward.sh [PEER...]
# Checks run in processes of their own under a time limit, as a kernel that waits for ever would take the rest along.
set -uo pipefail
peers=("${@:-sdpa-cudnn}") # those that are not installed are left out
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1
folder=$(mktemp -d)
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$folder/extensions}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # deterministic mode, which the checks use, asks for it
tune=(python3 reports/h100/ladder/tuning/hopper_forward.py)
seconds() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }

timeout 120 python3 reports/h100/ladder/hopper.py build tiled-hopper > "$folder/rungs.log" 2>&1 &
rungs=$!
timeout 120 "${tune[@]}" build "$folder/sources" > "$folder/build.log" 2>&1 || tail -n 30 "$folder/build.log"
grep -c ' 0 bytes of stack' "$folder/build.log" | sed 's/$/ candidates without spills/'
grep ' bytes of stack' "$folder/build.log" | grep -v ' 0 bytes of stack'
wait "$rungs" || tail -n 30 "$folder/rungs.log"
seconds "built"

check() {
  timeout -k 2 60 "${tune[@]}" check "$folder/sources" "$1" > "$folder/$1.log" 2>&1
  local status=$?
  ((status)) && echo "$1" >> "$folder/sources/wrong"
  grep -v '^ok' "$folder/$1.log" | cut -c1-330 | tail -n 12
  echo "   $1: exit status $status, $(grep -c '^ok' "$folder/$1.log") checks passed"
}
check_rung() {
  timeout -k 2 60 python3 reports/h100/ladder/hopper.py check tiled-hopper > "$folder/hopper.log" 2>&1 ||
    echo tiled-hopper >> "$folder/sources/wrong"
  grep -v '^ok' "$folder/hopper.log" | cut -c1-330
  echo "   tiled-hopper: $(grep -c '^ok' "$folder/hopper.log") checks passed"
}
check_rung &
mapfile -t names < <("${tune[@]}" names)
for name in "${names[@]}"; do
  while (($(jobs -rp | wc -l) >= 5)); do wait -n; done
  check "$name" &
done
wait
seconds "checked"
# The tables come last and together; every time that was taken is in the logs, which $OUT keeps where it is set.
for width in 64 128 256; do
  log=$folder/timed_$width.log
  timeout -k 2 120 "${tune[@]}" time "$folder/sources" "$width" "${peers[@]}" > "$log" 2>&1 ||
    { echo "timing $width failed:" && tail -n 12 "$log" | cut -c1-400; }
  seconds "timed $width"
done
[[ -n ${OUT:-} ]] && cp "$folder"/*.log "$OUT"
for width in 64 128 256; do sed -n "/^d$width, forward/,\$p" "$folder/timed_$width.log" | cut -c1-180; done
