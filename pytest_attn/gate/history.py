"""The medians of every gated run in SQLite, and the commits at which they stepped.

One file takes the runs of several jobs: a run is one ``BEGIN IMMEDIATE`` transaction, which waits for its turn and is
written wholly or not at all. The journal is SQLite's ordinary one, since write-ahead logging does not work on network
file systems.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from pytest_attn.gate.verdict import TIME, Key, Verdict

_VERSION = 1
_WAIT_S = 60.0
_TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, taken_at TEXT NOT NULL, kind TEXT NOT NULL,
    base_commit TEXT NOT NULL, head_commit TEXT NOT NULL, machine TEXT NOT NULL, contract TEXT NOT NULL,
    grid TEXT NOT NULL, exit_code INTEGER NOT NULL
);
CREATE TABLE cells (
    run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE, impl TEXT NOT NULL, problem TEXT NOT NULL,
    direction TEXT NOT NULL, base_s REAL, head_s REAL, verdict TEXT NOT NULL,
    PRIMARY KEY (run, impl, problem, direction)
);
"""


class BadHistory(Exception):
    """A file that holds no history of this tool, or cannot be read or written; one sentence."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One gated run.

    ``token`` is the run's own name, by which adding it again replaces it; ``taken_at`` is UTC in ISO 8601; ``kind`` is
    ``run`` or ``noop``; commits are as :class:`~pytest_attn.gate.process.Side` has them; ``machine`` is what must agree
    for times to be compared, and so is ``contract``.
    """

    token: str
    taken_at: str
    kind: str
    base_commit: str
    head_commit: str
    machine: Mapping[str, Any]
    contract: str
    grid: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Point:
    """The median of one cell's head in one run, in seconds."""

    taken_at: str
    commit: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Series:
    """The medians of one cell on one machine under one contract, the oldest first."""

    key: Key
    machine: str
    contract: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A lasting change: ``before`` and ``after`` are medians in seconds of the runs on its sides.

    It lies between the commits ``last`` and ``first``, at ``first`` where every commit has a run.
    """

    series: Series
    last: str
    first: str
    taken_at: str
    before: float
    after: float


def now() -> str:
    """Return this moment in UTC, as :attr:`Entry.taken_at` has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append(path: Path, entry: Entry, verdicts: Sequence[Verdict]) -> None:
    """Add a run with the times of its cells, wholly or not at all; one with the same token is replaced.

    Raises :class:`BadHistory` when the file cannot be written.
    """
    row = (
        *(entry.token, entry.taken_at, entry.kind, entry.base_commit, entry.head_commit),
        *(json.dumps(dict(entry.machine), sort_keys=True), entry.contract, entry.grid, entry.exit_code),
    )
    with _open(path, write=True) as database:
        database.execute("DELETE FROM runs WHERE token = ?", (entry.token,))
        run = database.execute(
            "INSERT INTO runs (token, taken_at, kind, base_commit, head_commit, machine, contract, grid, exit_code)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        ).lastrowid
        database.executemany(
            "INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(run, *v.key, v.base, v.head, v.outcome.value) for v in verdicts if v.metric == TIME],
        )


def entries(path: Path) -> list[tuple[Entry, int]]:
    """Return every run, the oldest first, with how many cells it has; :class:`BadHistory` for a bad file."""
    query = (
        "SELECT token, taken_at, kind, base_commit, head_commit, machine, contract, grid, exit_code,"
        " (SELECT COUNT(*) FROM cells WHERE run = runs.id) FROM runs ORDER BY taken_at, id"
    )
    with _open(path) as database:
        rows = database.execute(query).fetchall()
    return [(Entry(t, at, kind, base, head, json.loads(m), *rest), n) for t, at, kind, base, head, m, *rest, n in rows]


def series(path: Path) -> list[Series]:
    """Return the heads' medians of every cell, by machine and contract; :class:`BadHistory` for a bad file."""
    query = (
        "SELECT impl, problem, direction, machine, contract, taken_at, head_commit, head_s"
        " FROM cells JOIN runs ON runs.id = run WHERE head_s IS NOT NULL ORDER BY taken_at, runs.id"
    )
    found: dict[tuple[str, ...], list[Point]] = {}
    with _open(path) as database:
        for *key, taken_at, commit, seconds in database.execute(query):
            found.setdefault(tuple(key), []).append(Point(taken_at, commit, seconds))
    return [Series((k[0], k[1], k[2]), k[3], k[4], tuple(points)) for k, points in found.items()]


def steps(one: Series, *, relative: float = 0.05, least: int = 3, noise: float = 4.0) -> list[Step]:
    """Return the lasting changes of one cell, the oldest first.

    The rule, on logarithms: cut the series in two where the sum of absolute deviations from the parts' own medians is
    smallest, and each part again, down to ``least`` runs a part. Then take back the cut between the two neighbours
    whose medians are closest, until every two are further apart than ``relative`` and than ``noise`` standard
    deviations. The standard deviation is that of neighbouring runs, which a step moves once only: the median absolute
    difference of two consecutive runs, times 1.4826 / sqrt(2).

    >>> points = tuple(Point("", str(i), 1.0 if i < 4 else 1.2) for i in range(8))
    >>> [step.first for step in steps(Series(("naive", "p", "fwd"), "{}", "wall/2", points))]
    ['4']
    """
    logs = [math.log(point.seconds) for point in one.points]
    if len(logs) < 2 * least:
        return []
    differences = [abs(after - before) for before, after in pairwise(logs)]
    apart = max(math.log1p(relative), noise * 1.4826 / math.sqrt(2) * statistics.median(differences))
    edges = [0, *_cuts(logs, 0, len(logs), least), len(logs)]
    while len(edges) > 2:
        middles = [statistics.median(logs[start:end]) for start, end in pairwise(edges)]
        jumps = [abs(after - before) for before, after in pairwise(middles)]
        if min(jumps) > apart:
            break
        del edges[jumps.index(min(jumps)) + 1]
    middles = [statistics.median(point.seconds for point in one.points[start:end]) for start, end in pairwise(edges)]
    found = []
    for cut, (before, after) in zip(edges[1:-1], pairwise(middles), strict=True):
        last, first = one.points[cut - 1], one.points[cut]
        found.append(Step(one, last.commit, first.commit, first.taken_at, before, after))
    return found


def _cuts(logs: Sequence[float], start: int, end: int, least: int) -> list[int]:
    """Return every place at which ``logs[start:end]`` is best cut in two, and its parts likewise, in order."""
    places = range(start + least, end - least + 1)
    if not places:
        return []
    cut = min(places, key=lambda place: _deviation(logs[start:place]) + _deviation(logs[place:end]))
    return [*_cuts(logs, start, cut, least), cut, *_cuts(logs, cut, end, least)]


def _deviation(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return sum(abs(value - middle) for value in values)


@contextlib.contextmanager
def _open(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Give a connection, inside a transaction when it is to ``write``; the file is made where it is not there."""
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif path.exists() and not path.is_file():
            raise BadHistory(f"{path} is not a file")
        elif not path.exists():
            raise BadHistory(f"{path} is not there; `attn gate run --history {path}` starts it")
        database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        with contextlib.closing(database):
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                _check_version(database, path, write)
                yield database
            except BaseException:
                if database.in_transaction:  # a full disk has rolled back already
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise BadHistory(f"cannot {'write' if write else 'read'} {path}: {error}") from None


def _check_version(database: sqlite3.Connection, path: Path, write: bool) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if write and not tables:
        for statement in _TABLES.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    elif not tables:
        raise BadHistory(f"{path} holds no run yet; `attn gate run --history {path}` adds one")
    elif version != _VERSION:
        raise BadHistory(f"{path} is not a history of this version, {_VERSION}: it says {version}")
