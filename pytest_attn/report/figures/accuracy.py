"""Accuracy against speed: does the fast one pay with errors?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from pytest_attn.report import axes as scales
from pytest_attn.report.draw import Margins, Sheet, sheet
from pytest_attn.report.figures.lines import MOST_LINES
from pytest_attn.report.figures.marks import Name, fill, names, place
from pytest_attn.report.frame import series_order
from pytest_attn.report.style import FAINT, look
from pytest_attn.report.words import DIRECTIONS, clean, count, digits, percent, short, slug


def accuracy_table(frame: pd.DataFrame, direction: str) -> pd.DataFrame:
    """Return by series: ``speed`` (the fastest's time over its own), ``error`` (over budget) and their ranges.

    ``speed`` and ``error`` are medians over the problems of ``direction`` that hold both; ``error_most`` is the worst,
    ``speed_p10`` and ``speed_p90`` the spread over problems. The fastest of a problem is that of all ``ok`` records.
    """
    rows = frame[(frame["direction"] == direction) & frame["ok"] & (frame["time"] > 0)]
    relative = rows.groupby("problem_id")["time"].transform("min") / rows["time"]
    rows = rows.assign(relative=relative)[rows["error_ratio"].notna()]
    if rows.empty:
        return pd.DataFrame()
    by_series = rows.groupby("series", sort=True)
    return pd.DataFrame(
        {
            "impl": by_series["impl"].first(),
            "tag": by_series["tag"].first(),
            "run_number": by_series["run_number"].first(),
            "problems": by_series["problem_id"].nunique(),
            "speed": by_series["relative"].median(),
            "speed_p10": by_series["relative"].quantile(0.1),
            "speed_p90": by_series["relative"].quantile(0.9),
            "error": by_series["error_ratio"].median(),
            "error_most": by_series["error_ratio"].max(),
        }
    ).loc[series_order(rows)]


def accuracy_sheet(frame: pd.DataFrame, direction: str) -> Sheet | None:
    """Draw each series at its speed and its error over budget; ``None`` where no record holds an error."""
    table = accuracy_table(frame, direction)
    if table.empty:
        return None
    found = len(table)
    table = table.sort_values("speed", ascending=False, kind="stable")[:MOST_LINES]
    made = sheet(
        f"accuracy-over-speed-{direction.replace('_', '-')}",
        f"Does speed cost accuracy {DIRECTIONS[direction]}?",
        "one mark an implementation: medians over the problems; bars to the worst error and to p10–p90 of speed",
        ["Error over budget (1 is the limit)"],
        3.4,
        Margins(),
    )
    (panel,) = made.panels
    ax = panel.ax
    scales.dress(ax)
    ax.set_xlim(0, 1.06)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
    scales.name_x(ax, "Speed as a share of the fastest's")
    low, high = float(table["error"].min()), max(1.0, float(table["error_most"].max()))
    if low > 0:
        scales.log_values_axis(ax, low / 1.6, high * 1.4, digits, 10)
    else:
        scales.linear_values_axis(ax, high * 1.08, digits, 10)
    ax.axhline(1.0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), gid=f"{panel.gid}-limit")
    labels = []
    for series, row in ((str(name), row) for name, row in table.iterrows()):
        style = look(str(row.impl))
        gid = made.mark(f"{panel.gid}-series-{slug(series)}", series)
        bar = made.mark(f"{gid}-spread", series)
        depth = made.mark(f"{gid}-worst", series)
        ax.plot([row.speed] * 2, [row.error, row.error_most], color=style.light, lw=1.2, gid=depth)
        ax.plot([row.speed_p10, row.speed_p90], [row.error] * 2, color=style.light, lw=1.2, gid=bar)
        mark: dict[str, Any] = {"marker": style.marker, "ms": 6.5, "mfc": fill(row), "ls": "none"}
        ax.plot([row.speed], [row.error], color=style.light, label=series, gid=gid, **mark)
        made.hints[gid] = f"{clean(series)}: {_said(row)}"
        labels.append(Name.of({**row.to_dict(), "series": series}, place(ax, row.speed, row.error)))
    names(made, panel, labels)
    panel.alt = f"{made.title} " + " ".join(f"{short(name)}: {_said(row)}." for name, row in table.iterrows())
    made.notes.append("Error over budget: an error of 1 is what the same precision allows; 0 is exact.")
    if found > len(table):
        made.notes.append(f"Drawn are the {len(table)} fastest of {found}.")
    return made


def _said(row: pd.Series) -> str:
    speed, over = percent(row["speed"]), count(int(row["problems"]), "problem")
    error, most = digits(row["error"], 2), digits(row["error_most"], 2)
    return f"{speed} of the fastest's speed, error {error} of the budget, {most} at worst, over {over}"
