"""What a record costs beyond its timed rounds, over the grid fa-paper: cost.py [OUT.json], some minutes."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cells import commit

from attn_impls import Direction, discover
from attn_impls.grids import load_grid
from pytest_attn.perf import check, inputs, measure, rounds, stirring
from pytest_attn.perf.contract import contract_for
from pytest_attn.perf.instruments import Instruments

NAMES = ("sdpa-flash", "sdpa-efficient", "sdpa-cudnn")
spent: Counter[str] = Counter()


def clocked(name: str, function: Any) -> Any:
    """Clock the host. That it waits for the device at the end would be a cost of this script; most of these do."""

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[name] += time.perf_counter() - begin

    return wrapper


def main(out: Path) -> None:
    rounds._timed_batch = clocked("timed rounds", rounds._timed_batch)
    rounds._warm_up = clocked("warm-up", rounds._warm_up)
    inputs.make_tensors = clocked("inputs", inputs.make_tensors)
    check._judged = clocked("oracle", check._judged)
    check._standard = clocked("of it what is shared", check._standard)
    check._timed_run = clocked("two calls", check._timed_run)
    measure.memory_of = clocked("memory", measure.memory_of)
    measure.trace = clocked("trace", measure.trace)
    inputs.Inputs.changed = clocked("looking at the inputs", inputs.Inputs.changed)
    stirring.Stirring.put_back = clocked("putting the inputs back", stirring.Stirring.put_back)
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    instruments = Instruments(device, contract_for("events", "cuda"))
    implementations = [discover().resolve(name) for name in NAMES]
    begin = time.perf_counter()
    records = []
    by_problem = {}
    for problem in load_grid("fa-paper"):
        before = spent.copy()
        outcomes = [
            outcome
            for direction in Direction
            for outcome in measure.measure_group(implementations, problem, direction, instruments)
            if isinstance(outcome, measure.Measured)
        ]
        records += [outcome.record for outcome in outcomes]
        by_problem[problem.id] = {n: round(1e3 * (spent[n] - before[n]) / len(outcomes), 1) for n in sorted(spent)}
    total = time.perf_counter() - begin
    statuses = Counter(record.status for record in records)
    compiling = sum(record.compile_s or 0.0 for record in records)
    beyond = (total - spent["timed rounds"] - compiling) / len(records)
    per_record = {name: 1e3 * seconds / len(records) for name, seconds in spent.items()}
    # The trace of a record against its own time: it comes after the rounds, and after what the host did meanwhile.
    apart = sorted(
        (abs(record.time_s.median / record.kernel_s - 1) if record.time_s and record.kernel_s else 0.0, record.key)
        for record in records
        if record.kernels is not None and sum(kernel["count"] for kernel in record.kernels) == 1
    )
    result = {
        "commit": commit(),
        "records": len(records),
        "statuses": dict(statuses),
        "total_s": total,
        "compile_ms_per_record": 1e3 * compiling / len(records),
        "beyond_timed_rounds_and_compiling_ms_per_record": 1e3 * beyond,
        "ms_per_record": per_record,
        "ms_per_record_of_each_problem": by_problem,
        "one_kernel_records": len(apart),
        "of_them_over_2_percent_apart": [f"{key}: {100 * by:.1f} %" for by, key in apart if by > 0.02],
        "instruments": instruments.describe(),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result | {"ms_per_record_of_each_problem": "in the file"}, indent=1))
    for record in records:
        if record.status not in ("ok", "unsupported"):
            print(record.key, record.status, record.reason)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "cost.json"))
