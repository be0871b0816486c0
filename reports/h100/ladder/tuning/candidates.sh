# Sourced by the scripts beside it: build candidates and their rung, and check each in a process of its own under a time
# limit, as a kernel that waits for ever would take the rest along. Logs and sources lie in $folder; names that failed
# in $folder/sources/wrong.
#   build_and_check SCRIPT RUNG
# shellcheck shell=bash
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1
folder=$(mktemp -d)
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$folder/extensions}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # deterministic mode, which the checks use, asks for it
seconds() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }

check() { # NAME COMMAND...
  local name=$1
  timeout -k 2 60 "${@:2}" > "$folder/$name.log" 2>&1
  local status=$?
  ((status)) && echo "$name" >> "$folder/sources/wrong"
  grep -v '^ok' "$folder/$name.log" | cut -c1-330 | tail -n 12
  echo "   $name: exit status $status, $(grep -c '^ok' "$folder/$name.log") checks passed"
}

build_and_check() {
  local script=$1 rung=$2 built names name most=$((($(nproc) + 1) / 2))
  timeout 120 python3 reports/h100/ladder/hopper.py build "$rung" > "$folder/rungs.log" 2>&1 &
  built=$!
  timeout 120 python3 "$script" build "$folder/sources" > "$folder/build.log" 2>&1 || tail -n 30 "$folder/build.log"
  grep -c ' 0 bytes of stack' "$folder/build.log" | sed 's/$/ candidates without spills/'
  grep ' bytes of stack' "$folder/build.log" | grep -v ' 0 bytes of stack'
  wait "$built" || tail -n 30 "$folder/rungs.log"
  seconds "built"
  check "$rung" python3 reports/h100/ladder/hopper.py check "$rung" &
  mapfile -t names < <(python3 "$script" names)
  for name in "${names[@]}"; do
    while (($(jobs -rp | wc -l) >= most)); do wait -n; done
    check "$name" python3 "$script" check "$folder/sources" "$name" &
  done
  wait
  seconds "checked"
}
