"""Charts of a profile, in the report's look: a counter over the length of the sequence, a line an implementation.

Problems that differ in more than length and batch stand in figures of their own, and so do those of one length of
queries that differ in batch or in the length of keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from pytest_attn.counters.document import Call, Profile
from pytest_attn.counters.rows import BY_NAME
from pytest_attn.counters.shown import quantity
from pytest_attn.report import axes as scales
from pytest_attn.report import svg
from pytest_attn.report.draw import Margins, Panel, Sheet, settings, sheet
from pytest_attn.report.figures.marks import Name, names, place
from pytest_attn.report.style import look, order
from pytest_attn.report.words import DIRECTIONS, heads, mask_words, slug

GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "throughput": (
        "How fast do the kernels read and write, {direction}?",
        ("gld_throughput", "gst_throughput", "shared_load_throughput", "shared_store_throughput"),
    ),
    "efficiency": (
        "How busy is the GPU, {direction}?",
        ("sm_efficiency", "achieved_occupancy", "warp_execution_efficiency", "tensor_precision_fu_utilization"),
    ),
    "work": (
        "What do the kernels do, {direction}?",
        ("flop_count_sp", "inst_executed", "l2_bytes", "dram_read_bytes"),
    ),
    "limits": (
        "What do the kernels take, {direction}?",
        ("registers", "shared_memory", "inst_executed_local_loads", "shared_ld_bank_conflict"),
    ),
}
"""The figures by file name: a title, and the rows that stand in its panels."""

_HEIGHT, _MARGINS = 2.5, Margins(left=0.78, right=1.28)
Line = dict[int, float]


def files(profile: Profile) -> dict[str, bytes]:
    """Return the figures by the name of their file, SVG and PNG; none of problems that have one length only."""
    made = {}
    for key, (words, calls) in _families(profile).items():
        for group, (title, rows) in GROUPS.items():
            with settings():
                drawn = _figure(f"{group}-{key}", title, words, rows, calls)
                if drawn is not None:
                    made[f"{drawn.name}.svg"], made[f"{drawn.name}.png"] = svg.files(drawn)
    return made


def _families(profile: Profile) -> dict[str, tuple[str, list[Call]]]:
    """Return the calls that share an axis, by the key of their figures, each with what they have in common."""
    found: dict[str, tuple[str, list[Call]]] = {}
    for call in profile.calls:
        if call.status != "ok":
            continue
        problem = call.problem
        # Of one shape but for length; batch may shrink as length grows, so that the tokens stay the same.
        square = problem.q_len == problem.kv_len
        alike = dataclasses.replace(problem, batch=1, q_len=1, kv_len=1 if square else 2)
        same = [each.problem for each in profile.calls if each.problem.q_len == problem.q_len]
        batch = f"b{problem.batch}-" if len({each.batch for each in same}) > 1 else ""
        # One line has one point at a length.
        lengths = {each.kv_len for each in same if each.q_len != each.kv_len}
        keys = problem.kv_len if not square and len(lengths) > 1 else None
        apart = f"{batch}k{keys}-" if keys else batch
        key = slug(f"{apart}{alike.id.removeprefix('b1-').replace('-q1-k1', '').replace('-q1-k2', '-rect')}")
        words = f"{heads(problem.heads)}, head dim {problem.head_dim}, {problem.dtype}, "
        words += f"{mask_words(problem.mask.id)} mask{f', {keys} keys' if keys else ''}"
        found.setdefault(key, (words, []))[1].append(call)
    return {
        key: (f"{profile.grid}: {_batch(calls)}{words}", calls)
        for key, (words, calls) in found.items()
        if len(_lengths(calls)) > 1
    }


def _batch(calls: Sequence[Call]) -> str:
    batches = {call.problem.batch for call in calls}
    return f"batch {batches.pop()}, " if len(batches) == 1 else ""


def _lengths(calls: Sequence[Call]) -> list[int]:
    return sorted({call.problem.q_len for call in calls})


def _figure(name: str, title: str, words: str, rows: Sequence[str], calls: Sequence[Call]) -> Sheet | None:
    lines = {row: dict(_lines(row, calls)) for row in rows}
    shown = {row: line for row, line in lines.items() if line}
    if not shown:
        return None
    direction = DIRECTIONS[calls[0].direction.value]
    made = sheet(name, title.format(direction=direction), words, list(shown), _HEIGHT, _MARGINS)
    for panel, (row, line) in zip(made.panels, shown.items(), strict=True):
        draw_lines(made, panel, row, line, _lengths(calls))
    return made


def _lines(row: str, calls: Sequence[Call]) -> Iterator[tuple[str, Line]]:
    for impl in sorted({call.impl for call in calls}, key=order):
        line = {}
        for call in sorted(calls, key=lambda call: call.problem.q_len):
            value = call.values.get(row)
            if call.impl == impl and value is not None:
                line[call.problem.q_len] = value
        if line:
            yield impl, line


def draw_lines(made: Sheet, panel: Panel, row: str, lines: Mapping[str, Line], lengths: Sequence[int]) -> None:
    """Draw ``row`` of :mod:`pytest_attn.counters.rows` over ``lengths``: a line an implementation, named at its end."""
    ax, unit = panel.ax, BY_NAME[row].unit
    values = [value for line in lines.values() for value in line.values()]

    def show(value: float, places: int) -> str:
        return quantity(value, unit)

    scales.dress(ax)
    scales.points_axis(ax, lengths)
    scales.name_x(ax, "sequence length")
    low, high = min(values), max(values)
    if unit == "%":
        scales.linear_values_axis(ax, 100.0 if high <= 100 else high * 1.05, show, 10)
    elif low > 0 and high > 4 * low:
        scales.log_values_axis(ax, low / 1.5, high * 1.5, show, 10)
    else:
        scales.linear_values_axis(ax, high * 1.1 or 1.0, show, 10)
    labels = []
    for impl, line in lines.items():
        style = look(impl)
        ax.plot(
            list(line),
            list(line.values()),
            color=style.light,
            ls=style.dash,
            lw=1.5,
            marker=style.marker,
            ms=4.6,
            gid=f"{panel.gid}-line-{slug(impl)}",
            clip_on=False,
        )
        end = max(line)
        labels.append(Name(impl, impl, impl, False, *place(ax, end, line[end])))
    names(made, panel, labels)
    panel.alt = f"{row} by sequence length. " + " ".join(
        f"{impl}: {quantity(line[max(line)], unit)} at {max(line)}." for impl, line in lines.items()
    )
