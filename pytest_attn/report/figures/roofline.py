"""Speed against arithmetic intensity, under the datasheet's ceilings and those that the run itself measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pytest_attn.perf.datasheet import datasheet, nominal_tflops
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
    """What bounds speed: ``reached`` (TFLOP/s) and ``traffic`` (GB/s) are what the machine reached.

    In a matrix product and a copy, where the run took those (``probed``), else in the best of its records.
    ``datasheet`` (TFLOP/s) and ``bandwidth`` (GB/s) are what the datasheet promises; ``None`` where it is not known, or
    where the records are of devices that differ in it.
    """

    reached: float
    traffic: float
    datasheet: float | None
    bandwidth: float | None
    probed: bool = False

    @property
    def name(self) -> str:
        """What the solid line is called."""
        return "measured" if self.probed else "most reached"

    def at(self, intensity: float) -> float:
        """Return what the solid line allows, in TFLOP/s, at ``intensity`` FLOP a byte."""
        return min(self.reached, self.traffic * intensity / 1e3)

    def promised(self, intensity: float) -> float:
        """Return the datasheet's ceiling in TFLOP/s at ``intensity`` FLOP a byte, infinite where it is not known."""
        slope = math.inf if self.bandwidth is None else self.bandwidth * intensity / 1e3
        return min(math.inf if self.datasheet is None else self.datasheet, slope)


def ceilings(rows: pd.DataFrame) -> Ceilings | None:
    """Return the ceilings over ``rows`` of one dtype, whatever the direction; ``None`` where no record has a speed."""
    good = rows[rows["ok"] & (rows["tflops"] > 0) & (rows["gbps"] > 0)]
    if good.empty:
        return None
    known = {datasheet(str(device)) for device in good["device"].unique()}
    bandwidths = {None if found is None else found.bandwidth for found in known}
    stated = good[good["percent_of_peak"] > 0]
    # What the records refer to, to which rounding adds its last digit; else what the name of the device says.
    peaks: set[float | None] = {float(f"{peak:.4g}") for peak in 100 * stated["tflops"] / stated["percent_of_peak"]}
    if not peaks:
        peaks = {nominal_tflops(str(device), str(good["dtype"].iloc[0])) for device in good["device"].unique()}
    product, copy = (_only(set(good[column].where(good[column] > 0))) for column in ("product_tflops", "copy_gbps"))
    if product is not None and copy is not None and not math.isnan(product + copy):
        return Ceilings(product, copy, _only(peaks), _only(bandwidths), probed=True)
    return Ceilings(float(good["tflops"].max()), float(good["gbps"].max()), _only(peaks), _only(bandwidths))


def _only(values: set[float | None]) -> float | None:
    return next(iter(values)) if len(values) == 1 else None


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
    kept, promised, solid = 0, False, set[bool]()
    for panel, dtype in zip(made.panels, dtypes, strict=True):
        here, limits = _fastest(rows[rows["dtype"] == dtype]), ceilings(frame[frame["dtype"] == dtype])
        kept += len(here)
        if limits is not None:
            promised = promised or bool(_promise(limits))
            solid.add(limits.probed)
            _draw(made, panel, here, limits)
            panel.alt = f"{made.title} {panel.title}. {_ceiling_words(limits)} {_reach(here, limits)}"
    key(made, spread=True)
    if True in solid:
        made.notes.append("Solid, measured: what a matrix product and a copy reached on this machine, in the same run.")
    if False in solid:
        made.notes.append(
            "Solid, most reached: by any record, in TFLOP/s and in GB/s of least traffic: no limit of the machine."
        )
    if promised:
        made.notes.append(
            "Dashed: the datasheet's arithmetic and memory bandwidth; under its slope traffic is the bound. What lies "
            "far below it is held back by neither, but by launches, latency or other instructions."
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
    near = limits.datasheet is not None and limits.datasheet < 1.2 * limits.reached
    text = f"{limits.name}: {digits(limits.reached)}, {digits(limits.traffic)} GB/s"
    _name(ax, right, limits.reached, text, below=near)
    if limits.datasheet is None and limits.bandwidth is None:
        return
    knees = [] if limits.datasheet is None or limits.bandwidth is None else [limits.datasheet * 1e3 / limits.bandwidth]
    xs = [left, *(knee for knee in knees if left < knee < right), right]
    dashes: dict[str, Any] = {"color": FAINT, "lw": 0.9, "ls": (0, (4, 3)), "gid": f"{gid}-datasheet"}
    ax.plot(xs, [limits.promised(x) for x in xs], **dashes, scaley=False)
    if limits.datasheet is not None:
        _name(ax, right, limits.datasheet, f"datasheet: {_promise(limits)}")


def _name(ax: Axes, x: float, height: float, text: str, *, below: bool = False) -> None:
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.4, "alpha": 0.85}
    shift, side = ((-3, -4), "top") if below else ((-3, 3), "bottom")
    place: dict[str, Any] = {"xytext": shift, "textcoords": "offset points", "ha": "right", "va": side}
    # Under the marks: a box must not hide a value.
    ax.annotate(text, (x, height), **place, size=7.5, color=INK, bbox=box, zorder=1.9)


def _promise(limits: Ceilings) -> str:
    parts = [f"{digits(limits.datasheet)}"] if limits.datasheet is not None else []
    return ", ".join([*parts, *([f"{digits(limits.bandwidth)} GB/s"] if limits.bandwidth is not None else [])])


def _ceiling_words(limits: Ceilings) -> str:
    promise = _promise(limits).replace(",", " TFLOP/s and") if limits.datasheet is not None else _promise(limits)
    said = f", the datasheet's {promise}" if promise else ""
    what = "What a matrix product and a copy reached" if limits.probed else "The most reached"
    return f"{what} is {digits(limits.reached)} TFLOP/s and {digits(limits.traffic)} GB/s{said}."


def _reach(rows: pd.DataFrame, limits: Ceilings) -> str:
    """Say for each series its best speed, and its share of the datasheet's ceiling there, or of the most reached."""
    said: Sequence[str] = [
        f"{short(series)}: {digits(best['tflops'])} at {digits(best['intensity'])} FLOP a byte, "
        f"{_share(float(best['tflops']), float(best['intensity']), limits)}."
        for series in series_order(rows)
        for best in [rows[rows["series"] == series].sort_values("tflops").iloc[-1]]
    ]
    return " ".join(said)


def _share(speed: float, intensity: float, limits: Ceilings) -> str:
    roof = limits.promised(intensity)
    if limits.probed:
        bound = "memory's" if limits.traffic * intensity / 1e3 < limits.reached else "arithmetic's"
        return f"{100 * speed / limits.at(intensity):.0f} % of {bound} measured ceiling there"
    if math.isinf(roof):
        return f"{100 * speed / limits.at(intensity):.0f} % of the most reached there"
    bound = "memory's" if roof < (limits.datasheet or math.inf) else "arithmetic's"
    return f"{100 * speed / roof:.0f} % of {bound} ceiling there"
