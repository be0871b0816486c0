"""Our event time against CUPTI's kernel times and ncu's: agreement.py [OUT.json], run again by itself under ncu."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cells import DEVICE, closure, implementation

from attn_impls import Direction, Problem
from attn_impls.problem import CAUSAL, FULL
from pytest_attn.perf.contract import contract_for
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.kineto import Flush
from pytest_attn.perf.measure import measure_alone

# One kernel a call, but for cuDNN's short ones, which fill a buffer first: from 24 µs to 8 ms.
LADDER = [
    (name, Problem(max(1, 4096 // length), 16, 16, length, length, 64, "bf16", mask), Direction.FWD)
    for name in ("sdpa-flash", "sdpa-efficient", "sdpa-cudnn")
    for length in (512, 1024, 2048, 4096, 16384)
    for mask in (FULL, CAUSAL)
]
NCU = [("sdpa-flash", 4), ("sdpa-cudnn", 4), ("sdpa-efficient", 2)]
PROBLEM = {batch: Problem(batch, 16, 16, 2048, 2048, 64, "bf16", CAUSAL) for batch in (2, 4)}
CALLS = 40
DURATION, CLOCK = "gpu__time_duration.sum", "smsp__cycles_elapsed.avg.per_second"


def under_ncu() -> None:
    flush = Flush(DEVICE)
    for name, batch in NCU:
        call = closure(name, PROBLEM[batch], Direction.FWD)
        for _ in range(CALLS):
            flush()
            call()
    torch.cuda.synchronize()


def ncu() -> tuple[dict[str, list[float]], list[tuple[str, float]]]:
    """Return gpu__time_duration by kernel, in seconds, and the SM clock of each, in MHz, with the kernel's name."""
    command = ["ncu", "--clock-control", "none", "--cache-control", "none", "--metrics", f"{DURATION},{CLOCK}"]
    command += ["-k", "regex:flash_fwd|cudnn_gen|fmha_cutlass", "--print-units", "base", "--csv", sys.executable]
    result = subprocess.run([*command, __file__, "--under-ncu"], capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith('"')]
    found: dict[str, list[float]] = {}
    clocks: list[tuple[str, float]] = []
    for row in csv.DictReader(lines):
        value = float(row["Metric Value"].replace(",", ""))
        if row["Metric Name"] == DURATION:
            found.setdefault(row["Kernel Name"], []).append(value * 1e-9)
        elif row["Metric Name"] == CLOCK:
            clocks.append((row["Kernel Name"], value * 1e-6))
    if not found:
        print(result.stdout[-2000:], result.stderr[-2000:])
    return found, clocks


def main(out: Path) -> None:
    torch.cuda.set_device(DEVICE)
    instruments = {timer: Instruments(DEVICE, contract_for(timer, "cuda")) for timer in ("events", "kineto")}

    def measured(name: str, problem: Problem, direction: Direction) -> dict[str, Any]:
        records = {
            timer: measure_alone(implementation(name), problem, direction, each).record
            for timer, each in instruments.items()
        }
        row = {"cell": " ".join(records["events"].key)}
        return row | {timer: record.to_dict() for timer, record in records.items()}

    rows = [measured(*cell) for cell in LADDER]
    worst = 0.0
    for row in rows:
        if any(row[timer]["status"] != "ok" for timer in instruments):
            print(row["cell"], [(row[timer]["status"], row[timer]["reason"]) for timer in instruments])
            continue
        events, kernels = (row[timer]["time_s"]["median"] for timer in ("events", "kineto"))
        count = sum(kernel["count"] for kernel in row["events"]["kernels"])
        row["difference_percent"] = 100 * (events / kernels - 1)
        worst = max(worst, abs(row["difference_percent"]) if kernels >= 20e-6 else 0.0)
        print(f"{1e6 * events:9.2f} {1e6 * kernels:9.2f} {row['difference_percent']:6.2f} % {count} {row['cell']}")
    print(f"worst at 20 µs and above: {worst:.2f} %")
    compared = []
    if shutil.which("ncu"):
        by_ncu, clocks = ncu()
        for name, batch in NCU:
            row = measured(name, PROBLEM[batch], Direction.FWD)
            family = {"sdpa-flash": "flash_fwd", "sdpa-cudnn": "cudnn", "sdpa-efficient": "fmha"}[name]
            seconds = [value for kernel, values in by_ncu.items() if family in kernel for value in values]
            if seconds:
                ncu_s = statistics.median(seconds)
                ours = row["events"]["time_s"]["median"]
                mhz = statistics.median(mhz for kernel, mhz in clocks if family in kernel)
                compared.append({"cell": row["cell"], "ncu_s": ncu_s, "ncu_sm_mhz": mhz, "ncu_calls": len(seconds)})
                compared[-1] |= {"events_s": ours, "events_sm_mhz": (row["events"]["telemetry"] or {}).get("sm_mhz")}
                compared[-1]["kineto_s"] = row["kineto"]["time_s"]["median"]
                print(f"{row['cell']}: events {1e6 * ours:.2f}, ncu {1e6 * ncu_s:.2f} at {mhz:.0f} MHz, ", end="")
                print(f"{100 * (ours / ncu_s - 1):.2f} %")
    out.write_text(json.dumps({"worst_percent": worst, "ladder": rows, "ncu": compared}) + "\n")


if __name__ == "__main__":
    if "--under-ncu" in sys.argv:
        under_ncu()
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "agreement.json"))
