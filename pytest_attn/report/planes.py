"""Finding the plane of shapes to map: two things that move, everything else equal or told by a row and a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pytest_attn.report.words import clean, heads, mask_words

MOST_COLUMNS, MOST_ROWS = 7, 12
_COMMON = ("dtype", "softcap", "scale", "layout")


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes a row and a column of a plane, and what stands still in it.

    ``square`` planes hold self-attention only. With ``masks`` each mask is a panel; without, it belongs to the row.
    ``mixed`` planes count half: a row or a column of theirs moves several things.
    """

    row: tuple[str, ...]
    column: tuple[str, ...]
    fixed: tuple[str, ...]
    square: bool = True
    masks: bool = True
    mixed: bool = False


_KINDS = (
    Kind(("batch",), ("q_len",), ("heads", "kv_heads", "head_dim")),
    Kind(("head_dim",), ("q_len",), ("batch", "heads", "kv_heads")),
    Kind(("head_dim",), ("q_len",), ("tokens", "embedding", "group")),
    Kind(("heads",), ("q_len",), ("batch", "head_dim", "group")),
    Kind(("heads",), ("q_len",), ("batch", "embedding", "group")),
    Kind(("heads",), ("batch",), ("q_len", "head_dim", "group")),
    # What a layer is by what it is asked: for runs whose shapes do not form a plane of two things alone.
    Kind(("heads", "kv_heads", "head_dim"), ("batch", "q_len"), (), mixed=True),
    Kind(
        ("heads", "kv_heads", "head_dim", "mask"),
        ("batch", "q_len", "kv_len"),
        (),
        square=False,
        masks=False,
        mixed=True,
    ),
)
_SYMBOLS = {"batch": "B", "q_len": "S", "heads": "H", "kv_heads": "KV", "head_dim": "D", "tokens": "B×S "}


@dataclass(frozen=True)
class Plane:
    """``frame`` are its records; ``rows`` and ``columns`` the values of :class:`Kind`'s names, in order."""

    kind: Kind
    frame: pd.DataFrame
    rows: Sequence[tuple[object, ...]]
    columns: Sequence[tuple[object, ...]]
    fixed: str
    left_out: int
    """Cells beyond :data:`MOST_COLUMNS` and :data:`MOST_ROWS`."""

    def row_label(self, value: tuple[object, ...]) -> str:
        """Return the name of a row."""
        return _label(self.kind.row, value)

    def column_label(self, value: tuple[object, ...]) -> str:
        """Return the name of a column."""
        told = dict(zip(self.kind.column, value, strict=True))
        if "kv_len" not in told:
            return _label(self.kind.column, value)
        if told["q_len"] == told["kv_len"]:
            return f"B{told['batch']} {_k(told['q_len'])}"
        return f"B{told['batch']} {_k(told['q_len'])}→{_k(told['kv_len'])}"


def find_plane(frame: pd.DataFrame) -> Plane | None:
    """Return the plane with the most cells in which two implementations were measured; ``None`` where none has two."""
    # By problem, not by record: a run has few shapes and many records.
    counts = frame[frame["ok"]].groupby("problem_id")["series"].nunique()
    shapes = frame.drop_duplicates("problem_id")
    shapes = shapes[shapes["problem_id"].isin(counts[counts > 1].index)]
    best: tuple[tuple[bool, float, float], Kind, pd.DataFrame] | None = None
    for kind in _KINDS:
        found = _fullest(kind, shapes[shapes["q_len"] == shapes["kv_len"]] if kind.square else shapes)
        if found is not None and (best is None or found[0] > best[0]):
            best = (found[0], kind, found[1])
    if best is None:
        return None
    _, kind, part = best
    rows_, columns = (_values(part, names) for names in (kind.row, kind.column))
    kept_rows, kept_columns = rows_[:MOST_ROWS], _thinned(columns)
    records = frame[frame["problem_id"].isin(part["problem_id"])]
    left_out = len(rows_) * len(columns) - len(kept_rows) * len(kept_columns)
    return Plane(kind, records, kept_rows, kept_columns, _describe(kind, part.iloc[0]), left_out)


def _fullest(kind: Kind, shapes: pd.DataFrame) -> tuple[tuple[bool, float, float], pd.DataFrame] | None:
    """Return the rank and the shapes of the plane of ``kind`` that tells the most.

    A plane that is full tells more than one that is a diagonal; ties go to the first.
    """
    if shapes.empty:
        return None
    numbers = {
        name: shapes.groupby(list(columns), dropna=False, sort=True).ngroup()
        for name, columns in (
            ("plane", (*kind.fixed, *_COMMON)),
            ("row", kind.row),
            ("column", kind.column),
            ("cell", (*kind.row, *kind.column)),
            ("shown", (*kind.row, *kind.column, *(["mask"] if kind.masks else []))),
        )
    }
    sizes = pd.DataFrame(numbers).groupby("plane").nunique()
    cells, shown = sizes["cell"], sizes["shown"].clip(upper=2 * MOST_ROWS * MOST_COLUMNS)
    sides = sizes[["row", "column"]]
    ranks = pd.DataFrame(
        {
            "spans": (sides.min(axis=1) > 1) & (cells > sides.max(axis=1)),
            "cells": shown,
            "density": cells / (sizes["row"] * sizes["column"]),
        }
    )
    ranks = ranks[cells > 1].sort_values(["spans", "cells", "density"], ascending=False, kind="stable")
    if ranks.empty:
        return None
    spans, most, density = ranks.iloc[0]
    return (bool(spans), float(most) / (2 if kind.mixed else 1), float(density)), shapes[
        numbers["plane"] == ranks.index[0]
    ]


def _values(part: pd.DataFrame, names: tuple[str, ...]) -> list[tuple[object, ...]]:
    found = part[list(names)].drop_duplicates().sort_values(list(names))
    return [tuple(row) for row in found.itertuples(index=False)]


def _thinned(values: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Return at most :data:`MOST_COLUMNS` of ``values``, evenly, with both ends."""
    if len(values) <= MOST_COLUMNS:
        return values
    step = (len(values) - 1) / (MOST_COLUMNS - 1)
    return [values[round(number * step)] for number in range(MOST_COLUMNS)]


def _label(names: tuple[str, ...], value: tuple[object, ...]) -> str:
    told = dict(zip(names, value, strict=True))
    if told.get("heads") == told.get("kv_heads"):
        told.pop("kv_heads", None)
    mask = mask_words(str(told.pop("mask", ""))).removesuffix(" left, 0 right")
    return clean(" ".join([*(f"{_SYMBOLS[name]}{_k(each)}" for name, each in told.items()), mask]))


def _k(value: object) -> str:
    number = int(str(value))
    return f"{number // 1024}k" if number >= 2048 and number % 1024 == 0 else str(number)


def _describe(kind: Kind, row: pd.Series) -> str:
    words = {"batch": "batch {}", "tokens": "batch × length {}", "head_dim": "head dim {}"}
    words |= {"embedding": "embedding {}", "q_len": "length {}"}
    told = {name: text.format(row[name]) for name, text in words.items()} | {"heads": heads(row["heads"])}
    said = [told[name] for name in kind.fixed if name in told]
    if "kv_heads" in kind.fixed and row["kv_heads"] != row["heads"]:
        said.append(f"{row['kv_heads']} key heads")
    said += [clean(row["dtype"])]
    said += [f"{name} {row[name]:g}" for name in ("softcap", "scale") if pd.notna(row[name])]
    return ", ".join(said)
