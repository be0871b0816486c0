"""``attn history list | show CELL | steps``: the medians of gated runs over time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_attn.commands.errors import UserError
from pytest_attn.text import count, printable, seconds, table

if TYPE_CHECKING:
    from pytest_attn.gate.history import Series

HELP = "list gated runs, show a cell over time, find the commits at which times stepped"

_BARS = "▁▂▃▄▅▆▇█"
_COMMIT = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn history`` takes."""
    commands = parser.add_subparsers(dest="history_command", required=True, metavar="list|show|steps")
    helps = {
        "list": "every run, the oldest first",
        "show": "the medians of cells over time, as a line of bars or a PNG",
        "steps": "the commits at which a cell's time changed for good",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--history", type=Path, required=True, metavar="FILE", help="from attn gate run --history")
        if name != "list":
            command.add_argument(
                "cell",
                nargs="?" if name == "steps" else None,
                default="*",
                metavar="CELL",
                help="'implementation problem direction', * and ? stand for anything",
            )
        if name == "show":
            command.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="draw a chart instead")
        if name == "steps":
            command.add_argument("--threshold", default="5%", metavar="SHARE", help="least step (default: 5%%)")


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for; :class:`UserError` for a file that is no history and a cell that it does not have."""
    from pytest_attn.gate.history import BadHistory

    try:
        lines = {"list": _list, "show": _show, "steps": _steps}[arguments.history_command](arguments)
    except BadHistory as error:
        raise UserError(str(error)) from None
    print(*lines, sep="\n")
    return 0


def _list(arguments: argparse.Namespace) -> list[str]:
    from pytest_attn.gate.history import entries

    rows = [
        (
            *(entry.taken_at, entry.kind, entry.base_commit[:_COMMIT], entry.head_commit[:_COMMIT]),
            *(str(entry.machine.get("device")), entry.contract, entry.grid, str(cells)),
            "FAIL" if entry.exit_code else "ok",
        )
        for entry, cells in entries(arguments.history)
    ]
    return table(("taken", "kind", "base", "head", "device", "contract", "grid", "cells", "gate"), rows, right=(7,))


def _show(arguments: argparse.Namespace) -> list[str]:
    chosen = _chosen(arguments)
    if arguments.output is not None:
        _draw(chosen, arguments.output)
        return [f"{arguments.output}: {count(len(chosen), 'cell')}"]
    lines = []
    for one in chosen:
        times = [point.seconds for point in one.points]
        lines.append(f"{_name(one)}  {bars(times)}  {seconds(min(times))} to {seconds(max(times))}")
    return lines


def _steps(arguments: argparse.Namespace) -> list[str]:
    from pytest_attn.gate.history import steps
    from pytest_attn.gate.thresholds import parse_relative

    try:
        relative = parse_relative(arguments.threshold)
    except ValueError as error:
        raise UserError(f"--threshold: {error}") from None
    found = [step for one in _chosen(arguments) for step in steps(one, relative=relative)]
    if not found:
        return ["no step"]
    rows = [
        (
            *step.series.key,
            *(seconds(step.before), seconds(step.after), f"{100 * (step.after / step.before - 1):+.1f} %"),
            f"{step.last[:_COMMIT]}..{step.first[:_COMMIT]}",
            step.taken_at,
        )
        for step in sorted(found, key=lambda step: step.taken_at)
    ]
    header = ("implementation", "problem", "direction", "before", "after", "change", "commits", "taken")
    return table(header, rows, right=(3, 4, 5))


def bars(values: Sequence[float]) -> str:
    """Return a bar for each value, from the smallest to the largest of them.

    >>> bars([1.0, 1.0, 2.0, 1.5])
    '▁▁█▅'
    """
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def _chosen(arguments: argparse.Namespace) -> list[Series]:
    from pytest_attn.gate.history import series

    known = series(arguments.history)
    chosen = [one for one in known if fnmatchcase(" ".join(one.key), arguments.cell)]
    if known and not chosen:
        raise UserError(f"{arguments.history} has no cell {arguments.cell!r}, but such as {' '.join(known[0].key)!r}")
    if not chosen:
        raise UserError(f"{arguments.history} holds no measured cell")
    return chosen


def _name(one: Series) -> str:
    return printable(f"{' '.join(one.key)} on {json.loads(one.machine).get('device')}, {one.contract}")


def _draw(chosen: Sequence[Series], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a chart needs matplotlib; install pytest-attn[report], or leave -o out") from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    runs = sorted({(point.taken_at, point.commit) for one in chosen for point in one.points})
    places = {run: place for place, run in enumerate(runs)}
    for one in chosen:
        x = [places[point.taken_at, point.commit] for point in one.points]
        axes.plot(x, [point.seconds * 1e3 for point in one.points], marker="o", markersize=3, label=_name(one))
    every = max(1, len(runs) // 20)
    axes.set_xticks(range(0, len(runs), every), [commit[:7] for _, commit in runs[::every]], rotation=90, fontsize=7)
    axes.set_ylabel("median, ms")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
