"""The journal of a timed run: a line of JSON for each cell, so that a killed run loses one problem at most.

The first line is the :class:`Header`, each later one a :class:`~pytest_attn.perf.measure.Measured`. Lines are only
ever added, so the cost of a record does not grow with the run.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_attn.perf.measure import Measured
from pytest_attn.perf.record import SCHEMA, BadRun, Record, load_run

_SYNC_S = 1.0


@dataclass(frozen=True, slots=True)
class Header:
    """What must stay the same for a run to be continued.

    ``machine``, ``grid``, ``environment`` and ``shard`` are those of :class:`~pytest_attn.perf.record.Run`;
    ``contract`` is a contract's id.
    """

    machine: Mapping[str, Any]
    contract: str
    grid: str
    shard: str | None
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the first line of a journal as plain JSON values."""
        return {"schema": SCHEMA, **asdict(self)}


class Journal:
    """A journal that is being written. Nothing is buffered: what :meth:`append` took outlives a killed process.

    :meth:`append` also waits for the disk (``fsync``), so that a machine that goes down leaves the records too, but at
    most once a second: the wait takes milliseconds to tens of them, which a run of short cells would feel at each.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal at ``path`` to continue it, without a last line that was cut short.

        Raises ``OSError`` when the file is not there or cannot be written.
        """
        self.path = path
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(_whole_lines(path))
        self._file.seek(0, os.SEEK_END)
        self._synced = time.monotonic()

    @classmethod
    def create(cls, path: Path, header: Header, measured: Iterable[Measured] = ()) -> Journal:
        """Write a new journal that starts with ``measured``, wholly or not at all; one that is there is replaced.

        Raises ``OSError`` when it cannot be written.
        """
        temporary = path.with_name(f"{path.name}.new")
        with temporary.open("wb") as file:
            file.write(_line(header.to_dict()))
            file.writelines(map(_measured_line, measured))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return cls(path)

    def append(self, measured: Measured) -> None:
        """Add what one cell measured.

        Raises ``OSError`` when the disk does not take it.
        """
        line = memoryview(_measured_line(measured))
        while line:
            line = line[self._file.write(line) :]
        now = time.monotonic()
        if now - self._synced >= _SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = now

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)


def read_journal(path: str | Path) -> tuple[Header, list[Measured]]:
    """Return what a journal holds; a last line without its end, from a process that was killed, is left out.

    Raises :class:`BadRun` with one sentence when the file is missing, of another schema or damaged.
    """
    header: Header | None = None
    measured = []
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    data = json.loads(line)
                    if header is None:
                        header = _header(data)
                    else:
                        measured.append(_measured(data["record"], data["durations"]))
                except BadRun as error:
                    raise BadRun(f"{path}, line {number}: {error}") from None
                except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                    raise BadRun(f"{path} is damaged in line {number}: {type(error).__name__}: {error}") from None
    except OSError as error:
        raise BadRun(f"cannot read {path}: {error.strerror or error}") from None
    if header is None:
        raise BadRun(f"{path} is not a journal: its first line is missing")
    return header, measured


def count_cells(path: Path) -> int:
    """Return how many cells the journal at ``path`` holds, without understanding them; 0 where there is none.

    Raises ``OSError`` when the file is there and cannot be read.
    """
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return max(0, sum(line.endswith(b"\n") for line in file) - 1)


def read_json(path: str | Path) -> tuple[Header, list[Measured]]:
    """Return what the JSON of a run holds, in the form of :func:`read_journal`.

    Raises :class:`BadRun` with one sentence when it is no run, or keeps statistics without the durations.
    """
    run = load_run(path)
    benchmarks = json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]
    timed = [benchmark for benchmark in benchmarks if "attn" in benchmark.get("extra_info", {})]
    contracts = sorted({record.contract for record in run.records})
    header = Header(run.machine, ", ".join(contracts), run.grid, run.shard, run.environment)
    try:
        # Timed records come first, in the order of the benchmarks.
        rows = [_durations(benchmark["stats"]["data"]) for benchmark in timed]
    except (KeyError, TypeError, ValueError) as error:
        raise BadRun(f"{path} lacks the durations of a row: {type(error).__name__}: {error}") from None
    rows += [()] * (len(run.records) - len(rows))
    return header, [Measured(record, row) for record, row in zip(run.records, rows, strict=True)]


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _measured_line(measured: Measured) -> bytes:
    return _line({"record": measured.record.to_dict(), "durations": measured.durations})


def _header(data: Mapping[str, Any]) -> Header:
    if data.get("schema") != SCHEMA:
        raise BadRun(f"schema {data.get('schema')!r}; this version reads {SCHEMA}")
    shard = data["shard"]
    return Header(
        dict(data["machine"]),
        str(data["contract"]),
        str(data["grid"]),
        None if shard is None else str(shard),
        dict(data["environment"]),
    )


def _measured(record: Mapping[str, Any], durations: Any) -> Measured:
    return Measured(Record.from_dict(record), _durations(durations))


def _durations(data: Any) -> tuple[float, ...]:
    durations = tuple(map(float, data))
    if not all(math.isfinite(duration) and duration > 0 for duration in durations):
        raise ValueError("a duration is not positive and finite")
    return durations


def _whole_lines(path: Path) -> int:
    """Return the bytes up to and with the last end of a line."""
    size = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                size += len(line)
    return size
