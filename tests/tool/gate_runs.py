"""Runs made by hand, for the tests of the gate and of the commands that read runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from attn_impls.problem import CAUSAL, FULL, Direction, Problem
from pytest_attn.perf.record import Record, Run, Time

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "device_type": "cuda", "driver": "580.1", "power_limit_w": 700.0}
SMALL = Problem(1, 4, 4, 128, 128, 64, "bf16", FULL)
LARGE = Problem(1, 4, 4, 4096, 4096, 64, "bf16", CAUSAL)


def record(
    median: float | None,
    spread: float = 0.01,
    *,
    impl: str = "naive",
    problem: Problem = SMALL,
    direction: Direction = Direction.FWD,
    status: str = "ok",
    reason: str | None = None,
    contract: str = "events/1",
    rounds: int = 50,
) -> Record:
    """A record of ``median`` seconds, its p10 and p90 a share of ``spread`` below and above."""
    time = None if median is None else Time(median, median * (1 - spread), median * (1 + spread), rounds)
    return Record(impl, problem, direction, status, contract, reason, time_s=time)


def run_of(*records: Record, **changes: object) -> Run:
    """A run of ``records`` on an H100 over the grid ``smoke``, unless ``changes`` say otherwise."""
    fields: dict[str, object] = {"grid": "smoke", "machine": MACHINE, "environment": {"torch": "2.13.0"}}
    return Run(records, **(fields | changes))  # type: ignore[arg-type]


def write_run(path: Path, run: Run, *, noise: Sequence[object] = ()) -> Path:
    """Write ``run`` as pytest-benchmark would; ``noise`` are benchmarks of someone else in the same file."""
    timed = [{"extra_info": {"attn": item.to_dict()}} for item in run.records if item.time_s is not None]
    path.write_text(json.dumps({"benchmarks": [*timed, *noise], "attn": run.header()}))
    return path
