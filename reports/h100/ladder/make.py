"""Writes what was measured into docs/ladder.md: ``python reports/h100/ladder/make.py RUN.json... [PROFILE.json...]``.

``RUN.json`` is what ``pytest -m perf --benchmark-json=RUN.json`` wrote, ``PROFILE.json`` what ``attn profile`` wrote of
forward calls; several of either are read as one, told apart by what they hold. Each dtype has tables of its own. The
counters are those of the largest problem of the dtype at which most rungs were profiled; of a rung that was profiled
more than once there, the last counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from attn_impls.problem import DTYPE_BYTES, Direction, Problem  # noqa: E402
from pytest_attn.counters.document import Call, is_profile, load_profile  # noqa: E402
from pytest_attn.perf.record import Record, load_run  # noqa: E402

PAGE = ROOT / "docs" / "ladder.md"
RUNGS = (
    "seq",
    "global",
    "smem",
    "pad",
    "coalesced",
    "unroll",
    "regs",
    "mma",
    "async",
    "wgmma",
    "ws",
    "overlap",
    "hopper",
)
# Row of a profile: its column, and what one unit of the column is in the row's unit.
COUNTERS = {
    "duration": ("ms", 1e-3),
    "gld_transactions_per_request": ("sectors a global load", 1),
    "gld_bytes": ("GB global loads", 1e9),
    "l2_bytes": ("GB through L2", 1e9),
    "dram_read_bytes": ("MB from DRAM", 1e6),
    "shared_load_transactions": ("M shared load turns", 1e6),
    "shared_ld_bank_conflict": ("M load conflicts", 1e6),
    "shared_st_bank_conflict": ("M store conflicts", 1e6),
    "inst_executed": ("M instructions", 1e6),
    "tensor_precision_fu_utilization": ("% tensor pipe", 1),
    "achieved_occupancy": ("% occupancy", 1),
    "registers": ("registers", 1),
    "local_memory": ("bytes spilled", 1),
}


def times(records: Sequence[Record]) -> str:
    """Return the table of milliseconds, each with its speed over the rung before on the same problem."""
    ok = {
        (r.impl.removeprefix("tiled-"), r.problem): r.time_s.median
        for r in records
        if r.time_s is not None and r.direction is Direction.FWD
    }
    problems = sorted({problem for _, problem in ok}, key=lambda p: (p.batch, p.q_len, p.head_dim, p.id))
    rungs = [rung for rung in RUNGS if any((rung, problem) in ok for problem in problems)]
    others = sorted({name for name, _ in ok} - set(RUNGS))
    rows = []
    for rung in (*rungs, *others):
        cells = []
        for problem in problems:
            seconds = ok.get((rung, problem))
            earlier = rungs[: rungs.index(rung)] if rung in rungs else []
            above = [ok[each, problem] for each in earlier if (each, problem) in ok]
            gain = f" ({above[-1] / seconds:.2f}×)" if above and seconds is not None else ""
            cells.append("" if seconds is None else f"{1e3 * seconds:.3g}{gain}")
        rows.append([f"`tiled-{rung}`" if rung in rungs else f"`{rung}`", *cells])
    return table(["ms (over the rung before)", *map(size, problems)], rows)


def counters(calls: Sequence[Call]) -> str:
    """Return the table of counters at one problem, a row for each rung; nothing where no rung was profiled."""
    found: dict[Problem, dict[str, Call]] = {}
    for call in calls:
        rung = call.impl.removeprefix("tiled-")
        if call.status == "ok" and call.direction is Direction.FWD and rung in RUNGS:
            found.setdefault(call.problem, {})[rung] = call
    if not found:
        return ""
    problem, at = max(found.items(), key=lambda item: (len(item[1]), item[0].flops()))
    shown = [row for row in COUNTERS if any(call.values.get(row) is not None for call in at.values())]
    rows = []
    for rung in (rung for rung in RUNGS if rung in at):
        values = [(at[rung].values.get(row), COUNTERS[row][1]) for row in shown]
        cells = ["n/a" if value is None else f"{value / unit:.4g}" for value, unit in values]
        rows.append([f"`tiled-{rung}`", *cells])
    return table([f"counters at {size(problem)}", *(COUNTERS[row][0] for row in shown)], rows)


def size(problem: Problem) -> str:
    """Return batch, heads where there are several, length and head dim, as the ladder's grid writes them."""
    heads = f"{problem.heads}, " if problem.heads > 1 else ""
    return f"{problem.batch}, {heads}{problem.q_len}, {problem.head_dim}"


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
    profiled = [name for name in arguments if is_profile(json.loads(Path(name).read_text()))]
    runs = [load_run(name) for name in arguments if name not in profiled]
    profiles = [load_profile(name) for name in profiled]
    if not runs:
        raise SystemExit(__doc__)
    records = [record for run in runs for record in run.records]
    calls = [call for profile in profiles for call in profile.calls]
    machines = [each.machine.get("device", "") for each in (*runs, *profiles)]
    parts = [f"{', '.join(dict.fromkeys(map(str, machines)))}."]
    for dtype in DTYPE_BYTES:
        timed = [record for record in records if record.problem.dtype == dtype]
        counted = counters([call for call in calls if call.problem.dtype == dtype])
        parts += [f"### {dtype}"] * bool(timed or counted) + [times(timed)] * bool(timed) + [counted] * bool(counted)
    page.write_text(fill(page.read_text(), "\n\n".join(parts)))


if __name__ == "__main__":
    main(sys.argv[1:])
