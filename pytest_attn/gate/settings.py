"""``[tool.pytest-attn.gate]`` of a ``pyproject.toml``: thresholds per metric and per pattern of cell.

::

    [tool.pytest-attn.gate]
    pairs = 11
    fail_on_lost = true
    noise_floor = "ci/h100-noise.json"      # of attn gate noop; relative to this file

    [tool.pytest-attn.gate.time]
    relative = "4%"          # stored_relative is that of stored runs

    [tool.pytest-attn.gate.peak_bytes]
    relative = "0%"
    floor = 1048576

    [[tool.pytest-attn.gate.cell]]
    match = "tiled-* *-q128-* fwd"          # "impl problem_id direction", as fnmatch reads it
    time = { relative = "8%" }
    saved_bytes = { action = "off" }

Keys are the fields of :class:`~pytest_attn.gate.thresholds.Thresholds` and
:class:`~pytest_attn.gate.thresholds.Limit`. One that is not known is refused, since a threshold that is misspelt and
left out is a gate that is not there.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_attn.gate.noise import NoiseFloor, read_noise
from pytest_attn.gate.thresholds import ACTIONS, EXACT, STORED, TIME_FIELDS, Limit, Override, Thresholds, parse_relative

TABLE = "tool.pytest-attn.gate"


class BadSettings(ValueError):
    """A table that cannot be used; one sentence that names the file, the table and the key."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the table says.

    Attributes:
        paired: thresholds of runs taken in pairs.
        stored: thresholds of two stored runs.
        pairs: how many pairs to run.
        fail_on_lost: whether a cell that the base had and the head has not fails the gate.
        noise_file: where the noise floors of the cells are, if anywhere.
        noise: what :meth:`with_noise` read there.
    """

    paired: Thresholds = field(default_factory=Thresholds)
    stored: Thresholds = STORED
    pairs: int = 15
    fail_on_lost: bool = False
    noise_file: Path | None = None
    noise: NoiseFloor | None = None

    def with_noise(self, path: Path | None = None) -> Settings:
        """Return these settings with the noise floors of ``path``, or of :attr:`noise_file`, where there is one.

        Raises :class:`~pytest_attn.gate.noise.BadNoise` for a file that cannot be used.
        """
        file = self.noise_file if path is None else path
        if file is None:
            return self
        noise = read_noise(file)
        paired, stored = (dataclasses.replace(each, noise=dict(noise.cells)) for each in (self.paired, self.stored))
        return dataclasses.replace(self, paired=paired, stored=stored, noise=noise)


def read_settings(path: Path) -> Settings:
    """Return what ``path``, a ``pyproject.toml``, says of the gate; the defaults where the file or table is missing.

    Raises :class:`BadSettings` for a file that is no TOML, an unknown key and a value that does not fit.
    """
    try:
        data: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"cannot read {path}: {error}") from None
    for name in TABLE.split("."):
        data = data.get(name, {})
        if not isinstance(data, dict):
            raise BadSettings(f"{path}: {TABLE} is not a table")
    return _Reader(path).settings(data)


class _Reader:
    """Reads one file; knows its name for the sentences."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def settings(self, data: Mapping[str, Any]) -> Settings:
        self._known(TABLE, data, ("pairs", "fail_on_lost", "noise_floor", "time", "cell", *EXACT))
        time = self._values(f"{TABLE}.time", data.get("time", {}), (*TIME_FIELDS, "stored_relative"))
        stored_relative = time.pop("stored_relative", STORED.relative)
        metrics = {name: self._limit(f"{TABLE}.{name}", limit, data.get(name, {})) for name, limit in EXACT.items()}
        cells = data.get("cell", [])
        if not isinstance(cells, list):
            raise self._bad(TABLE, "cell is not an array of tables, [[...cell]]")
        overrides = [self._override(item) for item in cells]
        without = {name: value for name, value in time.items() if name != "relative"}
        return Settings(
            self._thresholds(Thresholds(), {**time, "metrics": metrics, "cells": _pick(overrides, "stored_relative")}),
            self._thresholds(
                STORED, {**without, "relative": stored_relative, "metrics": metrics, "cells": _swap(overrides)}
            ),
            self._whole(data.get("pairs", Settings().pairs)),
            self._flag(data.get("fail_on_lost", False)),
            self._file(data.get("noise_floor")),
        )

    def _override(self, data: Any) -> Override:
        table = f"{TABLE}.cell"
        if not isinstance(data, dict) or not isinstance(data.get("match"), str):
            raise self._bad(table, 'match = "impl problem_id direction" is missing')
        self._known(table, data, ("match", "time", *EXACT))
        time = self._values(f"{table}.time", data.get("time", {}), (*TIME_FIELDS, "stored_relative"))
        self._thresholds(Thresholds(), {name: value for name, value in time.items() if name != "stored_relative"})
        metrics = {}
        for name in EXACT:
            if name in data:
                self._limit(f"{table}.{name}", EXACT[name], data[name])
                metrics[name] = self._values(f"{table}.{name}", data[name], _LIMIT_FIELDS)
        return Override(data["match"], time, metrics)

    def _limit(self, table: str, limit: Limit, data: Any) -> Limit:
        try:
            return dataclasses.replace(limit, **self._values(table, data, _LIMIT_FIELDS))
        except ValueError as error:
            raise self._wrapped(table, error) from None

    def _thresholds(self, thresholds: Thresholds, changes: Mapping[str, Any]) -> Thresholds:
        try:
            return dataclasses.replace(thresholds, **changes)
        except ValueError as error:
            raise self._wrapped(f"{TABLE}.time", error) from None

    def _values(self, table: str, data: Any, known: Iterable[str]) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise self._bad(table, "it is not a table")
        self._known(table, data, tuple(known))
        return {name: self._value(table, name, value) for name, value in data.items()}

    def _value(self, table: str, name: str, value: Any) -> Any:
        read: Callable[[Any], Any] = _READERS.get(name, _number)
        try:
            return read(value)
        except ValueError as error:
            raise self._bad(table, f"{name}: {error}") from None

    def _known(self, table: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
        if unknown := sorted(set(data) - set(known)):
            raise self._bad(table, f"{unknown[0]!r} is not one of {', '.join(known)}")

    def _whole(self, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise self._bad(TABLE, f"pairs: {value!r} is not a whole number of at least 1")
        return value

    def _file(self, value: Any) -> Path | None:
        if value is not None and not (isinstance(value, str) and value):
            raise self._bad(TABLE, f"noise_floor: {value!r} is not the name of a file")
        return None if value is None else self._path.parent / value

    def _flag(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._bad(TABLE, f"fail_on_lost: {value!r} is neither true nor false")
        return value

    def _bad(self, table: str, what: str) -> BadSettings:
        return BadSettings(f"{self._path}: [{table}]: {what}")

    def _wrapped(self, table: str, error: ValueError) -> BadSettings:
        return error if isinstance(error, BadSettings) else self._bad(table, str(error))


_LIMIT_FIELDS = tuple(each.name for each in dataclasses.fields(Limit))


def _share(value: Any) -> float:
    """Read ``"3%"`` or ``0.03``; a bare 3 might be three percent or three times."""
    return parse_relative(value if isinstance(value, str) else str(_number(value)))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _action(value: Any) -> str:
    if value not in ACTIONS:
        raise ValueError(f"{value!r} is not one of {', '.join(ACTIONS)}")
    return str(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "relative": _share,
    "stored_relative": _share,
    "pair_relative": _share,
    "clock": _share,
    "min_rounds": _count,
    "min_pairs": _count,
    "action": _action,
}


def _pick(overrides: Iterable[Override], without: str) -> tuple[Override, ...]:
    return tuple(
        dataclasses.replace(each, time={name: value for name, value in each.time.items() if name != without})
        for each in overrides
    )


def _swap(overrides: Iterable[Override]) -> tuple[Override, ...]:
    """Return the overrides for stored runs, where ``stored_relative`` is what ``relative`` is for pairs."""
    swapped = []
    for each in overrides:
        time = {name: value for name, value in each.time.items() if name not in ("relative", "stored_relative")}
        if "stored_relative" in each.time:
            time["relative"] = each.time["stored_relative"]
        swapped.append(dataclasses.replace(each, time=time))
    return tuple(swapped)
