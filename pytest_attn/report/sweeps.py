"""Finding the sweeps in a run: sets of problems in which one axis moves and everything else stands still.

"Everything else" has more than one meaning. More heads can mean a wider model (``head_dim`` stands) or the same model
cut finer (``embedding`` stands, as in the course script); a longer sequence can mean more work (``batch`` stands) or
the same number of tokens (as in FlashAttention's papers). Each meaning is a :class:`Family`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pytest_attn.report.words import clean, heads


@dataclass(frozen=True, slots=True)
class Axis:
    """Something that a user turns: ``label`` names it on a figure, ``noun`` in a sentence, ``symbol`` in a table."""

    key: str
    column: str
    label: str
    noun: str
    symbol: str


AXES = {
    "seq": Axis("seq", "q_len", "Sequence length", "sequence length", "S"),
    "batch": Axis("batch", "batch", "Batch size", "batch size", "B"),
    "heads": Axis("heads", "heads", "Heads", "the number of heads", "H"),
    "embedding": Axis("embedding", "embedding", "Embedding (heads × head dim)", "embedding", "E"),
}

_COMMON = ("dtype", "softcap", "scale", "layout")


@dataclass(frozen=True, slots=True)
class Family:
    """One meaning of "everything else is equal": ``fixed`` are the columns that do not change along ``axis``.

    ``second`` marks the meaning that is shown only where it has more points than the plain one.
    """

    axis: Axis
    fixed: tuple[str, ...]
    second: bool = False


FAMILIES = (
    Family(AXES["seq"], ("batch", "heads", "kv_heads", "head_dim")),
    Family(AXES["seq"], ("tokens", "heads", "kv_heads", "head_dim"), second=True),
    Family(AXES["batch"], ("q_len", "kv_len", "heads", "kv_heads", "head_dim")),
    Family(AXES["heads"], ("batch", "q_len", "kv_len", "group", "head_dim")),
    Family(AXES["heads"], ("batch", "q_len", "kv_len", "group", "embedding"), second=True),
    Family(AXES["embedding"], ("batch", "q_len", "kv_len", "heads", "kv_heads")),
)

_WORDS = {
    "batch": "batch {}",
    "tokens": "batch × length {}",
    "head_dim": "head dim {}",
    "embedding": "embedding {}",
    "q_len": "length {}",
}
_MASK_ORDER = {"full": 0, "causal": 1, "causal_top_left": 2}


@dataclass(frozen=True)
class Sweep:
    """Problems along one axis; ``parent`` is the table of the whole run, ``positions`` the sweep's rows in it.

    What is derived is computed when asked for: a run may hold thousands of sweeps, of which few are shown.
    """

    family: Family
    parent: pd.DataFrame
    positions: np.ndarray[Any, np.dtype[np.intp]]

    @property
    def axis(self) -> Axis:
        """What moves."""
        return self.family.axis

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The records."""
        return self.parent.iloc[self.positions]

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The points on the axis."""
        return tuple(sorted(int(value) for value in self.frame[self.axis.column].unique()))

    @cached_property
    def masks(self) -> tuple[str, ...]:
        """The masks, a panel each."""
        return masks_of(self.frame)

    @cached_property
    def fixed(self) -> str:
        """What stands still, in words."""
        return _describe(self.family, self.frame.iloc[0])


def find_sweeps(frame: pd.DataFrame) -> dict[str, list[Sweep]]:
    """Return for each key of :data:`AXES` the sweeps of at least two points in ``frame``, the best of them first."""
    found: dict[str, list[tuple[tuple[float, ...], Sweep]]] = {key: [] for key in AXES}
    for family in FAMILIES:
        for rank, sweep in _sweeps(family, frame):
            found[family.axis.key].append((rank, sweep))
    # Sorting is stable: equal ones stay in the order of what stands still.
    return {key: [sweep for _, sweep in sorted(pairs, key=lambda pair: pair[0])] for key, pairs in found.items()}


def _sweeps(family: Family, frame: pd.DataFrame) -> Iterator[tuple[tuple[float, ...], Sweep]]:
    """Yield each sweep of ``family`` with its rank, the lowest telling the most.

    That is: points, then the plain meaning, panels, what was measured, and the size of the work. What was measured
    comes before size, because a sweep in which half ran out of memory compares less.
    """
    column = family.axis.column
    positions = np.arange(len(frame))
    if family.axis.key == "seq":
        positions = positions[(frame["q_len"] == frame["kv_len"]).to_numpy()]
    rows = frame.iloc[positions][[*family.fixed, *_COMMON, column, "mask", "ok", "flops"]]
    rows = rows.assign(group_number=rows.groupby([*family.fixed, *_COMMON], dropna=False, sort=True).ngroup())
    # A mask with a single point is no sweep of its own, and would be a panel with one dot.
    points = rows.groupby(["group_number", "mask"])[column].transform("nunique").to_numpy()
    rows, positions = rows[points > 1], positions[points > 1]
    if rows.empty:
        return
    numbers = rows["group_number"].to_numpy()
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    ranks = rows.groupby("group_number").agg(
        points=(column, "nunique"), masks=("mask", "nunique"), measured=("ok", "sum"), flops=("flops", "sum")
    )
    ranks["masks"] = ranks["masks"].clip(upper=2)
    # The columns stand in the order of the rank, after whose first part comes the meaning.
    for part, rank in zip(np.split(positions[order], starts[1:]), (-ranks).to_numpy(dtype=float), strict=True):
        points_, *rest = map(float, rank)
        yield (points_, float(family.second), *rest), Sweep(family, frame, part)


def masks_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the masks in ``frame``: full, causal, then the others by name."""
    return tuple(sorted(map(str, frame["mask"].unique()), key=lambda mask: (_MASK_ORDER.get(mask, 9), mask)))


def _describe(family: Family, row: pd.Series) -> str:
    """Say what stands still: ``batch 16, 32 heads, head dim 64, fp16``."""
    said = {name: text.format(row[name]) for name, text in _WORDS.items()} | {"heads": heads(row["heads"])}
    words = [said[name] for name in family.fixed if name in said]
    if family.axis.key == "heads":
        words.append(f"{row['group']} query heads a key head" if row["group"] > 1 else "")
    elif row["kv_heads"] != row["heads"]:
        words.append(f"{row['kv_heads']} key heads")
    if "kv_len" in family.fixed and row["kv_len"] != row["q_len"]:
        words.append(f"{row['kv_len']} keys")
    words.append(clean(row["dtype"]))
    words.extend(f"{name} {row[name]:g}" for name in ("softcap", "scale") if pd.notna(row[name]))
    words.append("" if row["layout"] == "bshd" else clean(row["layout"]))
    return ", ".join(word for word in words if word)


def headline_problem(frame: pd.DataFrame) -> str | None:
    """Return the id of the problem to show first: the largest of those that most implementations could do."""
    good = frame[frame["ok"]]
    if good.empty:
        good = frame[frame["time"] > 0]  # noisy ones are better than none
    if good.empty:
        return None
    table = good.groupby("problem_id").agg(
        series=("series", "nunique"), records=("series", "size"), flops=("flops", "max")
    )
    return str(table.sort_values(["series", "records", "flops"], kind="stable").index[-1])
