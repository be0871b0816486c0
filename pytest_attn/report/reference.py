"""The three tables of the course's reports: time, speed and memory by implementation at one problem.

The problem is theirs (batch 16, length 1024, 32 heads, embedding 2048) where the run holds it, else that of the first
figure.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from pytest_attn.report.findings import problem_words
from pytest_attn.report.frame import series_order
from pytest_attn.report.metrics import METRICS
from pytest_attn.report.sweeps import masks_of
from pytest_attn.report.tables import Cell, Row, Table, best_value, value_cell
from pytest_attn.report.words import DIRECTIONS, clean

_SHAPE = {"batch": 16, "q_len": 1024, "kv_len": 1024, "heads": 32, "embedding": 2048}


def reference_tables(frame: pd.DataFrame, headline: str | None) -> Iterator[Table]:
    """Yield for each mask at the problem a table a metric: a row an implementation, a column a direction.

    Under a time stands the speed-up over the baseline, under a size the share of the baseline's memory; the best of a
    column is marked. ``headline`` is the id of the first figure's problem.
    """
    theirs = pd.Series(True, index=frame.index)
    for column, value in _SHAPE.items():
        theirs &= frame[column] == value
    rows = frame[theirs] if (theirs & frame["ok"]).any() else frame[frame["problem_id"] == headline]
    if rows.empty:
        return
    first = rows.sort_values("problem_id", kind="stable").drop_duplicates("mask")
    problems = {str(row["mask"]): row for _, row in first.iterrows()}
    for mask in masks_of(rows):
        here = rows[rows["problem_id"] == problems[mask]["problem_id"]]
        for metric in METRICS.values():
            directions = [d for d in DIRECTIONS if ((here["direction"] == d) & (here[metric.column] > 0)).any()]
            if not directions:
                continue
            columns = {direction: _column(here[here["direction"] == direction], metric.key) for direction in directions}
            lines = tuple(
                Row(
                    clean(series),
                    "",
                    tuple(columns[direction].get(series, value_cell(None, metric, None)) for direction in directions),
                )
                for series in series_order(here)
            )
            title = f"{metric.label} by implementation at {problem_words(problems[mask])}"
            names = tuple(DIRECTIONS[direction].capitalize() for direction in directions)
            yield Table(title, metric.key, "", names, lines)


def _column(rows: pd.DataFrame, metric: str) -> dict[str, Cell]:
    chosen = METRICS[metric]
    records = rows.drop_duplicates("series").to_dict("records")
    best = best_value(records, chosen)
    return {str(row["series"]): value_cell(row, chosen, best) for row in records}
