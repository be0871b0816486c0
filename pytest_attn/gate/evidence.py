"""What a record says of the device while it was timed, and a run of its kernels, as far as the gate can use it.

These parts are other tools' words (NVML's, a profiler's, a compiler's) and have no fixed form, so that what does not
fit counts as not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_attn.perf.record import Record, Run

# By the names of pytest_attn.perf.telemetry, which imports torch. A software power cap is not among them: kernels that
# draw much power run under it all the time, and what it costs shows in the clock.
THROTTLED = frozenset(
    {"hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake"}
)


def finite(value: Any) -> float | None:
    """Return ``value`` where it is a finite number, otherwise ``None``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def sm_mhz(record: Record) -> float | None:
    """Return the median SM clock in MHz, ``None`` where it is not known."""
    clock = finite((record.telemetry or {}).get("sm_mhz"))
    return clock if clock is not None and clock > 0 else None


def disturbance(record: Record) -> str | None:
    """Return ``throttle`` or ``shared`` when the process was held back or not alone on the device, else ``None``."""
    telemetry = record.telemetry or {}
    reasons = telemetry.get("clock_reasons")
    if isinstance(reasons, (list, tuple)) and THROTTLED.intersection(map(str, reasons)):
        return "throttle"
    return "shared" if finite(telemetry.get("foreign_processes")) else None


def kernels_built(run: Run) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Return what each kernel takes, by implementation and the kernel's name, of those that could be told."""
    found: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for impl, known in run.implementations.items():
        resources = known.get("resources") if isinstance(known, Mapping) else None
        kernels = resources.get("kernels") if isinstance(resources, Mapping) else None
        if isinstance(kernels, Mapping):
            found[impl] = {str(name): one for name, one in kernels.items() if isinstance(one, Mapping)}
    return found
