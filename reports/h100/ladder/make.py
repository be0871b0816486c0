"""Writes what was measured into docs/ladder.md: ``python reports/h100/ladder/make.py RUN.json... [COUNTERS.csv]``.

``RUN.json`` is what ``pytest -m perf --attn-grid hw4 --benchmark-json=RUN.json`` wrote; several are read as one.
``COUNTERS.csv`` is what ``ncu --csv --page raw --print-units base --log-file COUNTERS.csv`` wrote of a forward of each
rung, with the metrics of :data:`COUNTERS`. Where a kernel was profiled more than once, the last counts.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from attn_impls.problem import Direction  # noqa: E402
from pytest_attn.perf.record import Record, load_run  # noqa: E402

PAGE = ROOT / "docs" / "ladder.md"
RUNGS = ("seq", "global", "smem", "pad", "coalesced", "unroll", "regs")
# Metric of Nsight Compute: its column, and what one unit of the column is in the metric's base unit.
COUNTERS = {
    "gpu__time_duration.sum": ("ms", 1e6),
    "l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio": ("sectors a global load", 1),
    "l1tex__t_bytes_pipe_lsu_mem_global_op_ld.sum": ("GB global loads", 1e9),
    "lts__t_bytes.sum": ("GB through L2", 1e9),
    "dram__bytes_read.sum": ("MB from DRAM", 1e6),
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum": ("M shared load turns", 1e6),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum": ("M load conflicts", 1e6),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum": ("M store conflicts", 1e6),
    "smsp__inst_executed.sum": ("M instructions", 1e6),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("% occupancy", 1),
    "launch__registers_per_thread": ("registers", 1),
}


def times(records: list[Record]) -> str:
    """Return the table of milliseconds, each with its speed over the rung before on the same problem."""
    ok = {
        (r.impl.removeprefix("tiled-"), r.problem): r.time_s.median
        for r in records
        if r.time_s is not None and r.direction is Direction.FWD
    }
    problems = sorted({problem for _, problem in ok}, key=lambda problem: (problem.batch, problem.q_len))
    rungs = [rung for rung in RUNGS if any((rung, problem) in ok for problem in problems)]
    others = sorted({name for name, _ in ok} - set(RUNGS))
    rows = []
    for rung in (*rungs, *others):
        cells = []
        for problem in problems:
            seconds = ok.get((rung, problem))
            above = [ok.get((each, problem)) for each in rungs[: rungs.index(rung)]] if rung in rungs else []
            before = above[-1] if above else None
            gain = "" if before is None or seconds is None else f" ({before / seconds:.2f}×)"
            cells.append("" if seconds is None else f"{1e3 * seconds:.3g}{gain}")
        rows.append([f"`tiled-{rung}`" if rung in rungs else f"`{rung}`", *cells])
    sizes = [f"{problem.batch}, {problem.q_len}, {problem.head_dim}" for problem in problems]
    return table(["ms (over the rung before)", *sizes], rows)


def counters(path: Path) -> str:
    """Return the table of Nsight Compute's counters, one row a rung."""
    lines = [line for line in path.read_text().splitlines() if line.startswith('"')]
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        if match := re.search(r"(\w+)_forward_kernel", row["Kernel Name"]):
            found[match[1]] = row
    metrics = [metric for metric in COUNTERS if any(metric in row for row in found.values())]
    rows = []
    for rung in (rung for rung in RUNGS if rung in found):
        values = [float(found[rung][metric].replace(",", "")) / COUNTERS[metric][1] for metric in metrics]
        rows.append([f"`tiled-{rung}`", *(f"{value:.4g}" for value in values)])
    return table(["rung", *(COUNTERS[metric][0] for metric in metrics)], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def fill(text: str, measured: str) -> str:
    """Return the page with ``measured`` between its marks."""
    begin, end = "<!-- measured -->\n", "<!-- end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}{measured}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str], page: Path = PAGE) -> None:
    """Read the files and write the page."""
    runs = [load_run(name) for name in arguments if name.endswith(".json")]
    if not runs:
        raise SystemExit(__doc__)
    machine = ", ".join(dict.fromkeys(str(run.machine.get("device", "")) for run in runs))
    parts = [f"{machine}.", times([record for run in runs for record in run.records])]
    parts += [counters(Path(name)) for name in arguments if name.endswith(".csv")]
    page.write_text(fill(page.read_text(), "\n\n".join(parts)))


if __name__ == "__main__":
    main(sys.argv[1:])
