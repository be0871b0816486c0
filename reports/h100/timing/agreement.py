"""Our event time against CUPTI's kernel times and ncu's: agreement.py [OUT.json], run again by itself under ncu."""

from __future__ import annotations

import csv
import json
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cells import DEVICE, closure, commit, implementation

from attn_impls import Direction, Problem
from attn_impls.problem import CAUSAL, FULL
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.perf.contract import contract_for
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.kineto import Flush, Round, trace
from pytest_attn.perf.passes import timed_round
from pytest_attn.perf.rounds import take_turns

# Forward is one kernel a call, but for cuDNN, which fills a buffer first; backward is several, with gaps between them.
LADDER = [
    (name, Problem(max(1, 4096 // length), 16, 16, length, length, head_dim, "bf16", mask), direction)
    for direction, lengths in ((Direction.FWD, (512, 1024, 2048, 4096, 16384)), (Direction.BWD, (512, 2048, 16384)))
    for name in ("sdpa-flash", "sdpa-efficient", "sdpa-cudnn")
    for head_dim in (64, 128)
    for length in lengths
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
    rows = []
    for name, problem, direction in LADDER:
        rows.append(row := both(name, problem, direction, instruments))
        print(
            "{events_us:9.2f} {kineto_us:9.2f} {difference_percent:6.2f} % {kernels} {cell}".format_map(row), flush=True
        )
    compared = []
    if shutil.which("ncu"):
        by_ncu, clocks = ncu()
        for name, batch in NCU:
            family = {"sdpa-flash": "flash_fwd", "sdpa-cudnn": "cudnn", "sdpa-efficient": "fmha"}[name]
            seconds = [value for kernel, values in by_ncu.items() if family in kernel for value in values]
            if seconds:
                row = both(name, PROBLEM[batch], Direction.FWD, instruments)
                # ncu was asked for this kernel alone, not for what else the call runs.
                row["ncu_us"], row["ncu_calls"] = 1e6 * statistics.median(seconds), len(seconds)
                row["ncu_sm_mhz"] = statistics.median(mhz for kernel, mhz in clocks if family in kernel)
                compared.append(row)
                line = "{cell}: kernel {longest_us:.2f} at {sm_mhz} MHz, ncu {ncu_us:.2f} at {ncu_sm_mhz:.0f} MHz"
                print(line.format_map(row))
    worst = {
        f"{direction} {kind}": max((abs(row["difference_percent"]) for row in some), default=None)
        for direction in ("fwd", "bwd")
        for kind, one in (("one kernel", True), ("several", False))
        for some in [[r for r in rows + compared if r["direction"] == direction and (r["kernels"] == 1) == one]]
    }
    print("worst, in percent:", worst)
    out.write_text(json.dumps({"commit": commit(), "worst_percent": worst, "ladder": rows, "ncu": compared}) + "\n")


def both(name: str, problem: Problem, direction: Direction, instruments: dict[str, Instruments]) -> dict[str, Any]:
    """Time one cell by both timers, their batches taking turns: the clock under one is the clock under the other."""
    tensors = make_tensors(Case(problem), DEVICE, draw_on=DEVICE)
    prepare = timed_round(implementation(name), problem, tensors, direction)
    prepare()()
    telemetry = instruments["events"].telemetry
    if telemetry is not None:
        telemetry.watch(0)
    sources = [each.timer.source(prepare) for each in instruments.values()]
    turns = take_turns(sources, instruments["events"].contract, random.Random(problem.id))
    for turn in turns:
        if turn.error is not None:
            raise turn.error
    events_s, kineto_s = (statistics.median(turn.durations) for turn in turns)
    traces = trace([Round(prepare, direction is Direction.BWD)] * 10, Flush(DEVICE))
    seen = None if telemetry is None else telemetry.collect(0)
    return {
        "cell": f"{name} {problem.id} {direction.value}",
        "events_us": 1e6 * events_s,
        "kineto_us": 1e6 * kineto_s,
        "difference_percent": 100 * (events_s / kineto_s - 1),
        "direction": direction.value,
        "kernels": round(statistics.median(len(traced.kernels) for traced in traces)),
        "longest_us": 1e6 * statistics.median(max(k.duration_s for k in traced.kernels) for traced in traces),
        "rounds": [len(turn.durations) for turn in turns],
        "known_to": [turn.known_to for turn in turns],
        "sm_mhz": None if seen is None else seen.get("sm_mhz"),
    }


if __name__ == "__main__":
    if "--under-ncu" in sys.argv:
        under_ncu()
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "agreement.json"))
