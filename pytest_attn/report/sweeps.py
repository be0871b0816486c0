"""Finding the sweeps in a run: sets of problems in which one axis moves and everything else stands still.

"Everything else" has more than one meaning. More heads can mean a wider model (``head_dim`` stands) or the same model
cut finer (``embedding`` stands, as in the course script); a longer sequence can mean more work (``batch`` stands) or
the same number of tokens (as in FlashAttention's papers). Each meaning is a :class:`Family`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from pytest_attn.report.words import clean


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
    "heads": "{} heads",
    "head_dim": "head dim {}",
    "embedding": "embedding {}",
    "q_len": "length {}",
}
_MASK_ORDER = {"full": 0, "causal": 1, "causal_top_left": 2}


@dataclass(frozen=True)
class Sweep:
    """Problems along one axis: ``values`` are its points, ``masks`` the panels, ``frame`` the records."""

    axis: Axis
    fixed: str
    values: tuple[int, ...]
    masks: tuple[str, ...]
    frame: pd.DataFrame
    second: bool = False

    @property
    def rank(self) -> tuple[int, bool, int, int, float]:
        """How much it tells: points, its meaning, panels, then what was measured, then the size of the work.

        What was measured comes before size, because a sweep in which half ran out of memory compares less.
        """
        panels, measured = min(len(self.masks), 2), int(self.frame["ok"].sum())
        return len(self.values), not self.second, panels, measured, float(self.frame["flops"].sum())


def find_sweeps(frame: pd.DataFrame) -> dict[str, list[Sweep]]:
    """Return for each key of :data:`AXES` the sweeps of at least two points in ``frame``, the best of them first."""
    found: dict[str, list[Sweep]] = {key: [] for key in AXES}
    for family in FAMILIES:
        rows = frame[frame["q_len"] == frame["kv_len"]] if family.axis.key == "seq" else frame
        fixed = [*family.fixed, *_COMMON]
        for _, part in rows.groupby(fixed, dropna=False, sort=True):
            sweep = _sweep(family, part)
            if sweep is not None:
                found[family.axis.key].append(sweep)
    for sweeps in found.values():
        sweeps.sort(key=lambda sweep: (*(-part for part in sweep.rank), sweep.fixed))
    return found


def masks_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the masks in ``frame``: full, causal, then the others by name."""
    return tuple(sorted(map(str, frame["mask"].unique()), key=lambda mask: (_MASK_ORDER.get(mask, 9), mask)))


def _sweep(family: Family, part: pd.DataFrame) -> Sweep | None:
    column = family.axis.column
    # A mask with a single point is no sweep of its own, and would be a panel with one dot.
    points = part.groupby("mask")[column].nunique()
    part = part[part["mask"].isin(points[points > 1].index)]
    if part.empty:
        return None
    values = tuple(sorted(int(value) for value in part[column].unique()))
    return Sweep(family.axis, _describe(family, part.iloc[0]), values, masks_of(part), part, family.second)


def _describe(family: Family, row: pd.Series) -> str:
    """Say what stands still: ``batch 16, 32 heads, head dim 64, fp16``."""
    words = [_WORDS[name].format(row[name]) for name in family.fixed if name in _WORDS]
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
