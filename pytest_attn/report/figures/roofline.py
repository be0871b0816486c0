"""Speed against arithmetic intensity, under the ceilings that the run itself reached and that the datasheet gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pytest_attn.report import axes as scales
from pytest_attn.report.draw import Margins, Panel, Sheet, key, sheet
from pytest_attn.report.figures.lines import MOST_LINES
from pytest_attn.report.figures.marks import Name, fill, names, place, spreads
from pytest_attn.report.frame import series_order
from pytest_attn.report.style import BASELINE, FAINT, INK, PAPER, look
from pytest_attn.report.words import DIRECTIONS, clean, digits, listed, short, slug

_HEIGHT, _MOST_PANELS = 3.6, 4
_BINS = 2  # an octave of intensity; of the points of a series in one, the fastest is drawn


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What bounds speed: ``reached`` (TFLOP/s) and ``traffic`` (GB/s) are the most that any record reached.

    ``datasheet`` is the peak in TFLOP/s that the records' percent of peak refers to, ``None`` where none holds one.
    """

    reached: float
    traffic: float
    datasheet: float | None

    def at(self, intensity: float) -> float:
        """Return the measured ceiling in TFLOP/s at ``intensity`` FLOP a byte."""
        return min(self.reached, self.traffic * intensity / 1e3)


def ceilings(rows: pd.DataFrame) -> Ceilings | None:
    """Return the ceilings over ``rows`` of one dtype, whatever the direction; ``None`` where no record has a speed."""
    good = rows[rows["ok"] & (rows["tflops"] > 0) & (rows["gbps"] > 0)]
    if good.empty:
        return None
    known = good[good["percent_of_peak"] > 0]
    peaks = 100 * known["tflops"] / known["percent_of_peak"]
    datasheet = float(peaks.median()) if len(peaks) else None
    return Ceilings(float(good["tflops"].max()), float(good["gbps"].max()), datasheet)


def roofline_sheet(frame: pd.DataFrame, direction: str) -> Sheet | None:
    """Draw useful TFLOP/s over FLOP a byte of least traffic, a panel a dtype; ``None`` where no two problems were."""
    rows = frame[(frame["direction"] == direction) & frame["ok"] & (frame["tflops"] > 0) & (frame["min_bytes"] > 0)]
    if rows["problem_id"].nunique() < 2:
        return None
    rows = rows.assign(intensity=rows["flops"] / rows["min_bytes"])
    # Too many marks say nothing: the baseline stays, the others are ranked by the most that they reached.
    best = rows.assign(other=rows["impl"] != BASELINE).groupby("series").agg({"other": "first", "tflops": "max"})
    best = best.sort_values(["other", "tflops"], ascending=[True, False], kind="stable")
    left_out = [short(series, 40) for series in best.index[MOST_LINES:]]
    rows = rows[rows["series"].isin(best.index[:MOST_LINES])]
    dtypes = sorted(rows["dtype"].unique(), key=lambda dtype: -int((rows["dtype"] == dtype).sum()))[:_MOST_PANELS]
    said = DIRECTIONS[direction]
    made = sheet(
        f"roofline-{direction.replace('_', '-')}",
        f"What holds {said} back, arithmetic or memory traffic?",
        "roofline: useful TFLOP/s over the FLOPs a byte of inputs and outputs, each moved once",
        [f"Useful TFLOP/s, {clean(dtype)}" for dtype in dtypes],
        _HEIGHT,
        Margins(left=0.62),
    )
    kept = 0
    for panel, dtype in zip(made.panels, dtypes, strict=True):
        here, limits = _fastest(rows[rows["dtype"] == dtype]), ceilings(frame[frame["dtype"] == dtype])
        kept += len(here)
        if limits is not None:
            _draw(made, panel, here, limits)
            panel.alt = f"{made.title} {panel.title}. {_ceiling_words(limits)} {_reach(here, limits)}"
    key(made, spread=True)
    made.notes.append(
        "The measured ceiling is the most that any record of this run reached, in TFLOP/s and in GB/s of least "
        "traffic; no separate test of the machine is recorded."
    )
    if left_out:
        made.notes.append(f"Drawn are the {MOST_LINES} fastest; in results.csv: {listed(left_out, 6)}.")
    if kept < len(rows):
        made.notes.append(f"Of points at about the same intensity the fastest is drawn: {kept} of {len(rows)}.")
    return made


def _fastest(rows: pd.DataFrame) -> pd.DataFrame:
    bins = (np.log2(rows["intensity"]) * _BINS).round()
    best = rows.assign(bin=bins).sort_values(["tflops", "problem_id"], ascending=[False, True], kind="stable")
    return best.drop_duplicates(["series", "bin"]).sort_values("intensity", kind="stable")


def _draw(made: Sheet, panel: Panel, rows: pd.DataFrame, limits: Ceilings) -> None:
    ax = panel.ax
    scales.dress(ax)
    left, right = float(rows["intensity"].min()) / 1.6, float(rows["intensity"].max()) * 1.6
    top = max(limits.reached, limits.datasheet or 0.0) * 1.9
    lows = rows["tflops_p10"].where(rows["tflops_p10"] > 0, rows["tflops"])
    scales.log_values_axis(ax, float(lows.min()) / 1.5, top, digits, 10)
    scales.log_values_axis(ax, left, right, scales.point, 2, along="x", most=6)
    scales.name_x(ax, "FLOP a byte")
    _ceiling_lines(ax, panel.gid, limits, left, right)
    labels = []
    for series in series_order(rows):
        here = rows[rows["series"] == series]
        one = here.iloc[0]
        style, gid = look(str(one["impl"])), f"{panel.gid}-series-{slug(series)}"
        x, y = here["intensity"].to_numpy(), here["tflops"].to_numpy()
        ax.plot(x, y, color=style.light, marker=style.marker, ms=5, ls="none", mfc=fill(one), gid=gid, label=series)
        spread = spreads(ax, x, here["tflops_p10"], here["tflops_p90"], style.light, 2.4)
        spread.set_gid(f"{gid}-spread")
        made.mark(gid, series, here["record"])
        made.mark(f"{gid}-spread", series)
        made.hints[gid] = f"{clean(series)}: " + ", ".join(
            f"{digits(a)} FLOP/B → {digits(b)}" for a, b in zip(x, y, strict=True)
        )
        labels.append(Name.of(one, place(ax, float(x[-1]), float(y[-1]))))
    names(made, panel, labels)


def _ceiling_lines(ax: Axes, gid: str, limits: Ceilings, left: float, right: float) -> None:
    knee = limits.reached * 1e3 / limits.traffic
    xs = [left, *([knee] if left < knee < right else []), right]
    ax.plot(xs, [limits.at(x) for x in xs], color=INK, lw=1.2, gid=f"{gid}-measured")
    _name(ax, right, limits.reached, f"measured {digits(limits.reached)}, {digits(limits.traffic)} GB/s", "right")
    if limits.datasheet is not None:
        ax.axhline(limits.datasheet, color=FAINT, lw=0.9, ls=(0, (4, 3)), gid=f"{gid}-datasheet")
        _name(ax, left, limits.datasheet, f"datasheet {digits(limits.datasheet)}", "left")


def _name(ax: Axes, x: float, height: float, text: str, side: str) -> None:
    shift = 3 if side == "left" else -3
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.4, "alpha": 0.85}
    ax.annotate(
        text, (x, height), xytext=(shift, 3), textcoords="offset points", size=7.5, color=INK, ha=side, bbox=box
    )


def _ceiling_words(limits: Ceilings) -> str:
    sheet_said = "" if limits.datasheet is None else f", the datasheet's peak {digits(limits.datasheet)}"
    reached = f"The most reached is {digits(limits.reached)} TFLOP/s and {digits(limits.traffic)} GB/s"
    return f"{reached}{sheet_said}."


def _reach(rows: pd.DataFrame, limits: Ceilings) -> str:
    """Say for each series its best share of the measured ceiling."""
    said: Sequence[str] = [
        f"{short(series)}: {digits(best['tflops'])} at {digits(best['intensity'])} FLOP a byte, "
        f"{math.floor(100 * best['tflops'] / limits.at(best['intensity']) + 0.5)} % of the measured ceiling there."
        for series in series_order(rows)
        for best in [rows[rows["series"] == series].sort_values("tflops").iloc[-1]]
    ]
    return " ".join(said)
