"""Energy of one call, from the device's own counter, in a loop of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_attn.perf.timers import Prepare

# The counter moves every 0.1 s: calls are queued in portions much shorter than that.
_PORTION_S = 0.01


def energy_per_call(
    prepare: Prepare, synchronize: Callable[[], object], joules: Callable[[], float | None], loop_s: float
) -> float | None:
    """Call ``prepare()()`` back to back for about ``loop_s`` seconds and return joules a call; ``None`` if unknown.

    The counter is read at two of its own steps, as far apart as the loop allows, and the energy between them is shared
    by the calls between them. What ``prepare`` does counts too: for a backward pass that is the forward before it, so
    that only forward and both directions together have an energy of their own.
    """
    steps: list[tuple[float, int]] = []
    last = joules()
    if last is None:
        return None
    calls, portion = 0, 1
    begin = time.perf_counter()
    while time.perf_counter() - begin < loop_s:
        since = time.perf_counter()
        for _ in range(portion):
            prepare()()
        synchronize()
        calls += portion
        portion = max(1, int(portion * _PORTION_S / max(time.perf_counter() - since, 1e-6)))
        now = joules()
        if now is not None and now != last:
            steps.append((now, calls))
            last = now
    if len(steps) < 2 or steps[-1][1] == steps[0][1]:
        return None
    return (steps[-1][0] - steps[0][0]) / (steps[-1][1] - steps[0][1])
