#!/usr/bin/env bash
# Build the candidates for tiled-hopper, check each and time them, on an H100 from the root of a checkout, in about
# two minutes: reports/h100/ladder/tuning/hopper_forward.sh [PEER...]
set -uo pipefail
peers=("${@:-sdpa-cudnn}") # those that are not installed are left out
script=reports/h100/ladder/tuning/hopper_forward.py
# shellcheck source=reports/h100/ladder/tuning/candidates.sh
source reports/h100/ladder/tuning/candidates.sh

build_and_check "$script" tiled-hopper
# The tables come last and together; every time that was taken is in the logs, which $OUT keeps where it is set.
for width in 64 128 256; do
  log=$folder/timed_$width.log
  timeout -k 2 120 python3 "$script" time "$folder/sources" "$width" "${peers[@]}" > "$log" 2>&1 ||
    { echo "timing $width failed:" && tail -n 12 "$log" | cut -c1-400; }
  seconds "timed $width"
done
[[ -n ${OUT:-} ]] && cp "$folder"/*.log "$OUT"
for width in 64 128 256; do sed -n "/^d$width, forward/,\$p" "$folder/timed_$width.log" | cut -c1-180; done
