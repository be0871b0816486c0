"""The ladder: our own kernels in climbing order, with what each rung gains over the one before."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pytest_attn.perf.record import Run
from pytest_attn.report.draw import Margins, Sheet, key, sheet
from pytest_attn.report.figures.rows import MOST_ROWS, ROW, Dot, draw_dots
from pytest_attn.report.words import DIRECTIONS, digits, short, times

RUNG = "tiled-"


def climbing_order(runs: Sequence[Run]) -> list[str]:
    """Return the names of the rungs as the runs list their implementations: the registry's order is the climb's."""
    named = [name for run in runs for name in (*run.implementations, *(record.impl for record in run.records))]
    return list(dict.fromkeys(name for name in named if name.startswith(RUNG)))


def ladder_problem(frame: pd.DataFrame, direction: str) -> str | None:
    """Return the id of the largest problem at which most rungs were measured; ``None`` where fewer than two were."""
    rows = frame[(frame["direction"] == direction) & frame["ok"] & frame["impl"].str.startswith(RUNG)]
    table = rows.groupby("problem_id").agg(rungs=("impl", "nunique"), flops=("flops", "max"))
    table = table[table["rungs"] > 1].sort_values(["rungs", "flops"], kind="stable")
    return None if table.empty else str(table.index[-1])


def ladder_sheet(frame: pd.DataFrame, order: Sequence[str], direction: str, words: str) -> Sheet | None:
    """Draw the speed of each rung at the one problem in ``frame``, in ``order``, then the fastest that is no rung.

    Only the first run is drawn, since a climb is one machine's. ``words`` name the problem.
    """
    rows = frame[(frame["direction"] == direction) & frame["ok"] & (frame["run_number"] == frame["run_number"].min())]
    rows = rows[rows["tflops"] > 0].drop_duplicates("impl").set_index("impl", drop=False)
    rungs = [name for name in order if name in rows.index]
    if len(rungs) < 2:
        return None
    dots, before = [], None
    for name in rungs[:MOST_ROWS]:
        speed = float(rows.at[name, "tflops"])
        step = "" if before is None else f" · {times(speed / before)}"
        dots.append(_dot(rows.loc[name], f"{_tflops(speed)}{step}"))
        before = speed
    rivals = rows[~rows.index.str.startswith(RUNG)].sort_values("tflops", kind="stable")
    if len(rivals):
        top = float(rivals["tflops"].iloc[-1])
        share = times(top / float(rows.at[rungs[-1], "tflops"]))
        dots.append(_dot(rivals.iloc[-1], f"{_tflops(top)} · {share} the last rung"))
    made = sheet(
        f"ladder-{direction.replace('_', '-')}",
        f"What does each rung of the ladder gain {DIRECTIONS[direction]}?",
        words,
        ["Useful TFLOP/s, and the factor over the rung before"],
        0.95 + ROW * len(dots),
        Margins(left=1.25, right=0.14, bottom=0.46),
    )
    (panel,) = made.panels
    draw_dots(made, panel, dots, _tflops)
    panel.alt = f"{made.title} At {words}, in climbing order: " + "; ".join(f"{short(d.series)} {d.text}" for d in dots)
    key(made, spread=True)
    if len(rivals):
        made.notes.append(f"Last, for comparison: {short(dots[-1].series, 40)}, the fastest that is no rung.")
    return made


def _dot(row: pd.Series, text: str) -> Dot:
    low, high = (float(row[end]) if row[end] > 0 else float(row["tflops"]) for end in ("tflops_p10", "tflops_p90"))
    return Dot(row, float(row["tflops"]), low, high, text)


def _tflops(value: float, places: int = 3) -> str:
    """Return a speed given in TFLOP/s in units that keep it readable: slow rungs do GFLOP/s."""
    return f"{digits(value, places)} TFLOP/s" if value >= 0.1 else f"{digits(value * 1e3, places)} GFLOP/s"
