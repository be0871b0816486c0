"""The course script's whole sweep: one JSON a point, in spite of points that do not fit or fail."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import make_folder, write_json
from pytest_attn.commands.lab5_point import Measured, Point
from pytest_attn.text import count

AXES: Mapping[str, Sequence[int | str | bool]] = {
    "batch_size": (16, 32, 64),
    "seq_len": (512, 1024),
    "num_heads": (16, 32),
    "emb_dim": (1024, 2048),
    "impl": ("Pytorch", "Flash2"),
    "causal": (False, True),
}
"""The script's sweep, in its order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The points to measure, and a line for each that is left out."""

    points: tuple[Point, ...]
    skipped: tuple[str, ...]


def plan(axes: Mapping[str, Sequence[int | str | bool]], why_not: Callable[[Point], str | None]) -> Plan:
    """Multiply ``axes`` out; leave out pairs that do not divide and what an implementation does not claim.

    Raises :class:`UserError` when nothing remains.
    """
    points: list[Point] = []
    skipped: list[str] = []
    for values in itertools.product(*(dict.fromkeys(axes[name]) for name in AXES)):
        point = Point(*values)  # type: ignore[arg-type]  # each axis has the type of its field
        try:
            point.problem()
        except UserError as error:
            skipped.append(f"skipped: {error}")
            continue
        reason = why_not(point)
        if reason is None:
            points.append(point)
        else:
            skipped.append(f"skipped: {point}: {point.impl} {reason}")
    lines = tuple(dict.fromkeys(skipped))  # one line a pair, however many points share it
    if not points:
        raise UserError(f"nothing to measure; {'; '.join(lines)}")
    return Plan(tuple(points), lines)


def sweep(points: Sequence[Point], measure: Callable[[Point], Measured], directory: Path) -> int:
    """Measure ``points`` and write each to its file in ``directory`` at once, with progress on standard error.

    Returns 1 when a point failed otherwise than by running out of memory, else 0. On Ctrl-C what was measured is
    written already; the tally is printed before the exception goes on.

    Raises :class:`UserError` when ``directory`` cannot be written.
    """
    make_folder(directory)
    tally: Counter[str] = Counter()
    start = time.monotonic()
    try:
        for index, point in enumerate(points, 1):
            _say(f"[{index:{len(str(len(points)))}}/{len(points)}] {point}: ", end="")
            measured = measure(point)
            write_json(directory / point.file_name, measured.to_json())
            tally[measured.outcome] += 1
            _say(f"{measured}{_left(start, index, len(points))}")
            _say_all(f"    {line}" for line in measured.complaints)
    except BaseException:
        _say("")  # ends the line of the point that was under way
        raise
    finally:
        written = count(tally.total(), "result")
        print(f"{written} written to {directory}: {tally['ok']} ok, {tally['oom']} oom, {tally['failed']} failed")
    return int(tally["failed"] > 0)


def _left(start: float, done: int, total: int) -> str:
    """Return how long the rest takes at the pace so far, where there is a rest."""
    remaining = (time.monotonic() - start) / done * (total - done)
    if done == total:
        return ""
    return f"; about {remaining / 60:.0f} min left" if remaining >= 90 else f"; about {remaining:.0f} s left"


def _say_all(lines: Iterable[str]) -> None:
    for line in lines:
        _say(line)


def _say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)
