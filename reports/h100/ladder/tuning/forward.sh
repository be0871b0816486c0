#!/usr/bin/env bash
# Build the candidates for the forward of tiled-async, check each and time them beside flash-attn 2, on an H100 from the
# root of a checkout, in about 100 seconds on 16 cores: reports/h100/ladder/tuning/forward.sh [WHEEL OF FLASH-ATTN]
# Where $OUT is set, all that was said lies there: checks.log (builds and checks) and times.log.
set -uo pipefail
script=reports/h100/ladder/tuning/forward.py
# shellcheck source=reports/h100/ladder/tuning/candidates.sh
source reports/h100/ladder/tuning/candidates.sh

unpacked=
if (($#)); then
  export PYTHONPATH=$folder/flash_attn:$PYTHONPATH
  pip install -q --no-index --no-deps --target "$folder/flash_attn" "$1" > "$folder/pip.log" 2>&1 &
  unpacked=$!
fi
nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv,noheader
build_and_check "$script" tiled-async | cut -c1-160
[[ -z $unpacked ]] || wait "$unpacked" || tail -n 5 "$folder/pip.log"

kept=${OUT:-$folder}
cat "$folder"/*.log > "$kept/checks.log"
timeout -k 2 60 python3 "$script" time "$folder/sources" > "$kept/times.log" 2>&1 ||
  { echo "timing failed:" && tail -n 12 "$kept/times.log" | cut -c1-160; }
seconds "timed"
awk '/^d[0-9]+, forward/ { shown = 1 } / us: / { shown = 0 } shown' "$kept/times.log" | cut -c1-160
