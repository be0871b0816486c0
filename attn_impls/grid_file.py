"""Grids in TOML. ``docs/grids.md`` describes the form.

Every refusal is one sentence with the file, the table by its number, and the key: a grid is written by hand, and its
run may last hours.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attn_impls.problem import Problem

# Days of measurement on any device; a larger product is a slip.
MOST_PROBLEMS = 100_000

_FIELDS = dataclasses.fields(Problem)
_REQUIRED = tuple(f.name for f in _FIELDS if f.default is dataclasses.MISSING and f.name != "kv_heads")
_ALLOWED = tuple(sorted({"seq", *(f.name for f in _FIELDS)}))

Axes = dict[str, list[Any]]


class UnknownGrid(ValueError):
    """A grid name that does not exist, or a TOML grid that cannot be read; the message says which is allowed."""


def read_grid(path: str) -> list[Problem]:
    """Return the problems of a TOML grid, in the order of the file.

    A TOML grid holds tables ``[[problem]]`` with the keys of :class:`~attn_impls.problem.Problem`; a list is an axis
    and the axes are multiplied out. ``seq`` sets ``q_len`` and ``kv_len`` together; ``kv_heads`` defaults to ``heads``;
    ``mask`` is a kind, or a table ``{kind, left, right}``. A problem that two tables give is kept once.

    Raises :class:`UnknownGrid` for a file that is missing, is not of that form, or holds more than
    :data:`MOST_PROBLEMS` problems.
    """
    problems: dict[str, Problem] = {}
    left = MOST_PROBLEMS
    for number, table in enumerate(_tables(path), 1):
        try:
            axes = _axes(table)
            left -= math.prod(map(len, axes.values()))
            if left < 0:
                raise ValueError(f"the axes multiply out to more than {MOST_PROBLEMS:,} problems in all")
            for problem in _expand(axes):
                if problems.setdefault(problem.id, problem) != problem:
                    raise ValueError(f"two problems that differ in scale or softcap share the id {problem.id}")
        except ValueError as error:
            raise UnknownGrid(f"{path}, [[problem]] {number}: {error}") from None
    return list(problems.values())


def _tables(path: str) -> list[dict[str, Any]]:
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownGrid(f"cannot read grid {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, brackets in thousands
        raise UnknownGrid(f"{path} is not TOML: {error}") from None
    others = [key for key in data if key != "problem"]
    if others:
        raise UnknownGrid(f"{path}: unknown key {others[0]!r}; a grid must hold tables [[problem]] and nothing else")
    tables = data.get("problem", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UnknownGrid(f"{path}: 'problem' is not a list of tables; write [[problem]]")
    if not tables:
        raise UnknownGrid(f"{path} holds no table [[problem]]")
    return tables


def _axes(table: dict[str, Any]) -> Axes:
    """Return each key's values as a list; check all but what a value means, which :class:`Problem` knows."""
    axes = {key: value if isinstance(value, list) else [value] for key, value in table.items()}
    for key, values in axes.items():
        if key not in _ALLOWED:
            raise ValueError(f"unknown key {key!r}; allowed: {', '.join(_ALLOWED)}")
        if not values:
            raise ValueError(f"{key} is an empty list")
        seen: set[str] = set()
        for value in values:
            if isinstance(value, list) or (isinstance(value, dict) and key != "mask"):
                raise ValueError(f"{key} holds {value!r}, which is not a single value")
            if repr(value) in seen:
                raise ValueError(f"{key} holds {value!r} twice")
            seen.add(repr(value))
    if "seq" in axes and ("q_len" in axes or "kv_len" in axes):
        raise ValueError("seq sets q_len and kv_len; give one or the other")
    given = {*axes, "q_len", "kv_len"} if "seq" in axes else set(axes)
    missing = [key for key in _REQUIRED if key not in given]
    if missing and missing[0] == "q_len" and "kv_len" in missing:
        raise ValueError("the key 'seq' is missing, or 'q_len' and 'kv_len'")
    if missing:
        raise ValueError(f"the key {missing[0]!r} is missing")
    return axes


def _expand(axes: Axes) -> Iterator[Problem]:
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        if "seq" in point:
            seq = point.pop("seq")
            # Checked here, since Problem would name q_len, which the file does not hold.
            if not isinstance(seq, int) or isinstance(seq, bool) or seq < 1:
                raise ValueError(f"seq={seq!r} is not a whole number from 1")
            point["q_len"] = point["kv_len"] = seq
        point.setdefault("kv_heads", point["heads"])
        yield Problem.from_dict(point)
