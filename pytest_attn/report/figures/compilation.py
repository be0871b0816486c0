"""What a first call costs: compiling or building, by implementation."""

from __future__ import annotations

import pandas as pd

from pytest_attn.report.draw import Margins, Sheet, sheet
from pytest_attn.report.figures.rows import MOST_ROWS, ROW, Dot, draw_dots
from pytest_attn.report.words import count, seconds, short


def compile_sheet(frame: pd.DataFrame) -> Sheet | None:
    """Draw the median of ``compile_s`` (the first call less the second) of each series, from its least to its most.

    ``None`` where no record holds one.
    """
    good = frame[frame["ok"] & (frame["compile_s"] > 0)]
    if good.empty:
        return None
    found = [
        (float(part["compile_s"].median()), str(series), part) for series, part in good.groupby("series", sort=True)
    ]
    found.sort(key=lambda item: (item[0], item[1]))
    dots = [
        Dot(
            part.iloc[0],
            median,
            float(part["compile_s"].min()),
            float(part["compile_s"].max()),
            f"{seconds(median)}, at most {seconds(part['compile_s'].max())}",
        )
        for median, _, part in found[-MOST_ROWS:]
    ]
    made = sheet(
        "first-call",
        "How long does a first call take over the second?",
        f"compiling, building and tuning; {count(len(good), 'record')}",
        ["First call less the second: median, least to most"],
        0.95 + ROW * len(dots),
        Margins(left=1.25, right=0.14, bottom=0.46),
    )
    (panel,) = made.panels
    draw_dots(made, panel, dots, seconds)
    panel.alt = f"{made.title} " + "; ".join(f"{short(dot.series)}: {dot.text}" for dot in dots) + "."
    if len(found) > len(dots):
        made.notes.append(f"Drawn are the {len(dots)} longest of {len(found)}; the table holds the others.")
    return made
