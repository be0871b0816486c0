"""Runs in pairs: base and head as fresh processes, interleaved A B B A ..., every finished process kept.

A folder holds ``first/pair-01/1/base.json`` and its like: the stage, the pair, the attempt. A pair counts with the
first attempt that has both sides; what an attempt that broke off left stays beside it. So a folder whose run was
killed is continued by collecting into it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_attn.gate.pairs import Pair
from pytest_attn.gate.process import Died, GateError, Harness, Side, measure
from pytest_attn.gate.verdict import Key
from pytest_attn.perf.record import BadRun, Run, load_run
from pytest_attn.text import count

_ATTEMPTS = 3


@dataclass
class Collector:
    """Collects pairs of two sides into a folder.

    Attributes:
        base: what was.
        head: what is.
        harness: what measures both.
        arguments: of pytest.
        folder: where the results lie; it must be there.
        say: takes a line of progress.
        unchanged: raises :class:`GateError` when a tree is no longer what it was; asked before each pair.
        trace_first_only: only the processes of the very first pair start a profiler, and calibrate for the rest.
        accept: raises for a run that cannot be judged; asked after each process.
    """

    base: Side
    head: Side
    harness: Harness
    arguments: Sequence[str]
    folder: Path
    say: Callable[[str], None]
    unchanged: Callable[[], None] = lambda: None
    trace_first_only: bool = False
    accept: Callable[[Run], None] = lambda run: None
    _traced: Path | None = field(default=None, init=False)

    def collect(self, stage: str, pairs: int, cells: Sequence[Key] | None = None) -> list[Pair]:
        """Return ``pairs`` pairs, those that the folder has and the rest measured now.

        Args:
            stage: name of the folder's part, and of the order of cells: a new one for each pair, the same inside it.
            pairs: how many.
            cells: what to time; everything that ``arguments`` select without it.

        Raises:
            GateError: a side cannot be measured, or died in every attempt.
            OSError: the folder cannot be written.
        """
        folder = self.folder / stage
        folder.mkdir(exist_ok=True)
        listed = None
        if cells is not None:
            listed = folder / "cells.txt"
            listed.write_text("".join(f"{' '.join(key)}\n" for key in cells), encoding="utf-8")
        found = {number: pair for number in range(1, pairs + 1) if (pair := _kept(folder, number)) is not None}
        if found:
            self.say(f"{stage}: {count(len(found), 'pair')} of {pairs} taken from {folder}")
        clock = _Clock(2 * (pairs - len(found)))
        for number in range(1, pairs + 1):
            if number not in found:
                found[number] = self._measure(stage, number, pairs, listed, clock)
            if self.trace_first_only and self._traced is None:
                self._traced = Path(found[number].base.source)
        return [found[number] for number in range(1, pairs + 1)]

    def _measure(self, stage: str, number: int, pairs: int, cells: Path | None, clock: _Clock) -> Pair:
        """Measure one pair, again from its start when a process died in the middle."""
        order = _order(number)
        for attempt in range(1, _ATTEMPTS + 1):
            self.unchanged()
            target = _next_attempt(self.folder / stage, number)
            runs: dict[str, Run] = {}
            try:
                for letter in order:
                    side = self.base if letter == "A" else self.head
                    self.say(f"{stage}: pair {number}/{pairs} {order}, {side.name}{clock.left()}")
                    began = time.monotonic()
                    runs[side.name] = measure(
                        side,
                        self.harness,
                        self.arguments,
                        target / f"{side.name}.json",
                        shuffle=f"{stage}-{number}",
                        cells=cells,
                        traced_by=self._traced,
                    )
                    clock.took(time.monotonic() - began)
                    _refuse_empty(side, runs[side.name])
                    self.accept(runs[side.name])
            except Died as error:
                clock.lost(len(runs))
                if attempt == _ATTEMPTS:
                    raise GateError(f"{error}, in each of {_ATTEMPTS} attempts at pair {number}: {target}") from None
                self.say(f"{stage}: pair {number}/{pairs} dropped and measured again: {error}")
                continue
            return Pair(runs["base"], runs["head"], order)
        raise AssertionError("unreachable")


class _Clock:
    """Tells the time left, from how long the finished processes took."""

    def __init__(self, processes: int) -> None:
        self._left = processes
        self._took: list[float] = []

    def took(self, seconds: float) -> None:
        self._took.append(seconds)
        self._left -= 1

    def lost(self, processes: int) -> None:
        self._left += processes

    def left(self) -> str:
        if not self._took:
            return ""
        seconds = int(self._left * sum(self._took) / len(self._took))
        return f", {seconds // 60}:{seconds % 60:02} left"


def _refuse_empty(side: Side, run: Run) -> None:
    """Raise :class:`GateError` for a run in which nothing could be timed: the next would be like it."""
    statuses = run.statuses()
    if any(statuses[status] for status in ("ok", "noisy", "host_bound")):
        return
    counts = ", ".join(f"{number} {status}" for status, number in statuses.most_common()) or "no cell"
    reason = next((f"; {r.impl}: {r.reason}" for r in run.records if r.status not in ("ok", "unsupported")), "")
    raise GateError(f"the {side.name} ({side.commit[:12]}) measured nothing: {counts}{reason}")


def _order(number: int) -> str:
    return "AB" if number % 2 else "BA"


def _kept(folder: Path, number: int) -> Pair | None:
    """Return the pair that an earlier run finished; ``None`` where no attempt has both sides."""
    for attempt in _attempts(folder, number):
        files = [attempt / "base.json", attempt / "head.json"]
        if any(path.with_name(f"{path.name}.journal").exists() for path in files):
            continue
        try:
            base, head = map(load_run, files)
        except BadRun:
            continue
        return Pair(base, head, _order(number))
    return None


def _next_attempt(folder: Path, number: int) -> Path:
    used = [int(attempt.name) for attempt in _attempts(folder, number)]
    target = _pair_folder(folder, number) / str(max(used, default=0) + 1)
    target.mkdir(parents=True)
    return target


def _attempts(folder: Path, number: int) -> list[Path]:
    parent = _pair_folder(folder, number)
    found = [path for path in parent.iterdir() if path.name.isdigit()] if parent.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def _pair_folder(folder: Path, number: int) -> Path:
    return folder / f"pair-{number:02}"
