"""From what is to be drawn to SVG and PNG, on two cores where there are: drawing is most of a report's time.

The other core's share is drawn by a process of its own, which finds its work in a folder and leaves there what came of
it. Unlike ``multiprocessing`` that neither forks a process that may hold threads nor imports the caller's main module
again. What is drawn does not depend on where, so the bytes are the same.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pytest_attn.report import svg
from pytest_attn.report.draw import Sheet, settings
from pytest_attn.report.html import Figure
from pytest_attn.report.style import FAINT, Look

Other = TypeVar("Other")

_LEAST_SHARED = 16  # figures; fewer are drawn here before another process has imported matplotlib
_LEAST_RECORDS = 500  # from here on the process is started before it is known how many figures there are
_GIVEN, _MADE = "shots", "drawn"
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


class Spare:
    """Another process that draws: it imports matplotlib while this one prepares its work. A context manager."""

    def __enter__(self) -> Spare:
        """Start the process."""
        self._place = tempfile.TemporaryDirectory(prefix="attn-report-")
        self.folder = Path(self._place.name)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORK, str(self.folder)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def give(self, shots: Sequence[Shot], dress: Dress) -> None:
        """Let it begin to draw ``shots`` from the end."""
        (self.folder / _GIVEN).write_bytes(pickle.dumps((shots, dress)))
        self._begin()

    def made(self) -> dict[int, Drawn | None]:
        """Wait for it, and return what it drew; nothing where it failed."""
        failed = self._process.wait() != 0
        made: dict[int, Drawn | None] = {} if failed else pickle.loads((self.folder / _MADE).read_bytes())
        return made

    def __exit__(self, *error: object) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._begin()
        self._process.wait()
        self._place.cleanup()

    def _begin(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has died, and what it should draw is drawn here
                self._process.stdin.close()


def spare(records: int) -> contextlib.AbstractContextManager[Spare | None]:
    """Return another process for a report of so many records, if that is worth one and there is a core for it."""
    return Spare() if records >= _LEAST_RECORDS and _cores() > 1 else contextlib.nullcontext()


def render(
    shots: Sequence[Shot], dress: Dress, meanwhile: Callable[[], Other], helper: Spare | None = None
) -> tuple[list[Drawn | None], Other]:
    """Draw ``shots``, which pickle; ``None`` stands for one that found no data.

    ``meanwhile`` is what else there is to do: it is done here while another process, if there is one, draws. Its
    result is returned beside the figures. ``helper`` is that process where it has been started already.
    """
    numbers = range(len(shots))
    if len(shots) < _LEAST_SHARED or _cores() < 2:
        with settings():
            return [_draw(shot, dress) for shot in shots], meanwhile()
    with contextlib.ExitStack() as stack:
        helper = helper or stack.enter_context(Spare())
        helper.give(shots, dress)
        other = meanwhile()
        drawn = _share(shots, dress, helper.folder, numbers)
        drawn |= helper.made()
    with settings():
        # Whatever stopped the other process, what it had taken can be drawn here, and its error shows up here.
        return [drawn[number] if number in drawn else _draw(shots[number], dress) for number in numbers], other


def work(folder: str) -> None:
    """Draw what is in ``folder`` from the end, until it meets who draws from the start, and leave there what came."""
    sys.stdin.buffer.read()  # closed when the work is there
    place = Path(folder)
    shots, dress = pickle.loads((place / _GIVEN).read_bytes())
    drawn = _share(shots, dress, place, range(len(shots) - 1, -1, -1))
    (place / _MADE).write_bytes(pickle.dumps(drawn))


def _share(shots: Sequence[Shot], dress: Dress, folder: Path, numbers: Iterable[int]) -> dict[int, Drawn | None]:
    """Draw those of ``numbers`` that nobody else has taken; a file that can be made once says who took it."""
    drawn = {}
    with settings():
        for number in numbers:
            try:
                (folder / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            drawn[number] = _draw(shots[number], dress)
    return drawn


def _draw(shot: Shot, dress: Dress) -> Drawn | None:
    made = shot.draw()
    return None if made is None else _keep(made, shot, dress)


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
