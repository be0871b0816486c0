"""Two runs held against each other: the same implementation, problem and direction in both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pytest_attn.report.frame import run_letter
from pytest_attn.report.style import order
from pytest_attn.report.tables import Cell, Row, Table, problem_labels
from pytest_attn.report.words import DIRECTIONS, clean, count, seconds, short, times

MOST_RUNS, MOST_CHANGES = 3, 20
_CELL = ["impl", "problem_id", "direction"]


@dataclass(frozen=True)
class RunPair:
    """A later run against the first: ``cells`` has a row a cell that is ``ok`` in both.

    Its columns: ``impl``, ``problem_id``, ``direction``, ``before`` and ``after`` (median seconds), ``ratio`` (before
    over after, so above 1 is faster), ``low`` and ``high`` (what the p10-p90 spreads of both allow), ``clear`` (whether
    they keep away from 1), ``label`` (the problem), ``series``, ``tag`` and ``run_number`` of the later record.
    ``unpaired`` counts the cells that are ``ok`` in one of the two only.
    """

    before: str
    after: str
    letters: tuple[str, str]
    cells: pd.DataFrame
    unpaired: int

    def changes(self, direction: str, most: int) -> pd.DataFrame:
        """Return the ``most`` largest gains, then the ``most`` largest losses, clear ones only, the largest first."""
        clear = self.cells[(self.cells["direction"] == direction) & self.cells["clear"]]
        clear = clear.sort_values(["ratio", *_CELL], kind="stable")
        losses, gains = clear[clear["ratio"] < 1], clear[clear["ratio"] > 1]
        return pd.concat([gains.iloc[::-1][:most], losses[:most]])


def run_pairs(frame: pd.DataFrame) -> list[RunPair]:
    """Return each later run against the first, :data:`MOST_RUNS` at most."""
    numbers = sorted(int(number) for number in frame["run_number"].unique())
    _, labels = problem_labels(frame)
    return [_pair(frame, numbers[0], number, labels) for number in numbers[1 : MOST_RUNS + 1]]


def _pair(frame: pd.DataFrame, first: int, later: int, labels: dict[str, str]) -> RunPair:
    good = frame[frame["ok"]]
    before, after = (good[good["run_number"] == number].drop_duplicates(_CELL) for number in (first, later))
    both = before.merge(after, on=_CELL, suffixes=("_before", ""), validate="one_to_one")
    cells = both[_CELL].assign(
        before=both["time_before"],
        after=both["time"],
        ratio=both["time_before"] / both["time"],
        low=both["time_p10_before"] / both["time_p90"],
        high=both["time_p90_before"] / both["time_p10"],
        label=both["problem_id"].map(labels),
        series=both["series"],
        tag=both["tag"],
        run_number=both["run_number"],
    )
    cells["clear"] = (cells["low"] > 1) | (cells["high"] < 1)
    names = [str(frame.loc[frame["run_number"] == number, "run"].iloc[0]) for number in (first, later)]
    unpaired = len(before) + len(after) - 2 * len(cells)
    return RunPair(names[0], names[1], (run_letter(first), run_letter(later)), cells, unpaired)


def by_implementation(cells: pd.DataFrame) -> pd.DataFrame:
    """Return by implementation, in the order of all figures: ``cells``, ``median`` ratio (geometric), least and most.

    ``faster`` and ``slower`` count the cells that changed clearly.
    """
    rows = [
        {
            "impl": impl,
            "cells": len(part),
            "median": float(np.exp(np.median(np.log(part["ratio"])))),
            "least": float(part["ratio"].min()),
            "most": float(part["ratio"].max()),
            "faster": int((part["clear"] & (part["ratio"] > 1)).sum()),
            "slower": int((part["clear"] & (part["ratio"] < 1)).sum()),
        }
        for impl, part in sorted(cells.groupby("impl"), key=lambda item: order(str(item[0])))
    ]
    return pd.DataFrame(rows)


def pair_tables(pair: RunPair) -> Iterator[Table]:
    """Yield for each direction the ratios by implementation, and the largest clear gains and losses by cell."""
    a, b = pair.letters
    over = f"{b} ({short(pair.after, 40)}) over {a} ({short(pair.before, 40)})"
    for direction in (d for d in DIRECTIONS if (pair.cells["direction"] == d).any()):
        here = pair.cells[pair.cells["direction"] == direction]
        rows = [
            Row(
                clean(row.impl),
                count(int(str(row.cells)), "cell"),
                (
                    Cell(times(float(str(row.median)), 3)),
                    Cell(times(float(str(row.least)), 3)),
                    Cell(times(float(str(row.most)), 3)),
                    Cell(str(row.faster)),
                    Cell(str(row.slower)),
                ),
            )
            for row in by_implementation(here).itertuples()
        ]
        columns = ("Speed-up: median", "least", "most", "clearly faster", "clearly slower")
        yield Table(f"Speed of {over}, {DIRECTIONS[direction]}", "time", direction, columns, tuple(rows))
        changed = pair.changes(direction, MOST_CHANGES)
        if changed.empty:
            continue
        cells = [
            Row(
                f"{short(row.impl, 40)} {row.label}",
                "",
                (
                    Cell(seconds(float(str(row.before)))),
                    Cell(seconds(float(str(row.after)))),
                    Cell(times(float(str(row.ratio)), 3)),
                    Cell(f"{times(float(str(row.low)), 3)} to {times(float(str(row.high)), 3)}"),
                ),
            )
            for row in changed.itertuples()
        ]
        left_out = int(here["clear"].sum()) - len(changed)
        ends = (a, b, "speed-up", "p10–p90 of both")
        title = f"Largest clear gains and losses of {over}, {DIRECTIONS[direction]}"
        yield Table(title, "time", direction, ends, tuple(cells), left_out)
