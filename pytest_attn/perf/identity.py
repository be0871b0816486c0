"""Which kernels ran, and whether they are the ones that the implementation claims."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_attn.perf.kineto import Trace
from pytest_attn.perf.profiler import profiling

# Template arguments run to hundreds of characters; the name itself and its first arguments stand in front.
_LONGEST_NAME = 160


class RanAnother(AssertionError):
    """The implementation declares its kernels, and none of those ran."""


def kernels_of(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return ``{name, share, count}`` of the kernels of one call, the longest first: shares of the summed time."""
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    for kernel in (kernel for traced in traces for kernel in traced.kernels):
        seconds[kernel.name] = seconds.get(kernel.name, 0.0) + kernel.duration_s
        counts[kernel.name] = counts.get(kernel.name, 0) + 1
    return _shares(seconds, {name: round(count / len(traces)) for name, count in counts.items()})


def operators_of(call: Callable[[], object]) -> list[dict[str, Any]]:
    """Run ``call`` on a CPU and return ``{name, share, count}`` of torch's operators, by the time spent in each itself.

    A CPU has no kernels to name; the operator that torch dispatched to tells a fused path from an unfused one.
    """
    with profiling("CPU") as profiler:
        call()
    averages = [average for average in profiler.key_averages() if average.self_cpu_time_total > 0]
    return _shares(
        {average.key: average.self_cpu_time_total * 1e-6 for average in averages},
        {average.key: average.count for average in averages},
    )


def _shares(seconds: Mapping[str, float], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    total = sum(seconds.values())
    order = sorted(seconds, key=lambda name: -seconds[name])
    return [
        {"name": name, "share": round(seconds[name] / total, 4) if total else 0.0, "count": counts[name]}
        for name in order
    ]


def shortened(kernels: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return ``kernels`` for a record: names cut, and what takes under a thousandth of the time left out."""
    kept = [kernel for kernel in kernels if kernel["share"] >= 0.001] or list(kernels[:1])
    return tuple({**kernel, "name": _cut(kernel["name"])} for kernel in kept)


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def check_identity(kernels: Sequence[Mapping[str, Any]], pattern: str) -> None:
    """Raise :class:`RanAnother`, with the longest kernel's name, unless one of ``kernels`` matches ``pattern``.

    Args:
        kernels: ``{name, share, ...}``, the longest first.
        pattern: a regular expression searched for in each name; empty where nothing is claimed.
    """
    if not pattern or any(re.search(pattern, kernel["name"]) for kernel in kernels):
        return
    raise RanAnother(f"ran {_cut(kernels[0]['name'])}" if kernels else "ran no kernel at all")
