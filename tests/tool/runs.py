"""Plausible runs made up from grids, for tests of the report: no torch, no device, the same numbers every time.

Times follow a small model of a GPU (work over a speed that grows with length, traffic over a bandwidth, a launch), so
that curves cross, small shapes are bound by launches and what keeps its scores runs out of memory.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attn_impls.grids import load_grid
from attn_impls.problem import CAUSAL, DTYPE_BYTES, FULL, Direction, Problem
from pytest_attn.perf.record import Memory, Record, Run, Time

DEVICE_BYTES = 80 * 2**30
PEAK, BANDWIDTH, NOMINAL_MHZ = 989.4e12, 2.6e12, 1830.0
DIRECTIONS = ("fwd", "bwd", "fwd_bwd")
Change = Callable[[Record], Record]


@dataclass(frozen=True)
class Model:
    """How an implementation behaves: ``speed`` is its share of the peak at great length, half of that at ``half``."""

    speed: float
    half: int = 300
    scores: float = 0.0
    """Score matrices kept, in the problem's dtype: what makes memory grow with the square of the length."""
    skips: bool = True
    backward: bool = True
    error: float = 0.4
    compile_s: float = 0.05
    launch: float = 8e-6


MODELS = {
    "naive": Model(0.09, 100, 2.0, skips=False, error=0.5, launch=3e-5),
    "sdpa-math": Model(0.07, 100, 3.0, skips=False, error=0.55, launch=6e-5),
    "sdpa-flash": Model(0.35, 250, error=0.31),
    "sdpa-efficient": Model(0.28, 200, error=0.33),
    "sdpa-cudnn": Model(0.6, 350, error=0.04, launch=5e-6),
    "flash-attn": Model(0.37, 280, error=0.3),
    "flash-attn-4": Model(0.72, 1500, error=0.28, compile_s=9.0),
    "flex": Model(0.3, 500, error=0.35, compile_s=14.0, launch=2.5e-5),
    "triton": Model(0.42, 420, error=0.36, compile_s=2.5),
    "tiled-global": Model(0.0004, 60, error=0.02, backward=False),
    "tiled-smem": Model(0.0011, 60, error=0.02, backward=False),
    "tiled-regs": Model(0.012, 80, error=0.02, backward=False),
    "tiled-mma": Model(0.2, 200, error=0.4, backward=False),
    "tiled-async": Model(0.31, 250, error=0.4),
}
EIGHT = tuple(MODELS)[:8]


def grid_run(grid: str | Iterable[Problem], impls: Sequence[str] = EIGHT, **changes: Any) -> Run:
    """Return a run of ``impls`` over ``grid``; ``changes`` are :func:`run_of_problems`'s other arguments."""
    problems = load_grid(grid) if isinstance(grid, str) else list(grid)
    return run_of_problems(problems, impls, grid=grid if isinstance(grid, str) else "own", **changes)


def run_of_problems(
    problems: Sequence[Problem],
    impls: Sequence[str] = EIGHT,
    *,
    directions: Sequence[str] = DIRECTIONS,
    grid: str = "own",
    device: str = "NVIDIA H100 80GB HBM3",
    source: str = "run.json",
    seed: int = 0,
    faster: float = 1.0,
    telemetry: bool = True,
    change: Change = lambda record: record,
) -> Run:
    """Return a run of every implementation on every problem in every direction.

    ``faster`` divides every time (another machine), ``seed`` moves the noise (the same machine again), and ``change``
    is applied to each record (what a test plants).
    """
    records = [
        change(_record(impl, problem, Direction(direction), seed, faster, telemetry))
        for problem, impl, direction in itertools.product(problems, impls, directions)
    ]
    machine = {"device": device, "device_type": "cuda", "memory_bytes": DEVICE_BYTES, "power_limit_w": 700.0}
    known = {impl: {"version": "1.0", "missing": None} for impl in impls}
    return Run(tuple(records), grid, machine, {"torch": "2.13.0"}, known, source)


def many_problems(count: int) -> list[Problem]:
    """Return ``count`` different problems of many lengths, batches, heads, head dims and masks, bf16."""
    lengths = sorted({2**power * step // 4 for power in range(7, 15) for step in (4, 5, 6, 7)})
    axes = itertools.product(lengths, (1, 2, 4, 8, 16, 32), (8, 16, 32), (64, 128), (FULL, CAUSAL))
    problems = [Problem(b, h, h, s, s, d, "bf16", mask) for s, b, h, d, mask in axes]
    if count > len(problems):
        raise ValueError(f"at most {len(problems)} problems")
    # Every n-th, so that few problems still span all axes.
    return [problems[number * len(problems) // count] for number in range(count)]


def _record(impl: str, problem: Problem, direction: Direction, seed: int, faster: float, telemetry: bool) -> Record:
    model = MODELS.get(impl, Model(0.2))
    contract = "events/2"
    if direction is not Direction.FWD and not model.backward:
        return Record(impl, problem, direction, "unsupported", contract, "has no backward")
    memory = _memory(model, problem, direction)
    if memory.peak_bytes > DEVICE_BYTES:
        asked = f"out of memory: asked for {memory.peak_bytes / 2**30:.2f} GiB"
        return Record(impl, problem, direction, "oom", contract, asked)
    noise = random.Random(f"{seed}/{impl}/{problem.id}/{direction}")
    median = _seconds(model, problem, direction) / faster * noise.uniform(0.985, 1.015)
    spread = noise.uniform(0.002, 0.03)
    speed = problem.flops(direction) / median
    mhz, watts = NOMINAL_MHZ - 300 * min(1.0, speed / PEAK), 200 + 480 * min(1.0, speed / PEAK) ** 0.5
    peak = 100 * speed / PEAK
    seen = {"sm_mhz": mhz, "power_w": watts, "temp_c": 55.0, "clock_reasons": [], "energy_j": watts * median}
    return Record(
        impl,
        problem,
        direction,
        "ok",
        contract,
        impl_version="1.0",
        time_s=Time(median, median * (1 - spread), median * (1 + 1.4 * spread), 50),
        memory=memory,
        host_us=model.launch * 1e6,
        compile_s=model.compile_s * noise.uniform(0.8, 1.3),
        percent_of_peak=peak if telemetry else None,
        percent_of_peak_at_clock=peak * NOMINAL_MHZ / mhz if telemetry else None,
        kernel_s=median * 0.99,
        kernels=({"name": f"{impl.replace('-', '_')}_kernel", "share": 1.0, "count": 1},),
        telemetry=seen if telemetry else None,
        accuracy={"error_ratio": model.error * noise.uniform(0.8, 1.2)},
    )


def _seconds(model: Model, problem: Problem, direction: Direction) -> float:
    flops = problem.flops(direction) if model.skips else problem.dense_flops(direction)
    long = problem.kv_len / (problem.kv_len + model.half)
    scores = 4 * model.scores * _score_bytes(problem)
    moved = (problem.min_bytes(direction) + scores) / BANDWIDTH
    return model.launch + max(flops / (PEAK * model.speed * long), moved)


def _memory(model: Model, problem: Problem, direction: Direction) -> Memory:
    forward = direction is Direction.FWD
    outputs = problem.min_bytes(direction) // (4 if forward else 2)
    workspace = int(_score_bytes(problem) * model.scores * (1.0 if forward else 1.5)) + 4096
    return Memory(outputs + workspace, workspace, None if forward else workspace // 2)


def _score_bytes(problem: Problem) -> int:
    return DTYPE_BYTES[problem.dtype] * problem.batch * problem.heads * problem.q_len * problem.kv_len
