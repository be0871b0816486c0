"""Run one_process.py ten times and print how far apart their medians are: repeatability.py [OUT.json [PROCESSES]]."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cells import commit

HERE = Path(__file__).parent
PROCESSES = 10


def one() -> dict[str, Any]:
    result = subprocess.run([sys.executable, str(HERE / "one_process.py")], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr)
    data: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return data


def variation(values: list[float]) -> float:
    """Return the coefficient of variation in percent."""
    return 100 * statistics.stdev(values) / statistics.mean(values)


def main(out: Path, processes: int) -> None:
    runs = [one() for _ in range(processes)]
    rows = []
    for index, first in enumerate(runs[0]["rows"]):
        same = [run["rows"][index] for run in runs]
        records = [row["record"] for row in same]
        if any(record["status"] != "ok" for record in records):
            print(first["cell"], [(record["status"], record["reason"]) for record in records])
            continue
        ours = [record["time_s"]["median"] for record in records]
        rows.append(
            {
                "cell": first["cell"],
                "median_us": 1e6 * statistics.median(ours),
                "cv_percent": variation(ours),
                "cv_do_bench_mean_percent": variation([row["do_bench mean"] for row in same]),
                "cv_do_bench_median_percent": variation([row["do_bench median"] for row in same]),
                "do_bench_mean_us": 1e6 * statistics.median(row["do_bench mean"] for row in same),
                "do_bench_median_us": 1e6 * statistics.median(row["do_bench median"] for row in same),
                "kernel_us": 1e6 * statistics.median(record["kernel_s"] for record in records),
                "sm_mhz": statistics.median((record["telemetry"] or {}).get("sm_mhz") or 0 for record in records),
            }
        )
    out.write_text(json.dumps({"commit": commit(), "processes": processes, "cells": rows, "runs": runs}) + "\n")
    print(f"{'µs':>8} {'CV %':>6} {'do_bench mean':>14} {'median':>8}  kernels µs  cell ({processes} processes)")
    for row in rows:
        print(
            f"{row['median_us']:8.1f} {row['cv_percent']:6.2f} {row['cv_do_bench_mean_percent']:14.2f} "
            f"{row['cv_do_bench_median_percent']:8.2f}  {row['kernel_us']:10.1f}  {row['cell']}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "repeatability.json"), int((sys.argv[2:] or [PROCESSES])[0]))
