"""From what is to be drawn to SVG and PNG, on two cores where there are: drawing is nine tenths of a report's time.

The other core's share is drawn by a process of its own, which gets its work as a file and gives back a file. Unlike
``multiprocessing`` that neither forks a process that may hold threads nor imports the caller's main module again. What
is drawn does not depend on where, so the bytes are the same.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_attn.report import svg
from pytest_attn.report.draw import Sheet, settings
from pytest_attn.report.html import Figure
from pytest_attn.report.style import FAINT, Look

_LEAST_SHARED = 16  # figures; fewer are drawn here before another process has imported matplotlib
_WORK = "import sys; from pytest_attn.report.rendering import work; work(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Shot:
    """A figure to be drawn: under which choice of metric and direction it shows (empty: under all)."""

    draw: Callable[[], Sheet | None]
    direction: str = ""
    metric: str = ""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure for the page, and its two files."""

    figure: Figure
    vector: bytes
    raster: bytes


@dataclass(frozen=True, slots=True)
class Dress:
    """What all figures of a report share: the looks of its implementations, and a line that tells its runs apart."""

    looks: Sequence[Look]
    legend: str
    series: Mapping[str, tuple[int, int]]
    """The numbers of implementation and run of each series, for the page to find its marks by."""


def render(shots: Sequence[Shot], dress: Dress) -> list[Drawn | None]:
    """Draw ``shots``, which pickle; ``None`` stands for one that found no data."""
    if len(shots) < _LEAST_SHARED or _cores() < 2:
        return _draw(shots, dress)
    with tempfile.TemporaryDirectory(prefix="attn-report-") as folder:
        given, made = Path(folder) / "shots", Path(folder) / "drawn"
        # Neighbours are alike, so every second one is about half of the work.
        given.write_bytes(pickle.dumps((shots[1::2], dress)))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(
            [sys.executable, "-c", _WORK, str(given), str(made)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as helper:
            try:
                mine = _draw(shots[0::2], dress)
            except BaseException:
                helper.kill()
                raise
        # Whatever stopped it, its share can be drawn here, and an error of a figure shows up here.
        others = pickle.loads(made.read_bytes()) if helper.returncode == 0 else _draw(shots[1::2], dress)
    drawn: list[Drawn | None] = [None] * len(shots)
    drawn[0::2], drawn[1::2] = mine, others
    return drawn


def work(given: str, made: str) -> None:
    """Draw the shots in the file ``given`` and write what came of them to the file ``made``."""
    shots, dress = pickle.loads(Path(given).read_bytes())
    Path(made).write_bytes(pickle.dumps(_draw(shots, dress)))


def _draw(shots: Sequence[Shot], dress: Dress) -> list[Drawn | None]:
    drawn = []
    with settings():
        for shot in shots:
            made = shot.draw()
            drawn.append(None if made is None else _keep(made, shot, dress))
    return drawn


def _keep(made: Sheet, shot: Shot, dress: Dress) -> Drawn:
    if dress.legend:
        made.figure.text(0.99, 0.012, dress.legend, size=8, color=FAINT, ha="right", va="bottom")
        made.key.append(dress.legend)
    vector, raster = svg.files(made)
    panels = svg.inline(made, vector, dress.looks, dress.series)
    words = (made.name, made.title, made.subtitle, shot.metric, shot.direction)
    return Drawn(Figure(*words, panels, made.notes, "; ".join(made.key)), vector, raster)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
