"""Time the twelve cells once, beside triton's do_bench, and print a line of JSON: one process of repeatability.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import triton.testing

sys.path.insert(0, str(Path(__file__).parent))
from cells import CELLS, DEVICE, closure, implementation

from pytest_attn.perf.contract import contract_for
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.measure import measure_alone


def main() -> None:
    begin = time.perf_counter()
    torch.cuda.set_device(DEVICE)
    instruments = Instruments(DEVICE, contract_for("events", "cuda"))
    ready = time.perf_counter() - begin
    rows = []
    for name, problem, direction in CELLS:
        begin = time.perf_counter()
        record = measure_alone(implementation(name), problem, direction, instruments).record
        wall = time.perf_counter() - begin
        call = closure(name, problem, direction)
        call()
        # Each in the order in which a user would meet them; their results are in milliseconds.
        bench = {
            f"do_bench {mode}": triton.testing.do_bench(call, return_mode=mode) * 1e-3 for mode in ("mean", "median")
        }
        rows.append({"cell": " ".join(record.key), "wall_s": wall, **bench, "record": record.to_dict()})
    print(json.dumps({"ready_s": ready, "instruments": instruments.describe(), "rows": rows}))


if __name__ == "__main__":
    main()
