"""What the committed runs say of the times, beyond the tables of the other scripts: figures.py, needs no GPU."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from pytest_attn.perf.record import Record, load_run

HERE = Path(__file__).parent
RUNS = {name: HERE.parent / f"{name}.json" for name in ("fa-paper", "fa-paper-tiled")}


def coverage(max_rounds: int = 500) -> str:
    """Tell how often the median of ten processes lies outside of a process's own interval, and who met the cap."""
    runs = json.loads((HERE / "repeatability.json").read_text())["runs"]
    times = [[run["rows"][index]["record"]["time_s"] for run in runs] for index in range(len(runs[0]["rows"]))]
    outside = wide = capped = 0
    for same in times:
        middle = statistics.median(time["median"] for time in same)
        outside += sum(abs(time["median"] - middle) > time["ci"] * time["median"] for time in same)
        wide += sum(time["ci"] > 0.005 for time in same)
        capped += sum(time["n"] >= max_rounds for time in same)
    count, worst = sum(map(len, times)), max(time["ci"] for same in times for time in same)
    ready = [run["ready_s"] for run in runs]
    return (
        f"repeatability: of {count} medians {outside} lie outside of their own interval around the ten-process median\n"
        f"repeatability: {wide} intervals are wider than ±0.5 %, up to ±{100 * worst:.2f} %; "
        f"{capped} records ended at {max_rounds} rounds\n"
        f"repeatability: a process needs {min(ready):.1f} to {max(ready):.1f} s before its first cell"
    )


def timed(name: str) -> dict[tuple[str, str, str], Record]:
    return {record.key: record for record in load_run(RUNS[name]).records if record.status == "ok"}


def against_kernels(name: str) -> str:
    """Tell how far the event times are from the sums of the traced kernels of the same record."""
    lines = []
    for single in (True, False):
        off: list[tuple[float, str]] = []
        for key, record in timed(name).items():
            if record.time_s is None or record.kernel_s is None or record.kernels is None:
                continue
            if (sum(kernel["count"] for kernel in record.kernels) == 1) == single:
                off.append((100 * (record.time_s.median / record.kernel_s - 1), " ".join(key)))
        (least, low), (most, high) = min(off), max(off)
        lines.append(
            f"{name}: {'one kernel' if single else 'several'}: {sum(abs(each) > 2 for each, _ in off)} of {len(off)} "
            f"differ by more than 2 %; {least:+.1f} % {low}; {most:+.1f} % {high}"
        )
    return "\n".join(lines)


def between_runs() -> str:
    """Tell how far two runs of the same cells are apart: one whole and one brief, of two commits, hours apart."""
    first, second = (timed(name) for name in RUNS)
    apart = []
    for key in first.keys() & second.keys():
        one, other = first[key].time_s, second[key].time_s
        if one is not None and other is not None:
            apart.append(100 * abs(other.median / one.median - 1))
    counts = ", ".join(f"{sum(each > limit for each in apart)} by more than {limit} %" for limit in (0.5, 1, 2))
    return (
        f"fa-paper and fa-paper-tiled: of {len(apart)} cells of both {counts}; "
        f"median {statistics.median(apart):.2f} %, most {max(apart):.1f} %"
    )


if __name__ == "__main__":
    print(coverage(), *(against_kernels(name) for name in RUNS), between_runs(), sep="\n")
