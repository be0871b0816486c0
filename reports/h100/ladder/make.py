"""Writes what was measured into docs/ladder.md: ``python reports/h100/ladder/make.py RUN.json... [PROFILE.json...]``.

``RUN.json`` is what ``pytest -m perf`` or ``pytest -m copies`` wrote with ``--benchmark-json=RUN.json``,
``PROFILE.json`` what ``attn profile`` wrote of forward calls; several of either are read as one, told apart by what
they hold. Each dtype has tables of its own, and a panel of ladder.svg, which is written beside this script. The
counters are those of the largest problem of the dtype at which most rungs were profiled; of a rung that was profiled
more than once there, the last counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from attn_impls.problem import DTYPE_BYTES, Direction, Problem  # noqa: E402
from pytest_attn.counters.document import Call, is_profile, load_profile  # noqa: E402
from pytest_attn.counters.figures import draw_lines  # noqa: E402
from pytest_attn.counters.rows import BY_NAME  # noqa: E402
from pytest_attn.counters.shown import quantity  # noqa: E402
from pytest_attn.perf.record import Record, load_run  # noqa: E402
from pytest_attn.report import svg  # noqa: E402
from pytest_attn.report.draw import Margins, settings, sheet  # noqa: E402
from pytest_attn.report.style import order  # noqa: E402
from pytest_attn.report.words import digits, heads, seconds  # noqa: E402
from pytest_attn.report.words import times as factor  # noqa: E402

PAGE = ROOT / "docs" / "ladder.md"
FOOT = "seq"  # the rung that the whole climb is measured against
COPIES = "+copies-"  # between a rung and the way in which its inputs come
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
# Rows of a profile, in the words of the table.
COUNTERS = {
    "duration": "time under the profiler",
    "gld_transactions_per_request": "sectors a global load",
    "gld_bytes": "global loads through L1",
    "l2_bytes": "bytes through L2",
    "dram_read_bytes": "bytes from DRAM",
    "shared_load_transactions": "turns of shared loads",
    "shared_ld_bank_conflict": "of them bank conflicts",
    "shared_st_bank_conflict": "bank conflicts of shared stores",
    "inst_executed": "instructions",
    "ipc": "instructions a cycle",
    "tensor_precision_fu_utilization": "tensor pipe",
    "sm_efficiency": "multiprocessors busy",
    "achieved_occupancy": "occupancy",
    "registers": "registers a thread",
    "shared_memory": "shared memory a block",
    "local_memory": "spilled",
}
FILLING = ("sm_efficiency", "achieved_occupancy")  # what follows from the number of blocks

Times = Mapping[tuple[str, Problem], float]  # seconds by rung, without "tiled-", or other implementation


def medians(records: Sequence[Record]) -> dict[tuple[str, Problem], float]:
    """Return the median seconds of forward calls."""
    return {
        (record.impl.removeprefix("tiled-"), record.problem): record.time_s.median
        for record in records
        if record.time_s is not None and record.direction is Direction.FWD
    }


def times(found: Times, dtype: str) -> str:
    """Return the table of times, each with its speed over the rung before on the same problem.

    The last columns are TFLOP/s at the largest problem, and the speed over the foot at the largest at which that was
    timed, in whatever dtype.
    """
    ok = {(name, problem): value for (name, problem), value in found.items() if problem.dtype == dtype}
    problems = _ordered({problem for _, problem in ok})
    rungs = [rung for rung in RUNGS if any((rung, problem) in ok for problem in problems)]
    others = sorted({name for name, _ in ok} - set(RUNGS))
    feet = {dataclasses.replace(each, dtype=dtype): value for (name, each), value in found.items() if name == FOOT}
    shared = [problem for problem in problems if problem in feet]
    rows = []
    for name in (*rungs, *others):
        before = rungs[: rungs.index(name)] if name in rungs else []
        cells = [f"`tiled-{name}`" if name in rungs else f"`{name}`"]
        for problem in problems:
            value = ok.get((name, problem))
            above = [ok[each, problem] for each in before if (each, problem) in ok]
            gain = f" ({factor(above[-1] / value, 3)})" if above and value is not None else ""
            cells.append("" if value is None else f"{seconds(value)}{gain}")
        largest = ok.get((name, problems[-1]))
        cells.append("" if largest is None else digits(problems[-1].flops(Direction.FWD) / largest / 1e12))
        if shared:
            value = ok.get((name, shared[-1]))
            # Two digits: one thread of a CPU is timed no better.
            cells.append("" if value is None else f"{digits(feet[shared[-1]] / value, 2)}×")
        rows.append(cells)
    last = [f"TFLOP/s at {problems[-1].q_len}"] + [f"over `tiled-{FOOT}` at {each.q_len}" for each in shared[-1:]]
    return table(["time (over the rung before)", *map(size, problems), *last], rows)


def counters(calls: Sequence[Call]) -> str:
    """Return the table of counters at one problem, a column for each rung; nothing where no rung was profiled."""
    found = _profiled(calls)
    if not found:
        return ""
    problem, at = max(found.items(), key=lambda item: (len(item[1]), item[0].flops()))
    rungs = [rung for rung in RUNGS if rung in at]
    rows = []
    for row, words in COUNTERS.items():
        values = [at[rung].values.get(row) for rung in rungs]
        if any(value is not None for value in values):
            rows.append([words, *("n/a" if value is None else quantity(value, BY_NAME[row].unit) for value in values)])
    return table([f"counters at {size(problem)}", *(f"`tiled-{rung}`" for rung in rungs)], rows)


def filling(calls: Sequence[Call]) -> str:
    """Return the table of how each rung fills the device at each problem; nothing where that was not profiled."""
    found = _profiled(calls)
    problems = [each for each in _ordered(found) if any(call.kernels for call in found[each].values())]
    if not problems:
        return ""
    rows = []
    for rung in (rung for rung in RUNGS if any(rung in found[problem] for problem in problems)):
        at = [found[problem].get(rung) for problem in problems]
        rows.append([f"`tiled-{rung}`", *("" if call is None else _filled(call) for call in at)])
    return table(["blocks, multiprocessors busy, occupancy", *map(size, problems)], rows)


def copies(records: Sequence[Record]) -> str:
    """Return the table of times with the copies of inputs and outputs, and under it why times are missing."""
    ways = [record for record in records if COPIES in record.impl]
    problems = _ordered({record.problem for record in ways})
    alone = {record.impl.split(COPIES)[0] for record in ways}
    shown = [record for record in records if record in ways or (record.impl in alone and record.problem in problems)]
    found = {(record.impl, record.problem): record.time_s.median for record in shown if record.time_s is not None}
    rows = [
        [f"`{impl}`", *(seconds(found[impl, each]) if (impl, each) in found else "–" for each in problems)]
        for impl in sorted({record.impl for record in shown})
    ]
    missing = [f"Missing: `{r.impl}` at {size(r.problem)}: {r.reason}." for r in ways if r.time_s is None]
    return "\n\n".join([table(["time", *map(size, problems)], rows), *missing])


def chart(found: Times) -> bytes | None:
    """Return the SVG of time over length, a panel for each dtype and a line for each implementation.

    A panel shows the problems that differ from its largest in length only; of a single length there is none.
    """
    panels: dict[str, tuple[dict[str, dict[int, float]], list[int]]] = {}
    words = ""
    for dtype in DTYPE_BYTES:
        problems = _ordered({problem for _, problem in found if problem.dtype == dtype})
        alike = [each for each in problems if _square(each, 1) == _square(problems[-1], 1)]
        if len(alike) < 2:
            continue
        lines = {
            f"tiled-{name}" if name in RUNGS else name: {
                each.q_len: found[name, each] for each in alike if (name, each) in found
            }
            for name in {name for name, _ in found}
        }
        ordered = {impl: lines[impl] for impl in sorted(lines, key=order) if lines[impl]}
        panels[dtype] = ordered, [each.q_len for each in alike]
        words = f"batch {alike[0].batch}, {heads(alike[0].heads)}, head dim {alike[0].head_dim}, forward"
    if not panels:
        return None
    title = "How long does each rung take?"
    with settings():
        made = sheet("ladder", title, words, list(panels), 3.9, Margins(left=0.78, right=1.42))
        for panel, (lines_of, lengths) in zip(made.panels, panels.values(), strict=True):
            draw_lines(made, panel, "duration", lines_of, lengths)
        return svg.files(made)[0]


def size(problem: Problem) -> str:
    """Return batch, heads where there are several, length and head dim, as the ladder's grid writes them."""
    several = f"{problem.heads}, " if problem.heads > 1 else ""
    return f"{problem.batch}, {several}{problem.q_len}, {problem.head_dim}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def fill(text: str, mark: str, written: str) -> str:
    """Return the page with ``written`` between its marks."""
    begin, end = f"<!-- {mark} -->\n", "<!-- end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}{written}\n{end}{rest.split(end, 1)[1]}"


def main(arguments: list[str], page: Path = PAGE, picture: Path = Path(__file__).with_name("ladder.svg")) -> None:
    """Read the files and write the page and the chart."""
    profiled = [name for name in arguments if is_profile(json.loads(Path(name).read_text()))]
    runs = [load_run(name) for name in arguments if name not in profiled]
    profiles = [load_profile(name) for name in profiled]
    if not runs:
        raise SystemExit(__doc__)
    records = [record for run in runs for record in run.records]
    calls = [call for profile in profiles for call in profile.calls]
    found = medians([record for record in records if COPIES not in record.impl])
    machines = [each.machine.get("device", "") for each in (*runs, *profiles)]
    parts = [f"{', '.join(dict.fromkeys(map(str, machines)))}."]
    for dtype in DTYPE_BYTES:
        timed = times(found, dtype) if any(problem.dtype == dtype for _, problem in found) else ""
        of_dtype = [call for call in calls if call.problem.dtype == dtype]
        tables = [each for each in (timed, counters(of_dtype), filling(of_dtype)) if each]
        parts += [f"### {dtype}"] * bool(tables) + tables
    text = fill(page.read_text(), "measured", "\n\n".join(parts))
    if any(COPIES in record.impl for record in records):
        text = fill(text, "copies", copies(records))
    page.write_text(text)
    drawn = chart(found)
    if drawn is not None:
        picture.write_bytes(drawn)


def _ordered(problems: set[Problem] | Mapping[Problem, object]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.batch, problem.q_len, problem.head_dim, problem.id))


def _square(problem: Problem, length: int) -> Problem:
    return dataclasses.replace(problem, q_len=length, kv_len=length)


def _profiled(calls: Sequence[Call]) -> dict[Problem, dict[str, Call]]:
    found: dict[Problem, dict[str, Call]] = {}
    for call in calls:
        rung = call.impl.removeprefix("tiled-")
        if call.status == "ok" and call.direction is Direction.FWD and rung in RUNGS:
            found.setdefault(call.problem, {})[rung] = call
    return found


def _filled(call: Call) -> str:
    blocks = sum(math.prod(map(int, re.findall(r"\d+", kernel.grid))) for kernel in call.kernels)
    shares = [call.values.get(row) for row in FILLING]
    return ", ".join([str(blocks), *("n/a" if share is None else quantity(share, "%") for share in shares)])


if __name__ == "__main__":
    main(sys.argv[1:])
